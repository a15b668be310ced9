/* Sample with an exported table in C:
     cc -O2 -std=c99 -ffp-contract=off run.c -lm -o run && ./run table.json BATCH SIZE SEED
   `run` is the whole loop; put your network in the place of `network`. */
#include "noise.h"
#include "frame.h"

/* Stands for yours: x [n] is scaled by c_in already, t is as it is told. */
static void network(double *out, const double *x, double t, long n) {
    for (long j = 0; j < n; j++) out[j] = 0.3 * sin(x[j]) + 0.1 * cos(t);
}

#define GET(key) long n_##key; double *key = numbers(#key, &n_##key)
#define EACH for (long j = 0; j < n; j++)

/* Samples [batch, d] of this seed; each state and data prediction is kept, for the rows look back. */
static double *run(long batch, long d, uint64_t seed) {
    GET(t_in); GET(c_in); GET(skip); GET(scale); GET(clip); GET(state); GET(data); GET(noise);
    GET(draws); GET(entry); GET(start_sigma); GET(start_stream); GET(entry_stream); GET(rows_tag);
    GET(draw0);
    long n = batch * d, rows = n_t_in, S = n_mean ? d : 1; /* S: numbers a coefficient */
    long K = n_state / rows / S, H = n_data / rows / S, M = n_noise / rows;
    double *u = calloc((size_t)((rows + 1) * n), 8), *D = calloc((size_t)(rows * n), 8);
    double *x = calloc((size_t)n, 8), *out = calloc((size_t)n, 8), *z = calloc((size_t)n, 8);
    normal(x, batch, d, seed, (uint32_t)start_stream[0], (uint32_t)start_stream[1]);
    if (S == 1) normal(z, batch, d, seed, (uint32_t)entry_stream[0], (uint32_t)entry_stream[1]);
    EACH x[j] *= *start_sigma;
    if (n_mean) to_components(x, batch, d, -alpha[0]);
    EACH u[j] = S == 1 ? entry[0] * x[j] + entry[1] * z[j] : entry[j % d] * x[j];
    for (long i = 0; i < rows; i++) {
        double *now = u + i * n, *next = now + n, *D_i = D + i * n;
        memcpy(x, now, (size_t)n * 8);
        if (n_mean) to_samples(x, batch, d, alpha[i + 1]);
        EACH x[j] *= c_in[i];
        network(out, x, t_in[i], n);
        if (n_mean) to_components(out, batch, d, shift[i]);
        EACH D_i[j] = skip[i] * now[j] + scale[i] * out[j];
        if (clip) EACH D_i[j] = fmin(fmax(D_i[j], clip[0]), clip[1]);
        for (long k = 0; k < K && k <= i; k++) EACH next[j] += state[(i * K + k) * S + j % S] * now[j - k * n];
        for (long h = 0; h < H && h <= i; h++) EACH next[j] += data[(i * H + h) * S + j % S] * D_i[j - h * n];
        for (long m = i * M; m < (i + 1) * M; m++) {
            normal(z, batch, d, seed, (uint32_t)*rows_tag, (uint32_t)(*draw0 + draws[m]));
            EACH next[j] += noise[m] * z[j];
        }
    }
    if (n_mean) to_samples(u + rows * n, batch, d, alpha[rows + 1]);
    return u + rows * n;
}

int main(int count, char **args) {
    if (count != 5) return fprintf(stderr, "usage: run table.json BATCH SIZE SEED\n"), 2;
    long batch = atol(args[2]), d = atol(args[3]);
    read_table(args[1]), read_frame();
    double *x = run(batch, d, strtoull(args[4], NULL, 10));
    for (long j = 0; j < batch * d; j++) printf("%.17g\n", x[j]);
    return 0;
}
