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

/* Lookups ahead to prefetch: rows lie anywhere, so that only the list of lookups tells what comes next. */
#define LOOKUPS_AHEAD 12

/* A lookup's gradient, and if it is the first of its row, the row too. Inlined by force: gcc takes a function that does
 * nothing but prefetch for one without effect, and drops its calls. */
static inline __attribute__((always_inline)) void FN(prefetch_lookup)(const fastopt_segments *s, int64_t q)
{
    if (q >= s->end)
        return;
    const fastopt_lookup *lookup = &s->lookups[q];
    const char *gradient = FN(lookup_gradient)(s, lookup->place, 0);
    int64_t bytes = s->rows->width * (int64_t)sizeof(real);
    if (bytes > 512) /* the processor's own prefetchers take over */
        bytes = 512;
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(gradient + at, 0, 3);
    if (lookup->row == lookup[-1].row)
        return;
    for (int j = 0; j < s->arrays; j++) {
        const char *row = (const char *)s->addresses[j] + lookup->row * s->strides[j];
        for (int64_t at = 0; j != 1 && at < bytes && at < s->strides[j]; at += 64)
            __builtin_prefetch(row + at, 1, 3);
    }
}

/* The sum of what lookups [first, last) have, each times its weight, in order. */
static void FN(sum_gradients)(const fastopt_segments *s, int64_t first, int64_t last, int64_t column, int64_t m,
                              real *tile)
{
    for (int64_t q = first; q < last; q++) {
        const int64_t place = s->lookups[q].place;
        const char *from = FN(lookup_gradient)(s, place, column);
        real weight = 1, x;
        if (column == 0)
            FN(prefetch_lookup)(s, q + LOOKUPS_AHEAD);
        if (s->rows->weights)
            weight = ((const real *)s->rows->weights)[place];
        if (q == first)
            for (int64_t i = 0; i < m; i++) {
                memcpy(&x, from + i * (int64_t)sizeof(real), sizeof x);
                tile[i] = weight * x;
            }
        else
            for (int64_t i = 0; i < m; i++) {
                memcpy(&x, from + i * (int64_t)sizeof(real), sizeof x);
                tile[i] = tile[i] + weight * x;
            }
    }
}

/* Whether all of a row's elements are where they can be used. */
static int FN(aligned)(const fastopt_segments *s)
{
    int aligned = 1;
    for (int j = 0; j < s->arrays; j++)
        aligned &= ((uintptr_t)s->addresses[j] | (uintptr_t)s->strides[j]) % sizeof(real) == 0;
    return aligned;
}

/* Elements of a segment's row in array j. */
static char *FN(row_address)(const fastopt_segments *s, int64_t u, int j, int64_t column)
{
    return (char *)s->addresses[j] + s->lookups[s->starts[u]].row * s->strides[j] + column * (int64_t)sizeof(real);
}

/* Segments [begin, end): each row where it is, or where rows are short or not aligned, several at a time in tiles. */
static void FN(run_elements)(fastopt_kernel kernel, const real *coefs, const fastopt_segments *s, int64_t begin,
                             int64_t end)
{
    const int64_t width = s->rows->width, size = sizeof(real);
    const int sum = s->rows->duplicates == FASTOPT_SUM, direct = width >= LINE && FN(aligned)(s);
    real tiles[MAX_ARRAYS][TILE];
    void *at[MAX_ARRAYS], *own[MAX_ARRAYS];
    /* Racing lookups are taken one by one, so that one thread alone loses none. */
    const int64_t batch = direct || width > TILE || s->rows->duplicates == FASTOPT_HOGWILD ? 1 : TILE / width;
    for (int64_t u = begin, k; u < end; u += k) {
        k = batch < end - u ? batch : end - u;
        for (int64_t column = 0, m; column < width; column += m) {
            m = width - column < TILE ? width - column : TILE;
            for (int j = 0; j < s->arrays; j++) {
                at[j] = direct && j != 1 ? (void *)FN(row_address)(s, u, j, column) : tiles[j];
                for (int64_t r = 0; !direct && j != 1 && r < k; r++)
                    FN(gather)(tiles[j] + r * m, FN(row_address)(s, u + r, j, column), size, m);
            }
            for (int64_t r = 0; r < k; r++) {
                const int64_t first = s->starts[u + r], last = s->starts[u + r + 1];
                if (sum && direct && last - first == 1 && !s->rows->weights) {
                    at[1] = (char *)FN(lookup_gradient)(s, s->lookups[first].place, column);
                    if (column == 0)
                        FN(prefetch_lookup)(s, first + LOOKUPS_AHEAD);
                } else if (sum)
                    FN(sum_gradients)(s, first, last, column, m, tiles[1] + r * m);
                for (int64_t q = first; !sum && q < last; q++) {
                    FN(sum_gradients)(s, q, q + 1, column, m, tiles[1]);
                    for (int j = 0; j < s->arrays; j++)
                        own[j] = direct || j == 1 ? at[j] : tiles[j] + r * m;
                    kernel(m, own, coefs, 0);
                }
            }
            if (sum)
                kernel(k * m, at, coefs, 0);
            for (int j = 0; !direct && j < s->arrays; j++)
                for (int64_t r = 0; j != 1 && r < k; r++)
                    FN(scatter)(tiles[j] + r * m, FN(row_address)(s, u + r, j, column), size, m);
        }
    }
}

