/* The normals of docs/noise-format.md in C, bit by bit. No fused multiply-add: compile with
   -ffp-contract=off, or each product and sum is not rounded on its own. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

static float horner(const float *c, int n, float x) {
    float total = c[n - 1];
    for (int i = n - 2; i >= 0; i--) total = total * x + c[i];
    return total;
}

/* Two normals of two words: sqrt(-2 ln u) (sin, cos)(2 pi v), u and v = (word + 1/2) 2^-32. */
static void box_muller(uint32_t word, uint32_t angle, float *z) {
    static const float LOG[] = {0.99999983f, -0.666679f, 0.50003511f, -0.39924144f, 0.33141016f,
                                -0.29835953f, 0.28615053f, -0.17469682f};
    static const float SIN[] = {0.7853981633974483f, -8.07454347e-02f, 2.48998973e-03f, -3.59390481e-05f};
    static const float COS[] = {1.0f, -0.30842449f, 0.0158504f, -0.00031916f};
    uint32_t bits = as_bits((float)word + 0.5f) + 0x004AFB0Du;
    float exponent = (float)((int)(bits >> 23) - 159);
    float near = (float)(2 * (int64_t)word + 1 - (1LL << 33)) * 0x1p-33f;
    float f = word >= 3u << 30 ? near : as_float((bits & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
    float radius = sqrtf(exponent * -1.3862943611198906f + f * (f * horner(LOG, 8, f) - 2.0f));
    uint32_t quadrant = (angle + (1u << 29)) >> 30;
    float y = (float)(2 * (int32_t)(angle - (quadrant << 30)) + 1) * 0x1p-30f, y2 = y * y;
    float s = y * horner(SIN, 4, y2), c = horner(COS, 4, y2);
    z[0] = radius * (quadrant & 2 ? -1.0f : 1.0f) * (quadrant & 1 ? c : s);
    z[1] = radius * ((quadrant + 1) & 2 ? -1.0f : 1.0f) * (quadrant & 1 ? s : c);
}

/* Normals [batch, size] of samples 0 to batch - 1: elements 0 to size - 1 of this draw of each. */
static void normal(double *out, long batch, long size, uint64_t seed, uint32_t tag, uint32_t draw) {
    for (uint64_t id = 0; id < (uint64_t)batch; id++)
        for (long e = 0; e < size; e += 4) {
            uint32_t c[4] = {(uint32_t)(e / 4), (uint32_t)id, draw,
                             (uint32_t)(id >> 32 & 0xFFFF) << 16 | tag};
            uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
            for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
                uint64_t p = (uint64_t)c[0] * 0xD2511F53u, q = (uint64_t)c[2] * 0xCD9E8D57u;
                uint32_t next[4] = {(uint32_t)(q >> 32) ^ c[1] ^ k0, (uint32_t)q,
                                    (uint32_t)(p >> 32) ^ c[3] ^ k1, (uint32_t)p};
                memcpy(c, next, sizeof c);
            }
            float z[4];
            box_muller(c[0], c[1], z), box_muller(c[2], c[3], z + 2);
            for (int j = 0; j < 4 && e + j < size; j++) out[id * size + e + j] = z[j];
        }
}
