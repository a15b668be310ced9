/* The CPU's compiled twin of philox.py and linear_reference.py, bit by bit: float32 only.

   Built by native.py with -ffp-contract=off: a fused multiply-add would round once where the
   reference rounds twice. No libm, no intrinsics; the loops are plain enough to be vectorised. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define QUADS 256             /* counters handled at once: the lanes stay in the L1 cache */
#define BLOCK (4 * QUADS)

enum { NORMAL, UNIFORM, SIGN };

/* What holds a 32-bit word of Philox: where a 64-bit product is one instruction on a whole vector,
   words as wide as the products spare the compiler all packing. */
#ifdef __AVX512DQ__
typedef uint64_t Word;
#else
typedef uint32_t Word;
#endif

static inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

/* r and the signed sine and cosine: philox.squared_radius, sqrt_rounded, sin_cos, box_muller */
static inline void box_muller(uint32_t word0, uint32_t word1, float *z0, float *z1) {
    uint32_t bits = as_bits((float)word0 + 0.5f) + (0x3F800000u - 0x3F3504F3u);
    int32_t exponent = (int32_t)(bits >> 23) - 159;
    float mantissa = as_float((bits & 0x7FFFFFu) + 0x3F3504F3u);
    float near_one = (float)(-2 * (int32_t)(~word0 & 0x3FFFFFFFu) - 1) * 0x1p-33f;
    float f = word0 >= 0xC0000000u ? near_one : mantissa - 1.0f;
    float q = f * LOG7 + LOG6;
    q = q * f + LOG5;
    q = q * f + LOG4;
    q = q * f + LOG3;
    q = q * f + LOG2;
    q = q * f + LOG1;
    q = q * f + LOG0;
    float r = sqrtf((float)exponent * MINUS_2_LN_2 + f * (f * q - 2.0f));

    uint32_t quadrant = (word1 + 0x20000000u) >> 30;
    int32_t residual = (int32_t)(word1 - (quadrant << 30));
    float y = (float)(2 * residual + 1) * 0x1p-30f;
    float square = y * y;
    float s = square * SIN3 + SIN2;
    s = s * square + SIN1;
    s = y * (s * square + SIN0);
    float c = square * COS3 + COS2;
    c = c * square + COS1;
    c = c * square + COS0;
    float sine = (quadrant & 1) ? c : s, cosine = (quadrant & 1) ? s : c;
    *z0 = r * as_float(as_bits(sine) ^ ((quadrant & 2) << 30));
    *z1 = r * as_float(as_bits(cosine) ^ (((quadrant + 1) & 2) << 30));
}

/* Whose noise: seed [seeds], 1 or one a sample; ids [rows], NULL for 0, 1, ...; tag as in noise.py */
typedef struct { const int64_t *seed, *ids; int64_t seeds, tag; } Streams;

/* Lanes of counters first ... first + QUADS - 1 of sample b's draw (philox.stream_table). */
static void draw_block(float *out, uint32_t first, const Streams *of, int64_t b, int64_t draw,
                       int kind) {
    uint32_t w[4][QUADS];
    float z[4][QUADS];
    uint64_t id = (uint64_t)(of->ids ? of->ids[b] : b), key = (uint64_t)of->seed[of->seeds > 1 ? b : 0];
    uint32_t word3 = (uint32_t)((id >> 32 & 0xFFFF) << 16 | (uint64_t)of->tag);
    for (int i = 0; i < QUADS; i++) {
        Word c0 = first + (uint32_t)i, c1 = (uint32_t)id, c2 = (uint32_t)draw, c3 = word3;
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
            c0 = (Word)(p1 >> 32) ^ c1 ^ k0;
            c2 = (Word)(p0 >> 32) ^ c3 ^ k1;
            c1 = (uint32_t)p1;
            c3 = (uint32_t)p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        w[0][i] = (uint32_t)c0, w[1][i] = (uint32_t)c1, w[2][i] = (uint32_t)c2, w[3][i] = (uint32_t)c3;
    }
    if (kind == NORMAL) {
        for (int i = 0; i < QUADS; i++) box_muller(w[0][i], w[1][i], &z[0][i], &z[1][i]);
        for (int i = 0; i < QUADS; i++) box_muller(w[2][i], w[3][i], &z[2][i], &z[3][i]);
    } else if (kind == UNIFORM) {
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < QUADS; i++) z[k][i] = ((float)(w[k][i] >> 9) + 0.5f) * 0x1p-23f;
    } else {
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < QUADS; i++) z[k][i] = 1.0f - 2.0f * (float)(w[k][i] >> 31);
    }
    for (int i = 0; i < QUADS; i++)
        for (int k = 0; k < 4; k++) out[4 * i + k] = z[k][i];
}

static void scaled(float *restrict sum, const float *restrict v, float c, int64_t n, int first) {
    if (first) for (int64_t i = 0; i < n; i++) sum[i] = c * v[i];
    else for (int64_t i = 0; i < n; i++) sum[i] = sum[i] + c * v[i];
}

static void two(float *restrict sum, const float *x, float a, const float *d, float b, int64_t n) {
    for (int64_t i = 0; i < n; i++) sum[i] = a * x[i] + b * d[i];
}

