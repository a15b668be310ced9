/* An exported table in memory, and what takes samples to the components that it acts on:
   u = Q^T (x - alpha m), in place; a table without components has m = 0 and Q = I. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *text; /* of the file */

static void read_table(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) { perror(path); exit(1); }
    long length = ftell(file);
    rewind(file);
    text = calloc((size_t)length + 1, 1);
    if (fread(text, 1, (size_t)length, file) != (size_t)length) { perror(path); exit(1); }
    fclose(file);
}

/* The numbers under a key, brackets left out; n: how many. NULL for null or no such key. */
static double *numbers(const char *key, long *n) {
    char quoted[64];
    double *found = NULL;
    long depth = 0;
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    char *p = strstr(text, quoted);
    for (*n = 0, p = p ? p + strlen(quoted) : "null"; *p != 'n' && *p != '"';) {
        depth += *p == '[' ? 1 : *p == ']' ? -1 : 0;
        if (strchr("[], ", *p)) p++;
        else found = realloc(found, sizeof(double) * (size_t)(*n + 1)), found[(*n)++] = strtod(p, &p);
        if (!depth) break;
    }
    return found;
}

static long n_q, n_w, n_r, n_shape, n_mean, ignored;
static double *mean, *alpha, *shift, *q, *w, *r, *shape;

static void read_frame(void) {
    mean = numbers("mean", &n_mean), alpha = numbers("frame_alpha", &ignored);
    shift = numbers("frame_shift", &ignored), q = numbers("basis_q", &n_q);
    w = numbers("basis_w", &n_w), r = numbers("basis_t", &n_r), shape = numbers("basis_shape", &n_shape);
}

static void reflect(double *v, long d, int into) { /* v - W (T or T^T) W^T v, T [rank, rank] */
    long rank = n_w / d;
    double a[rank], b;
    for (long i = 0; i < rank; i++)
        for (long j = a[i] = 0; j < d; j++) a[i] += v[j] * w[j * rank + i];
    for (long i = 0; i < rank; i++) {
        b = 0;
        for (long j = 0; j < rank; j++) b += a[j] * (into ? r[j * rank + i] : r[i * rank + j]);
        for (long j = 0; j < d; j++) v[j] -= b * w[j * rank + i];
    }
}

/* Rows of n numbers, `stride` apart, times an orthogonal matrix: Q^T v if into, else Q v. */
static void rotate(double *v, long d, long n, long stride, const double *m, int into) {
    double line[n];
    for (long at = 0; at < d; at++) {
        if (at / stride % n) continue;
        for (long i = 0; i < n; i++)
            for (long j = line[i] = 0; j < n; j++)
                line[i] += v[at + j * stride] * (into ? m[j * n + i] : m[i * n + j]);
        for (long i = 0; i < n; i++) v[at + i * stride] = line[i];
    }
}

static void turn(double *v, long d, int into) {
    if (w) reflect(v, d, into);
    else if (q) rotate(v, d, d, 1, q, into);
    else for (long a = n_shape > 1, stride = n_shape > 1 ? d / (long)shape[0] : d; a < n_shape; a++) {
        long n = (long)shape[a]; /* DCT-II over all axes but the first, its only one if so */
        double m[n * n];
        for (long j = 0; j < n; j++)
            for (long k = 0; k < n; k++)
                m[j * n + k] = sqrt((k ? 2.0 : 1.0) / n) * cos(acos(-1) * k * (2 * j + 1) / (2 * n));
        rotate(v, d, n, stride /= n, m, into);
    }
}

/* x -> u = Q^T (x + a m), and u -> x = Q u + a m, of `batch` samples of d numbers */
static void to_components(double *v, long batch, long d, double a) {
    for (long i = 0; i < batch * d; i++) v[i] += n_mean ? a * mean[i % d] : 0;
    for (long b = 0; b < batch; b++) turn(v + b * d, d, 1);
}

static void to_samples(double *v, long batch, long d, double a) {
    for (long b = 0; b < batch; b++) turn(v + b * d, d, 0);
    for (long i = 0; i < batch * d; i++) v[i] += n_mean ? a * mean[i % d] : 0;
}
