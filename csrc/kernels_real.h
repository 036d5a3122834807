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

/* ---- rows ---- */

/* Elements from `column` on, m of them, of what a lookup has for a gradient. */
static const char *FN(lookup_gradient)(const fastopt_segments *s, int64_t place, int64_t column)
{
    const int64_t row = s->rows->source ? s->rows->source[place] : place;
    return (const char *)s->addresses[1] + row * s->strides[1] + column * (int64_t)sizeof(real);
}

/* The same times the lookup's weight, and added to what is in the tile if it is not the first. */
static void FN(add_gradient)(const fastopt_segments *s, int64_t place, int64_t column, int64_t m, int first, real *tile)
{
    const char *from = FN(lookup_gradient)(s, place, column);
    real weight = 1, x;
    if (s->rows->weights)
        weight = ((const real *)s->rows->weights)[place];
    for (int64_t i = 0; i < m; i++) {
        memcpy(&x, from + i * (int64_t)sizeof(real), sizeof x);
        tile[i] = first ? weight * x : tile[i] + weight * x;
    }
}

/* Segments ahead to prefetch: rows lie anywhere, so that only the list of them tells what comes next. */
#define ROWS_AHEAD 8

static void FN(prefetch_segment)(const fastopt_segments *s, int64_t u)
{
    const fastopt_lookup *lookup = &s->lookups[s->starts[u]];
    int64_t bytes = s->rows->width * (int64_t)sizeof(real);
    if (bytes > 512) /* the processor's own prefetchers take over */
        bytes = 512;
    for (int64_t at = 0; at < bytes; at += 64) {
        for (int j = 0; j < s->arrays; j++)
            if (j != 1)
                __builtin_prefetch((char *)s->addresses[j] + lookup->row * s->strides[j] + at, 1, 3);
        __builtin_prefetch(FN(lookup_gradient)(s, lookup->place, 0) + at, 0, 3);
    }
}

/* Segments [begin, end): each row where it is, or where rows are short or not aligned, several at a time in tiles. */
static void FN(run_rows)(fastopt_kernel kernel, const fastopt_segments *s, int64_t begin, int64_t end)
{
    const fastopt_rows *rows = s->rows;
    const int64_t width = rows->width, size = sizeof(real);
    const int sum = rows->duplicates == FASTOPT_SUM;
    real coefs[MAX_ROW], tiles[MAX_ARRAYS][TILE];
    void *at[MAX_ARRAYS];
    int direct = width >= LINE;
    for (int j = 0; j < s->coefficients; j++)
        coefs[j] = (real)s->folded[j];
    for (int j = 0; j < s->arrays; j++)
        direct &= ((uintptr_t)s->addresses[j] | (uintptr_t)s->strides[j]) % sizeof(real) == 0;
    /* Racing lookups are taken one by one, so that one thread alone loses none. */
    const int64_t batch = direct || width > TILE || rows->duplicates == FASTOPT_HOGWILD ? 1 : TILE / width;
    for (int64_t u = begin, k; u < end; u += k) {
        k = batch < end - u ? batch : end - u;
        for (int64_t r = u + ROWS_AHEAD; r < u + k + ROWS_AHEAD && r < end; r++)
            FN(prefetch_segment)(s, r);
        for (int64_t column = 0, m; column < width; column += m) {
            m = width - column < TILE ? width - column : TILE;
            for (int j = 0; j < s->arrays; j++) {
                at[j] = tiles[j];
                for (int64_t r = 0; j != 1 && r < k; r++) {
                    char *from = (char *)s->addresses[j] + s->lookups[s->starts[u + r]].row * s->strides[j] + column * size;
                    if (direct)
                        at[j] = from;
                    else
                        FN(gather)(tiles[j] + r * m, from, size, m);
                }
            }
            for (int64_t r = 0; r < k; r++) {
                const int64_t first = s->starts[u + r], last = s->starts[u + r + 1];
                for (int64_t q = first; q < last; q++) {
                    if (sum && q + ROWS_AHEAD < last)
                        __builtin_prefetch(FN(lookup_gradient)(s, s->lookups[q + ROWS_AHEAD].place, column), 0, 3);
                    if (direct && !rows->weights && (!sum || last - first == 1))
                        at[1] = (char *)FN(lookup_gradient)(s, s->lookups[q].place, column);
                    else
                        FN(add_gradient)(s, s->lookups[q].place, column, m, !sum || q == first, tiles[1] + r * m);
                    if (!sum) {
                        void *own[MAX_ARRAYS];
                        for (int j = 0; j < s->arrays; j++)
                            own[j] = direct ? at[j] : tiles[j] + r * m;
                        kernel(m, own, coefs, 0);
                    }
                }
            }
            if (sum)
                kernel(k * m, at, coefs, 0);
            for (int j = 0; !direct && j < s->arrays; j++)
                for (int64_t r = 0; j != 1 && r < k; r++)
                    FN(scatter)(tiles[j] + r * m,
                                (char *)s->addresses[j] + s->lookups[s->starts[u + r]].row * s->strides[j] + column * size,
                                size, m);
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
