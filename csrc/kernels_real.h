/* The loops for one compute type: included by kernels.c with `real`, FN, SQRT and ABS defined. */
#include "rules.h"

/* Elements between two prefetches of an array: so many that a step of the inner loop is whole vectors on every level,
 * and so few that prefetching keeps pace. */
#define LINE (64 / (int)sizeof(real))
#define BLOCK (4 * LINE)
/* How far ahead to prefetch, in bytes: measured best for Adam's traffic. */
#define AHEAD (2048 / (int)sizeof(real))

/* One loop for every rule. Each array is its own `restrict` pointer; `last` is where whole blocks end. */
#define KERNEL(rule, fold)                                                                                            \
    static void FN(run_##rule)(int64_t n, void *const *arrays, const void *coefficients)                              \
    {                                                                                                                 \
        const struct { FN(prologue_coefs) prologue; FN(rule##_coefs) rule; } *c = coefficients;                       \
        const FN(prologue_coefs) prologue = c->prologue;                                                              \
        const FN(rule##_coefs) coefs = c->rule;                                                                       \
        real *restrict param = arrays[0];                                                                             \
        const real *restrict grad = arrays[1];                                                                        \
        POINTERS_##rule(real)                                                                                         \
        int64_t i = 0, last = n - n % BLOCK;                                                                          \
        while (i < last) {                                                                                            \
            for (int line = 0; line < BLOCK; line += LINE) {                                                          \
                PREFETCH(param + i + line + AHEAD);                                                                   \
                PREFETCH(grad + i + line + AHEAD);                                                                    \
                PREFETCH_##rule(i + line + AHEAD)                                                                     \
            }                                                                                                         \
            for (int64_t end = i + BLOCK; i < end; i++)                                                               \
                ELEMENT(rule)                                                                                         \
        }                                                                                                             \
        for (; i < n; i++)                                                                                            \
            ELEMENT(rule)                                                                                             \
    }

#define ELEMENT(rule)                                                                                                 \
    {                                                                                                                 \
        real p = param[i];                                                                                            \
        real g = FN(prologue)(&p, grad[i], &prologue);                                                                \
        FN(rule##_states) s = LOAD_##rule(i);                                                                         \
        FN(rule)(&p, g, &s, &coefs);                                                                                  \
        param[i] = p;                                                                                                 \
        STORE_##rule(i)                                                                                               \
    }

FASTOPT_KERNELS(KERNEL)

/* The prologue alone, for rules with several copies of their states: they share the gradient it leaves in g. */
static void FN(run_prologue)(int64_t n, real *restrict p, const real *restrict grad, real *restrict g,
                             const FN(prologue_coefs) *coefficients)
{
    const FN(prologue_coefs) c = *coefficients;
    for (int64_t i = 0; i < n; i += LINE)
        PREFETCH(grad + i + TILE);
    for (int64_t i = 0; i < n; i++) {
        real x = p[i];
        g[i] = FN(prologue)(&x, grad[i], &c);
        p[i] = x;
    }
}

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

/* n contiguous elements with `copies` of the states: tile by tile, the kernel once for each copy. */
static void FN(run_copies)(fastopt_kernel kernel, int64_t n, int states, int copies, void *const *arrays,
                           const real *coefs, int row)
{
    const FN(prologue_coefs) identity = {1, 0, 1};
    real g[TILE], own[MAX_ROW];
    for (int64_t i = 0; i < n; i += TILE) {
        int64_t m = n - i < TILE ? n - i : TILE;
        void *part[2 + MAX_STATES] = {(real *)arrays[0] + i, g};
        FN(run_prologue)(m, part[0], (const real *)arrays[1] + i, g, (const void *)coefs);
        for (int k = 0; k < copies; k++) {
            memcpy(own, coefs + k * row, row * sizeof(real));
            memcpy(own, &identity, sizeof identity);
            for (int j = 0; j < states; j++)
                part[2 + j] = (real *)arrays[2 + k * states + j] + i;
            kernel(m, part, own);
        }
    }
}

/* n elements of one run; coefficients still in float64, rounded here, once. */
static void FN(run)(fastopt_kernel kernel, int64_t n, int states, int copies, void *const *addresses,
                    const int64_t *strides, const double *coefficients, int row)
{
    real coefs[MAX_COPIES * MAX_ROW];
    int arrays = 2 + copies * states, dense = 1;
    for (int j = 0; j < copies * row; j++)
        coefs[j] = (real)coefficients[j];
    for (int j = 0; j < arrays; j++)
        dense &= (!strides || strides[j] == sizeof(real)) && (uintptr_t)addresses[j] % sizeof(real) == 0;
    if (dense && copies == 1) {
        kernel(n, addresses, coefs);
    } else if (dense) {
        FN(run_copies)(kernel, n, states, copies, addresses, coefs, row);
    } else {
        real tiles[2 + MAX_COPIES * MAX_STATES][TILE];
        void *tile[2 + MAX_COPIES * MAX_STATES];
        for (int j = 0; j < arrays; j++)
            tile[j] = tiles[j];
        for (int64_t i = 0; i < n; i += TILE) {
            int64_t m = n - i < TILE ? n - i : TILE;
            for (int j = 0; j < arrays; j++) {
                int64_t stride = strides ? strides[j] : (int64_t)sizeof(real);
                FN(gather)(tiles[j], (char *)addresses[j] + i * stride, stride, m);
            }
            if (copies == 1)
                kernel(m, tile, coefs);
            else
                FN(run_copies)(kernel, m, states, copies, tile, coefs, row);
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