/* Adds the squares of a tile's m elements to sixteen partial sums, so that the order of additions is one on every
 * level; it writes up to fifteen zeros behind them. */
static void FN(add_squares)(real *tile, int64_t m, double *lanes)
{
    for (int64_t i = m; i % 16; i++)
        tile[i] = 0;
    for (int64_t i = 0; i < m; i += 16)
        for (int lane = 0; lane < 16; lane++)
            lanes[lane] += (double)tile[i + lane] * (double)tile[i + lane];
}

static double FN(sum_lanes)(const double *lanes)
{
    double sum = 0;
    for (int lane = 0; lane < 16; lane++)
        sum += lanes[lane];
    return sum;
}

#define FOLD_ROW(rule, update)                                                                                        \
    static void FN(fold_row_##rule)(double square, void *states, const void *folded, void *coefficients)              \
    {                                                                                                                 \
        real *s = states;                                                                                             \
        FN(rule##_states) own = LOAD_##rule;                                                                          \
        *(FN(update##_coefs) *)coefficients = FN(rule)((real)square, &own, folded);                                   \
        STORE_##rule                                                                                                  \
    }
FASTOPT_ROW_RULES(FOLD_ROW)

/* Segments [begin, end) of a rule of rows: each row's mean square first, then its elements. */
static void FN(run_whole_rows)(fastopt_kernel kernel, fastopt_row_fold fold, const real *coefs,
                               const fastopt_segments *s, int64_t begin, int64_t end)
{
    const int64_t width = s->rows->width, size = sizeof(real);
    const int sum = s->rows->duplicates == FASTOPT_SUM, direct = FN(aligned)(s);
    const FN(prologue_coefs) prologue = {coefs[0], coefs[1], coefs[2]};
    real params[TILE], grads[TILE], squares[TILE], own[MAX_ROW] = {coefs[0], coefs[1], coefs[2]}, states[MAX_ARRAYS];
    for (int64_t u = begin; u < end; u++) {
        const int64_t last = s->starts[u + 1];
        for (int64_t q = s->starts[u], next; q < last; q = next) {
            double lanes[16] = {0};
            next = sum ? last : q + 1;
            for (int64_t column = 0, m; column < width; column += m) {
                m = width - column < TILE ? width - column : TILE;
                const real *param = (const real *)FN(row_address)(s, u, 0, column);
                FN(sum_gradients)(s, q, next, column, m, grads);
                if (!direct) {
                    FN(gather)(params, (const char *)param, size, m);
                    param = params;
                }
                for (int64_t i = 0; i < m; i++) {
                    real p = param[i];
                    squares[i] = FN(prologue)(&p, grads[i], &prologue);
                }
                FN(add_squares)(squares, m, lanes);
            }
            for (int j = 2; j < s->arrays; j++)
                FN(gather)(&states[j - 2], FN(row_address)(s, u, j, 0), size, 1);
            fold(FN(sum_lanes)(lanes) / (double)width, states, coefs + 3, own + 3);
            for (int j = 2; j < s->arrays; j++)
                FN(scatter)(&states[j - 2], FN(row_address)(s, u, j, 0), size, 1);
            for (int64_t column = 0, m; column < width; column += m) {
                m = width - column < TILE ? width - column : TILE;
                char *param = FN(row_address)(s, u, 0, column);
                void *at[] = {direct ? (void *)param : params, grads};
                if (width > TILE) /* what the tiles held is gone */
                    FN(sum_gradients)(s, q, next, column, m, grads);
                if (!direct)
                    FN(gather)(params, param, size, m);
                kernel(m, at, own, 0);
                if (!direct)
                    FN(scatter)(params, param, size, m);
            }
        }
    }
}

static void FN(run_rows)(fastopt_kernel kernel, fastopt_row_fold fold, const fastopt_segments *s, int64_t begin,
                         int64_t end)
{
    real coefs[MAX_ROW];
    for (int j = 0; j < s->coefficients; j++)
        coefs[j] = (real)s->folded[j];
    if (fold)
        FN(run_whole_rows)(kernel, fold, coefs, s, begin, end);
    else
        FN(run_elements)(kernel, coefs, s, begin, end);
}

/* The sum of squares of at most FASTOPT_NORM_BLOCK elements. */
static double FN(square_sum)(int64_t n, const char *from, int64_t stride)
{
    real tile[TILE];
    double lanes[16] = {0};
    for (int64_t i = 0; i < n; i += TILE) {
        int64_t m = n - i < TILE ? n - i : TILE;
        FN(gather)(tile, from + i * stride, stride, m);
        FN(add_squares)(tile, m, lanes);
    }
    return FN(sum_lanes)(lanes);
}

#undef LINE
#undef BLOCK
#undef AHEAD
#undef KERNEL
#undef FOLD_ROW
#undef ELEMENT
#undef LOOKUPS_AHEAD
