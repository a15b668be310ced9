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

/* QUADS counters and their keys, lane by lane. */
typedef struct { uint32_t c0[QUADS], c1[QUADS], c2[QUADS], c3[QUADS], k0[QUADS], k1[QUADS]; } Lanes;
typedef struct { uint32_t w[4][QUADS]; } Words;

/* The ten rounds of Philox4x32-10 for lane i. */
static inline void philox(Words *to, int i, Word c0, Word c1, Word c2, Word c3, uint32_t k0,
                          uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (Word)(p1 >> 32) ^ c1 ^ k0;
        c2 = (Word)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    to->w[0][i] = (uint32_t)c0, to->w[1][i] = (uint32_t)c1;
    to->w[2][i] = (uint32_t)c2, to->w[3][i] = (uint32_t)c3;
}

/* Four words of every lane as four numbers that follow one another (philox.draw). */
static void finished(float *out, const Words *from, int kind) {
    float z[4][QUADS];
    const uint32_t (*w)[QUADS] = from->w;
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

/* Counter and key of sample b's draw, but for the element (philox.stream_table). */
typedef struct { uint32_t c1, c2, c3, k0, k1; } Stream;

static inline Stream stream_of(const Streams *of, int64_t b, int64_t draw) {
    uint64_t id = (uint64_t)(of->ids ? of->ids[b] : b);
    uint64_t key = (uint64_t)of->seed[of->seeds > 1 ? b : 0];
    uint32_t word3 = (uint32_t)((id >> 32 & 0xFFFF) << 16 | (uint64_t)of->tag);
    return (Stream){(uint32_t)id, (uint32_t)draw, word3, (uint32_t)key, (uint32_t)(key >> 32)};
}

/* Lanes of counters first ... first + QUADS - 1 of one sample's draw. */
static void draw_block(float *out, uint32_t first, const Streams *of, int64_t b, int64_t draw,
                       int kind) {
    Words words;
    Stream s = stream_of(of, b, draw);
    for (int i = 0; i < QUADS; i++)
        philox(&words, i, first + (uint32_t)i, s.c1, s.c2, s.c3, s.k0, s.k1);
    finished(out, &words, kind);
}

/* Counters first ... first + quads - 1 of one sample's draw become `quads` lanes from `at` on. */
static inline void lay(Lanes *lanes, int at, int quads, uint32_t first, Stream s) {
    for (int i = at; i < at + quads; i++) {
        lanes->c0[i] = first + (uint32_t)(i - at);
        lanes->c1[i] = s.c1, lanes->c2[i] = s.c2, lanes->c3[i] = s.c3;
        lanes->k0[i] = s.k0, lanes->k1[i] = s.k1;
    }
}

/* The numbers of all lanes, of whatever samples they are. */
static void draw_lanes(float *out, const Lanes *l, int kind) {
    Words words;
    for (int i = 0; i < QUADS; i++)
        philox(&words, i, l->c0[i], l->c1[i], l->c2[i], l->c3[i], l->k0[i], l->k1[i]);
    finished(out, &words, kind);
}

/* Small samples share a block: how many of `quads` counters each fit, 1 where they do not. */
static inline int64_t together(int64_t quads) { return quads && 2 * quads <= QUADS ? QUADS / quads : 1; }

static void scaled(float *restrict sum, const float *restrict v, float c, int64_t n, int first) {
    if (first) for (int64_t i = 0; i < n; i++) sum[i] = c * v[i];
    else for (int64_t i = 0; i < n; i++) sum[i] = sum[i] + c * v[i];
}

static void two(float *restrict sum, const float *x, float a, const float *d, float b, int64_t n) {
    for (int64_t i = 0; i < n; i++) sum[i] = a * x[i] + b * d[i];
}

/* Part `part` of `parts` of a fill: out [rows, n] is the lanes of draw draws[0] from element0 on
   (philox.draw), or, where c is given, sum_j c[j] z_j of the normals draws[j] (brownian.py); c and
   draws [rows, terms], or one row of them for all (per_row = 0). */
void undiffuse_noise(int64_t part, int64_t parts, float *out, const int64_t *seed,
                     const int64_t *ids, const int64_t *draws, const float *c, int64_t rows,
                     int64_t seeds, int64_t tag, int64_t n, int64_t terms, int64_t per_row,
                     int64_t element0, int64_t kind) {
    const Streams of = {seed, ids, seeds, tag};
    int64_t start = element0 - element0 % 4, skip = element0 - start;
    int64_t quads = (skip + n + 3) / 4, group = together(quads);
    int64_t blocks = group > 1 ? 1 : (quads + QUADS - 1) / QUADS; /* of one sample */
    int64_t jobs = group > 1 ? (rows + group - 1) / group : rows * blocks;
    float lanes[BLOCK], sum[BLOCK];
    Lanes counters;
    memset(&counters, 0, sizeof counters);
    for (int64_t job = jobs * part / parts; job < jobs * (part + 1) / parts; job++) {
        int64_t b = group > 1 ? job * group : job / blocks;
        int64_t count = group < rows - b ? group : rows - b;
        int64_t at = start + (group > 1 ? 0 : job % blocks * BLOCK);
        if (c) memset(sum, 0, sizeof sum);
        for (int64_t j = 0; j < terms; j++) {
            float *to = c ? lanes : sum;
            if (group > 1) {
                for (int64_t s = 0; s < count; s++) {
                    int64_t draw = draws[per_row ? (b + s) * terms + j : j];
                    Stream stream = stream_of(&of, b + s, draw);
                    lay(&counters, (int)(s * quads), (int)quads, (uint32_t)(at / 4), stream);
                }
                draw_lanes(to, &counters, (int)kind);
            } else {
                int64_t at_term = per_row ? b * terms + j : j;
                if (c && c[at_term] == 0.0f) continue;
                draw_block(to, (uint32_t)(at / 4), &of, b, draws[at_term], (int)kind);
            }
            for (int64_t s = 0; c && s < count; s++) {
                float scale = c[per_row ? (b + s) * terms + j : j];
                int64_t width = group > 1 ? 4 * quads : BLOCK;
                if (scale != 0.0f) scaled(sum + s * width, lanes + s * width, scale, width, 0);
            }
        }
        if (group > 1) {
            for (int64_t s = 0; s < count; s++)
                memcpy(out + (b + s) * n, sum + s * 4 * quads + skip, 4 * n);
        } else {
            int64_t from = at < element0 ? skip : 0;
            int64_t to = element0 + n - at < BLOCK ? element0 + n - at : BLOCK;
            memcpy(out + b * n + at + from - element0, sum + from, 4 * (to - from));
        }
    }
}

/* Numbers of a step, as native.py packs them; after them the tensors: x, outs, states, data to read,
   then x', D, x_in to write (0 where not wanted), each [rows, n]. */
enum { TABLE, AT_ROW, DRAWS, SEED, IDS, LIMITS, SEEDS, TAG, ROWS, N, LENGTH, COLUMNS, PER_ROW, OUTS,
       STATES, DATA, NOISES, TENSORS };
#define AT(type, i) ((type *)(intptr_t)step[i])

/* The sums of m elements from `here` on by one row of the table; all but the noise. */
static void sums(const int64_t *step, const float *head, int64_t here, int64_t m, float *scratch) {
    const int64_t outs = step[OUTS], states = step[STATES], data = step[DATA];
    const float *limits = AT(const float, LIMITS), *k = head + 4, *x = AT(float, TENSORS) + here;
    const int64_t *v = step + TENSORS + 1, *results = v + outs + states + data;
    float *sum = (float *)(intptr_t)results[0] + here;
    float *d = results[1] ? (float *)(intptr_t)results[1] + here : scratch;
#define NEXT ((float *)(intptr_t)*v++ + here)
    if (outs == 1 && !limits && !results[1] && head[0] == 0.0f && head[1] == 1.0f) {
        d = NEXT; /* the output is the data prediction: no pass of its own */
    } else {
        if (head[0] != 0.0f) scaled(d, x, head[0], m, 1);
        for (int64_t j = 0; j < outs; j++)
            scaled(d, NEXT, head[1 + j], m, j == 0 && head[0] == 0.0f);
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
            if (*k != 0.0f) scaled(sum, (float *)(intptr_t)*v + here, *k, m, 0);
        scaled(sum, d, *k++, m, 0);
    }
    for (int64_t j = 0; j < data; j++, v++, k++)
        if (*k != 0.0f) scaled(sum, (float *)(intptr_t)*v + here, *k, m, 0);
#undef NEXT
}

/* z of noise j for the elements of a job: samples b ... b + count - 1 side by side, or a block of
   one sample from element `at` on. Returns 0 where none of them has a use for it. */
static int noise_of(const int64_t *step, float *z, int64_t j, int64_t b, int64_t count, int64_t at,
                    int grouped) {
    const Streams of = {AT(const int64_t, SEED), AT(const int64_t, IDS), step[SEEDS], step[TAG]};
    const int64_t *at_row = AT(const int64_t, AT_ROW), *draws = AT(const int64_t, DRAWS);
    const float *table = AT(const float, TABLE);
    int64_t n = step[N], quads = (n + 3) / 4, noises = step[NOISES];
    int64_t place = 4 + 2 + step[STATES] + step[DATA] + j;
    int used = 0;
    Lanes lanes;
    if (grouped) memset(&lanes, 0, sizeof lanes);
    for (int64_t s = 0; s < count; s++) {
        int64_t row = at_row[step[PER_ROW] ? b + s : 0];
        if (table[row * step[COLUMNS] + place] == 0.0f) continue;
        used = 1;
        if (!grouped) {
            draw_block(z, (uint32_t)(at / 4), &of, b, draws[row * noises + j], NORMAL);
            return 1;
        }
        Stream stream = stream_of(&of, b + s, draws[row * noises + j]);
        lay(&lanes, (int)(s * quads), (int)quads, 0, stream);
    }
    if (!used) return 0;
    draw_lanes(z, &lanes, NORMAL);
    if (n % 4)
        for (int64_t s = 1; s < count; s++) memmove(z + s * n, z + s * 4 * quads, 4 * n);
    return 1;
}

/* Part `part` of `parts` of one step (linear_reference.reference); sample b goes by row at_row[b] of
   table [length, columns] and draws [length, noises], or by at_row[0] (per_row = 0). Small samples
   are taken together, those that are at one row in one pass. Returns whether all rows exist. */
int undiffuse_linear(int64_t part, int64_t parts, const int64_t *step) {
    const int64_t rows = step[ROWS], n = step[N], columns = step[COLUMNS], per_row = step[PER_ROW];
    const int64_t *at_row = AT(const int64_t, AT_ROW);
    const int64_t *results = step + TENSORS + 1 + step[OUTS] + step[STATES] + step[DATA];
    int64_t group = together((n + 3) / 4), blocks = (n + BLOCK - 1) / BLOCK;
    int64_t jobs = group > 1 ? (rows + group - 1) / group : rows * blocks;
    float scratch[BLOCK], z[BLOCK];
    for (int64_t b = 0; b < (per_row ? rows : 1); b++)
        if (at_row[b] < 0 || at_row[b] >= step[LENGTH]) return 0;
    for (int64_t job = jobs * part / parts; job < jobs * (part + 1) / parts; job++) {
        int64_t b = group > 1 ? job * group : job / blocks;
        int64_t count = group < rows - b ? group : rows - b;
        int64_t at = group > 1 ? 0 : job % blocks * BLOCK;
        int64_t m = group > 1 ? n : n - at < BLOCK ? n - at : BLOCK; /* of each sample */
        float *sum = (float *)(intptr_t)results[0];
        for (int64_t j = -1; j < step[NOISES]; j++) { /* -1: all that is no noise */
            if (j >= 0 && !noise_of(step, z, j, b, count, at, group > 1)) continue;
            for (int64_t s = 0, run; s < count; s += run) {
                int64_t row = at_row[per_row ? b + s : 0], here = (b + s) * n + at;
                const float *head = AT(const float, TABLE) + row * columns;
                for (run = 1; s + run < count; run++)
                    if (per_row && at_row[b + s + run] != row) break;
                if (j < 0) {
                    sums(step, head, here, run * m, scratch);
                    continue;
                }
                float c = head[4 + 2 + step[STATES] + step[DATA] + j];
                if (c != 0.0f) scaled(sum + here, z + s * n, c, run * m, 0);
            }
        }
        for (int64_t s = 0, run; results[2] && s < count; s += run) {
            int64_t row = at_row[per_row ? b + s : 0], here = (b + s) * n + at;
            for (run = 1; s + run < count; run++)
                if (per_row && at_row[b + s + run] != row) break;
            float c_in = (AT(const float, TABLE) + row * columns)[3];
            scaled((float *)(intptr_t)results[2] + here, sum + here, c_in, run * m, 1);
        }
    }
    return 1;
}