/* Jobs first ... last - 1 of a fill, each BLOCK elements of one row: out [rows, n] is the lanes of
   draw draws[0] from element0 on (philox.draw), or, where c is given, sum_j c[j] z_j of the normals
   draws[j] (brownian.py); c and draws [rows, terms], or one row of them for all (per_row = 0). */
void undiffuse_noise(int64_t first, int64_t last, float *out, const int64_t *seed,
                     const int64_t *ids, const int64_t *draws, const float *c, int64_t seeds,
                     int64_t tag, int64_t n, int64_t terms, int64_t per_row, int64_t element0,
                     int64_t kind) {
    const Streams of = {seed, ids, seeds, tag};
    int64_t start = element0 - element0 % 4, jobs = (element0 + n - start + BLOCK - 1) / BLOCK;
    float lanes[BLOCK], sum[BLOCK];
    for (int64_t job = first; job < last; job++) {
        int64_t b = job / jobs, at = start + job % jobs * BLOCK;
        int64_t from = at < element0 ? element0 - at : 0;
        int64_t to = element0 + n - at < BLOCK ? element0 + n - at : BLOCK;
        int64_t term0 = per_row ? b * terms : 0;
        if (c) {
            memset(sum, 0, sizeof sum);
            for (int64_t j = term0; j < term0 + terms; j++)
                if (c[j] != 0.0f) {
                    draw_block(lanes, (uint32_t)(at / 4), &of, b, draws[j], NORMAL);
                    scaled(sum, lanes, c[j], BLOCK, 0);
                }
        } else draw_block(sum, (uint32_t)(at / 4), &of, b, draws[0], (int)kind);
        memcpy(out + b * n + at + from - element0, sum + from, 4 * (to - from));
    }
}

/* Jobs first ... last - 1 of one step (linear_reference.reference), each BLOCK elements of a row.
   tensors: x, outs, states, data to read, then x', D, x_in to write (NULL where not wanted), each
   [rows, n]; table [length, columns] and draws [length, noises], of which sample b reads row
   at_row[b], or all of them at_row[0] (per_row = 0). Returns whether all those rows exist. */
int undiffuse_linear(int64_t first, int64_t last, float *const *tensors, const float *table,
                     const int64_t *at_row, const int64_t *draws, const int64_t *seed,
                     const int64_t *ids, const float *limits, int64_t seeds, int64_t tag,
                     int64_t rows, int64_t n, int64_t length, int64_t columns, int64_t per_row,
                     int64_t outs, int64_t states, int64_t data, int64_t noises) {
    const Streams of = {seed, ids, seeds, tag};
    float *const *results = tensors + 1 + outs + states + data;
    int64_t jobs = (n + BLOCK - 1) / BLOCK;
    float scratch[BLOCK], z[BLOCK];
    for (int64_t b = 0; b < (per_row ? rows : 1); b++)
        if (at_row[b] < 0 || at_row[b] >= length) return 0;
    for (int64_t job = first; job < last; job++) {
        int64_t b = job / jobs, at = job % jobs * BLOCK, here = b * n + at;
        int64_t m = n - at < BLOCK ? n - at : BLOCK;
        int64_t at_table = at_row[per_row ? b : 0];
        const float *head = table + at_table * columns, *k = head + 4, *x = tensors[0] + here;
        float *const *v = tensors + 1;
        float *sum = results[0] + here, *d = results[1] ? results[1] + here : scratch;
        if (outs == 1 && !limits && !results[1] && head[0] == 0.0f && head[1] == 1.0f) {
            d = *v++ + here; /* the output is the data prediction: no pass of its own */
        } else {
            if (head[0] != 0.0f) scaled(d, x, head[0], m, 1);
            for (int64_t j = 0; j < outs; j++)
                scaled(d, *v++ + here, head[1 + j], m, j == 0 && head[0] == 0.0f);
        }
        if (limits)
            for (int64_t i = 0; i < m; i++) {
                float low = d[i] < limits[0] ? limits[0] : d[i]; /* NaN passes both */
                d[i] = (low > limits[1] ? limits[1] : low) + 0.0f * d[i]; /* and Inf turns NaN */
            }
        if (states == 0) {
            two(sum, x, k[0], d, k[1], m);
            k += 2;
        } else {
            scaled(sum, x, *k++, m, 1);
            for (int64_t j = 0; j < states; j++, v++, k++)
                if (*k != 0.0f) scaled(sum, *v + here, *k, m, 0);
            scaled(sum, d, *k++, m, 0);
        }
        for (int64_t j = 0; j < data; j++, v++, k++)
            if (*k != 0.0f) scaled(sum, *v + here, *k, m, 0);
        for (int64_t j = 0; j < noises; j++, k++)
            if (*k != 0.0f) {
                draw_block(z, (uint32_t)(at / 4), &of, b, draws[at_table * noises + j], NORMAL);
                scaled(sum, z, *k, m, 0);
            }
        if (results[2]) scaled(results[2] + here, sum, head[3], m, 1);
    }
    return 1;
}
