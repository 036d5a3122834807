/* The loops for one compute type: included by kernels.c with `real`, FN, SQRT and ABS defined. */
#include "rules.h"

/* Elements between two prefetches of an array: so many that a step of the inner loop is whole vectors on every level,
 * and so few that prefetching keeps pace. */
#define LINE (64 / (int)sizeof(real))
#define BLOCK (4 * LINE)
/* How far ahead to prefetch: 2 KB, measured best for Adam's traffic. */
#define AHEAD (2048 / (int)sizeof(real))

/* One loop for every rule. Each array is its own `restrict` pointer; `last` is where whole blocks end. */
#define KERNEL(rule, copies)                                                                                          \
    static void FN(run_##rule##_##copies)(int64_t n, void *const *arrays, const void *coefficients, int prefetch)     \
    {                                                                                                                 \
        const struct { FN(prologue_coefs) prologue; FN(rule##_coefs) rule; } *c = coefficients;                       \
        const FN(prologue_coefs) prologue = c->prologue;                                                              \
        FN(rule##_coefs) coefs[copies];                                                                               \
        for (int k = 0; k < copies; k++)                                                                              \
            coefs[k] = c[k].rule;                                                                                     \
        real *restrict param = arrays[0];                                                                             \
        const real *restrict grad = arrays[1];                                                                        \
        POINTERS_##rule##_##copies                                                                                    \
        int64_t i = 0, last = n - n % BLOCK;                                                                          \
        while (i < last) {                                                                                            \
            for (int line = 0; prefetch && line < BLOCK; line += LINE) {                                              \
                PREFETCH(param + i + line + AHEAD);                                                                   \
                PREFETCH(grad + i + line + AHEAD);                                                                    \
                PREFETCH_##rule##_##copies(i + line + AHEAD)                                                          \
            }                                                                                                         \
            for (int64_t end = i + BLOCK; i < end; i++)                                                               \
                ELEMENT(UPDATE_##rule##_##copies)                                                                     \
        }                                                                                                             \
        for (; i < n; i++)                                                                                            \
            ELEMENT(UPDATE_##rule##_##copies)                                                                         \
    }

#define ELEMENT(update)                                                                                               \
    {                                                                                                                 \
        real p = param[i];                                                                                            \
        real g = FN(prologue)(&p, grad[i], &prologue);                                                                \
        update                                                                                                        \
        param[i] = p;                                                                                                 \
    }

FASTOPT_INSTANCES(KERNEL)

/* Copies between a strided run, of any alignment, and a tile. */
static void FN(gather)(real *tile, const char *from, int64_t stride, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        memcpy(tile + i, from + i * stride, sizeof(real));
}

static void FN(scatter)(const real *tile, char *to, int64_t stride, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        memcpy(to + i * stride, tile + i, sizeof(real));
}

/* n elements of one run; coefficients still in float64, rounded here, once. */
static void FN(run)(fastopt_kernel kernel, int64_t n, int arrays, void *const *addresses, const int64_t *strides,
                    const double *coefficients, int row, int prefetch)
{
    real coefs[MAX_ROW];
    int dense = 1;
    for (int j = 0; j < row; j++)
        coefs[j] = (real)coefficients[j];
    for (int j = 0; j < arrays; j++)
        dense &= (!strides || strides[j] == sizeof(real)) && (uintptr_t)addresses[j] % sizeof(real) == 0;
    if (dense) {
        kernel(n, addresses, coefs, prefetch);
    } else {
        real tiles[MAX_ARRAYS][TILE];
        void *tile[MAX_ARRAYS];
        for (int j = 0; j < arrays; j++)
            tile[j] = tiles[j];
        for (int64_t i = 0; i < n; i += TILE) {
            int64_t m = n - i < TILE ? n - i : TILE;
            for (int j = 0; j < arrays; j++) {
                int64_t stride = strides ? strides[j] : (int64_t)sizeof(real);
                FN(gather)(tiles[j], (char *)addresses[j] + i * stride, stride, m);
            }
            kernel(m, tile, coefs, 0);
            for (int j = 0; j < arrays; j++) {
                int64_t stride = strides ? strides[j] : (int64_t)sizeof(real);
                if (j != 1)
                    FN(scatter)(tiles[j], (char *)addresses[j] + i * stride, stride, m);
            }
        }
    }
}

/* The sum of squares of at most FASTOPT_NORM_BLOCK elements: sixteen partial sums, so that the order of additions is
 * one on every level. */
static double FN(square_sum)(int64_t n, const char *from, int64_t stride)
{
    real tile[TILE];
    double lanes[16] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += TILE) {
        int64_t m = n - i < TILE ? n - i : TILE;
        FN(gather)(tile, from + i * stride, stride, m);
        for (int64_t j = m; j % 16; j++)
            tile[j] = 0;
        for (int64_t j = 0; j < m; j += 16)
            for (int lane = 0; lane < 16; lane++)
                lanes[lane] += (double)tile[j + lane] * (double)tile[j + lane];
    }
    for (int lane = 0; lane < 16; lane++)
        sum += lanes[lane];
    return sum;
}

#undef LINE
#undef BLOCK
#undef AHEAD
#undef KERNEL
#undef ELEMENT
