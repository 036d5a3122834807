/* Updates of rows: the gradients of lookups, their sums, and the rows that they update. */
#include "vectors.h"

/* The dtype of array j. */
static int FN(dtype_at)(const fastopt_segments *s, int j)
{
    return s->pass.storage ? s->pass.storage->dtypes[j] : COMPUTE;
}

/* The address of a lookup's gradient. */
INLINE const char *FN(gradient_of)(const fastopt_segments *s, int64_t place)
{
    const int64_t row = s->rows->source ? s->rows->source[place] : place;
    return (const char *)s->addresses[GRADIENT] + row * s->strides[GRADIENT];
}

/* The same from `column` on. */
static const char *FN(lookup_gradient)(const fastopt_segments *s, int64_t place, int64_t column)
{
    return FN(gradient_of)(s, place) + column * FN(element_size)(FN(dtype_at)(s, GRADIENT));
}

/* Lookups ahead to prefetch: rows lie anywhere, and only the list of lookups says which is next. */
#define LOOKUPS_AHEAD 12

/* Prefetches a lookup's gradient and, if it is the first of its row, the row. Always inlined: gcc removes calls of a
 * function that only prefetches, as if it had no effect. */
INLINE void FN(prefetch_lookup)(const fastopt_segments *s, int64_t q)
{
    if (q >= s->end)
        return;
    const fastopt_lookup *lookup = &s->lookups[q];
    const char *gradient = FN(lookup_gradient)(s, lookup->place, 0);
    int64_t bytes = s->rows->width * (int64_t)sizeof(real);
    if (bytes > 512) /* hardware prefetch takes over */
        bytes = 512;
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(gradient + at, 0, 3);
    if (lookup->row == lookup[-1].row)
        return;
    for (int j = 0; j < s->arrays; j++) {
        const char *row = (const char *)s->addresses[j] + lookup->row * s->strides[j];
        for (int64_t at = 0; j != GRADIENT && at < bytes && at < s->strides[j]; at += 64)
            __builtin_prefetch(row + at, 1, 3);
    }
}

typedef real FN(vector) __attribute__((vector_size(LANES * 4)));
enum { FN(lanes) = sizeof(FN(vector)) / sizeof(real) };

/* Adds up count vectors each of n gradients, in order, and writes the sums. */
INLINE void FN(add_vectors)(const char *const *from, const real *weights, int n, int64_t i, const int count, real *tile)
{
    FN(vector) sums[4] = {{0}}, x;
    for (int q = 0; q < n; q++)
        for (int k = 0; k < count; k++) {
            memcpy(&x, from[q] + (i + k * FN(lanes)) * (int64_t)sizeof(real), sizeof x);
            if (weights)
                x = weights[q] * x;
            sums[k] = q ? sums[k] + x : x;
        }
    for (int k = 0; k < count; k++)
        memcpy(tile + i + k * FN(lanes), &sums[k], sizeof x);
}

/* Writes the sum of n gradients, in order. */
INLINE void FN(sum_rows)(const char *const *from, const real *weights, int n, int64_t m, real *tile)
{
    int64_t i = 0;
    for (; i + 4 * FN(lanes) <= m; i += 4 * FN(lanes))
        FN(add_vectors)(from, weights, n, i, 4, tile);
    for (; i + FN(lanes) <= m; i += FN(lanes))
        FN(add_vectors)(from, weights, n, i, 1, tile);
    for (; i < m; i++) {
        real sum = 0, x;
        for (int q = 0; q < n; q++) {
            memcpy(&x, from[q] + i * (int64_t)sizeof(real), sizeof x);
            if (weights)
                x = weights[q] * x;
            sum = q ? sum + x : x;
        }
        tile[i] = sum;
    }
}

/* Writes the sum of the gradients of at most TERMS lookups [first, last), each times its weight, in order. */
static void FN(sum_group)(const fastopt_segments *s, int64_t first, int64_t last, int64_t column, int64_t m, real *tile)
{
    const int dtype = FN(dtype_at)(s, GRADIENT), n = (int)(last - first);
    const char *from[TERMS];
    real weights[TERMS], converted[TILE];
    for (int q = 0; q < n; q++) {
        const int64_t place = s->lookups[first + q].place;
        from[q] = FN(lookup_gradient)(s, place, column);
        if (s->rows->weights)
            weights[q] = ((const real *)s->rows->weights)[place];
        if (column == 0)
            FN(prefetch_lookup)(s, first + q + LOOKUPS_AHEAD);
    }
    if (dtype == COMPUTE) {
        if (s->rows->weights)
            FN(sum_rows)(from, weights, n, m, tile);
        else
            FN(sum_rows)(from, NULL, n, m, tile);
        return;
    }
    for (int q = 0; q < n; q++) {
        const real weight = s->rows->weights ? weights[q] : 1;
        FN(read_floats)(dtype, converted, from[q], FN(element_size)(dtype), m);
        for (int64_t i = 0; i < m; i++)
            tile[i] = q ? tile[i] + weight * converted[i] : weight * converted[i];
    }
}

/* Adds a tile, the sum of group g of a row's lookups, to the sums of groups of groups, level by level. After the last
 * of the groups the tile is the sum of all. */
static void FN(add_group)(real (*sums)[TILE], real *tile, int64_t m, int64_t g, int is_last)
{
    for (int64_t more = 1; more; sums++, g /= TERMS) { /* g: which of its level's sums the tile is */
        for (int64_t i = 0; i < m; i++) {
            tile[i] = g % TERMS ? (*sums)[i] + tile[i] : tile[i];
            (*sums)[i] = tile[i];
        }
        more = is_last ? g >= TERMS : g % TERMS == TERMS - 1;
    }
}

/* Writes the sum of the gradients of more than TERMS lookups. */
NOINLINE void FN(sum_tree)(const fastopt_segments *s, int64_t first, int64_t last, int64_t column, int64_t m,
                           real *tile)
{
    const int64_t groups = (last - first + TERMS - 1) / TERMS, whole = (last - first) / PIECE * TERMS;
    real sums[TREE_DEPTH][TILE];
    int64_t g = 0;
    for (const real *piece = s->sums; piece && g < whole; g += TERMS, piece += s->rows->width) {
        memcpy(tile, piece + column, (size_t)m * sizeof(real));
        FN(add_group)(sums + 1, tile, m, g / TERMS, g + TERMS == groups);
    }
    for (; g < groups; g++) {
        const int64_t begin = first + g * TERMS;
        FN(sum_group)(s, begin, last < begin + TERMS ? last : begin + TERMS, column, m, tile);
        FN(add_group)(sums, tile, m, g, g + 1 == groups);
    }
}

/* Writes the sum of the gradients of lookups [first, last), each times its weight. */
static void FN(sum_gradients)(const fastopt_segments *s, int64_t first, int64_t last, int64_t column, int64_t m,
                              real *tile)
{
    if (last - first <= TERMS)
        FN(sum_group)(s, first, last, column, m, tile);
    else
        FN(sum_tree)(s, first, last, column, m, tile);
}

/* The pass over a lookup's row from `column` on. The storage says that the summed gradient is of the compute type. */
static fastopt_pass FN(row_pass)(const fastopt_segments *s, const fastopt_storage *storage, int64_t q, int64_t column)
{
    fastopt_pass pass = s->pass;
    pass.storage = s->pass.storage ? storage : NULL;
    pass.element += s->lookups[q].row * s->rows->width + column;
    return pass;
}

/* Writes the gradient of a row from `column` on, summed over lookups [first, last), and prepared. */
static void FN(read_gradient)(const fastopt_segments *s, int64_t first, int64_t last, int64_t column, int64_t m,
                              real scale, real *tile)
{
    if (!prepares(&s->pass)) {
        FN(sum_gradients)(s, first, last, column, m, tile);
        return;
    }
    const fastopt_pass pass = FN(row_pass)(s, NULL, first, column);
    real summed[TILE];
    FN(sum_gradients)(s, first, last, column, m, summed);
    FN(prepare_gradients)(summed, tile, m, scale, &pass, &(const upcoming){0});
}

/* 1 if all arrays are aligned for the compute type. */
static int FN(aligned)(const fastopt_segments *s)
{
    int aligned = 1;
    for (int j = 0; j < s->arrays; j++)
        aligned &= ((uintptr_t)s->addresses[j] | (uintptr_t)s->strides[j]) % sizeof(real) == 0;
    return aligned;
}

/* The end of the segment that begins with lookup q, before `end`. */
INLINE int64_t FN(segment_end)(const fastopt_segments *s, int64_t q, int64_t end)
{
    const uint32_t row = s->lookups[q++].row;
    while (q < end && s->lookups[q].row == row && s->rows->duplicates != FASTOPT_HOGWILD)
        q++;
    return q;
}

/* The address of a lookup's row in array j, from `column` on. */
static char *FN(row_address)(const fastopt_segments *s, int64_t q, int j, int64_t column)
{
    return (char *)s->addresses[j] + s->lookups[q].row * s->strides[j]
         + column * FN(element_size)(FN(dtype_at)(s, j));
}

/* Updates rows where they are, by the sums of their gradients. All arrays are aligned and of the compute type. */
static void FN(run_in_place)(fastopt_kernel kernel, const real *coefs, const fastopt_segments *s, int64_t begin,
                             int64_t end)
{
    const int64_t width = s->rows->width;
    real sum[TILE];
    void *at[MAX_STORED];
    for (int64_t q = begin, next; q < end; q = next) {
        next = FN(segment_end)(s, q, end);
        for (int j = 0; j < s->arrays; j++)
            at[j] = (char *)s->addresses[j] + s->lookups[q].row * s->strides[j];
        if (next - q == 1 && !s->rows->weights) {
            at[GRADIENT] = (char *)FN(lookup_gradient)(s, s->lookups[q].place, 0);
            FN(prefetch_lookup)(s, q + LOOKUPS_AHEAD);
            kernel(width, at, coefs, &s->pass);
            continue;
        }
        at[GRADIENT] = sum;
        for (int64_t column = 0; column < width; column += TILE) {
            const int64_t m = width - column < TILE ? width - column : TILE;
            FN(sum_gradients)(s, q, next, column, m, sum);
            kernel(m, at, coefs, &s->pass);
            for (int j = 0; j < s->arrays; j++)
                at[j] = j == GRADIENT ? at[j] : (real *)at[j] + m;
        }
    }
}

/* Updates segments: each row in place or, if rows are short or not aligned, several at a time in tiles. */
static void FN(run_elements)(fastopt_kernel kernel, const real *coefs, real scale, const fastopt_segments *s,
                             int64_t begin, int64_t end)
{
    const int64_t width = s->rows->width, size = sizeof(real);
    const int stored = s->pass.storage != NULL;
    const int sum = s->rows->duplicates == FASTOPT_SUM, direct = stored || (width >= LINE && FN(aligned)(s));
    if (direct && sum && !stored && !prepares(&s->pass)) {
        FN(run_in_place)(kernel, coefs, s, begin, end);
        return;
    }
    fastopt_storage storage = {0};
    int32_t dtypes[MAX_STORED];
    if (stored) {
        storage = *s->pass.storage;
        storage.dtypes = memcpy(dtypes, storage.dtypes, (size_t)s->arrays * sizeof *dtypes);
        dtypes[GRADIENT] = COMPUTE;
    }
    real tiles[MAX_ARRAYS][TILE];
    int64_t starts[TILE + 1]; /* of the segments that are updated together, and their end */
    void *at[MAX_STORED], *own[MAX_STORED];
    /* Hogwild takes lookups one by one, so that a single thread loses no update. */
    const int64_t batch = direct || width > TILE || s->rows->duplicates == FASTOPT_HOGWILD ? 1 : TILE / width;
    for (int64_t q = begin, k; q < end; q = starts[k]) {
        starts[0] = q;
        for (k = 0; k < batch && starts[k] < end; k++)
            starts[k + 1] = FN(segment_end)(s, starts[k], end);
        for (int64_t column = 0, m; column < width; column += m) {
            m = width - column < TILE ? width - column : TILE;
            const fastopt_pass pass = FN(row_pass)(s, &storage, q, column);
            for (int j = 0; j < s->arrays; j++) {
                at[j] = direct && j != GRADIENT ? (void *)FN(row_address)(s, q, j, column) : tiles[j];
                for (int64_t r = 0; !direct && j != GRADIENT && r < k; r++)
                    memcpy(tiles[j] + r * m, FN(row_address)(s, starts[r], j, column), (size_t)(m * size));
            }
            if (direct)
                at[GRADIENT] = tiles[0];
            for (int64_t r = 0; r < k; r++) {
                if (sum)
                    FN(read_gradient)(s, starts[r], starts[r + 1], column, m, scale, (real *)at[GRADIENT] + r * m);
                for (int64_t one = starts[r]; !sum && one < starts[r + 1]; one++) {
                    FN(read_gradient)(s, one, one + 1, column, m, scale, at[GRADIENT]);
                    for (int j = 0; j < s->arrays; j++)
                        own[j] = direct || j == GRADIENT ? at[j] : tiles[j] + r * m;
                    kernel(m, own, coefs, &pass);
                }
            }
            if (sum)
                kernel(k * m, at, coefs, &pass);
            for (int j = 0; !direct && j < s->arrays; j++)
                for (int64_t r = 0; j != GRADIENT && writes(&s->pass, j) && r < k; r++)
                    memcpy(FN(row_address)(s, starts[r], j, column), tiles[j] + r * m, (size_t)(m * size));
        }
    }
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

/* ---- loops of one rule over rows of whole lines ---- */

#define ROW_LINE 16 /* elements: a line of floats, and as many as there are sums of squares */
/* Elements that are added up at a time, in eight vectors at most: the sums stay in registers. */
#define SUMMED (8 * FN(lanes) < STRIP ? 8 * FN(lanes) : STRIP)

/* 1 if the rule's own loop can update the rows. */
static int FN(has_own_loop)(const fastopt_segments *s)
{
    return s->loop && !s->pass.storage && !prepares(&s->pass) && !s->rows->weights
        && s->rows->duplicates == FASTOPT_SUM && s->rows->width % ROW_LINE == 0 && s->rows->width <= TILE
        && FN(aligned)(s);
}

INLINE void FN(prefetch_bytes)(const char *from, int bytes, const int is_written)
{
    for (int at = 0; at < bytes; at += 64)
        __builtin_prefetch(from + at, is_written, 3);
}

/* Prefetches n elements of a lookup's gradient and, if it is the first of its row, as many of the row's `whole` arrays,
 * and what the others have of the row. */
INLINE void FN(prefetch_columns)(const fastopt_segments *s, int64_t q, int64_t column, const int n, const int whole,
                                 const int arrays)
{
    if (q >= s->end)
        return;
    const fastopt_lookup *lookup = &s->lookups[q];
    const int64_t at = column * (int64_t)sizeof(real);
    FN(prefetch_bytes)(FN(gradient_of)(s, lookup->place) + at, n * (int)sizeof(real), 0);
    if (lookup->row != lookup[-1].row)
        for (int j = 0; j < arrays; j++)
            if (j != GRADIENT) {
                const char *row = (const char *)s->addresses[j] + lookup->row * s->strides[j];
                FN(prefetch_bytes)(j < whole ? row + at : row, j < whole ? n * (int)sizeof(real) : 1, 1);
            }
}

/* Writes the sums of n elements, whole vectors, of the gradients of a row's lookups from q on, of TERMS at most. Returns
 * the lookup after these. */
INLINE int64_t FN(sum_columns)(const fastopt_segments *s, int64_t q, int64_t end, int64_t column, const int n,
                               const int whole, const int arrays, real *to)
{
    const fastopt_lookup *lookups = s->lookups;
    const int64_t stop = end - q > TERMS ? q + TERMS : end;
    const uint32_t row = lookups[q].row;
    FN(vector) sums[SUMMED / FN(lanes)], x;
    const char *from = FN(gradient_of)(s, lookups[q].place) + column * (int64_t)sizeof(real);
    for (int k = 0; k < n / FN(lanes); k++)
        memcpy(&sums[k], from + k * sizeof x, sizeof x);
    FN(prefetch_columns)(s, q + LOOKUPS_AHEAD, column, n, whole, arrays);
    while (++q < stop && lookups[q].row == row) {
        from = FN(gradient_of)(s, lookups[q].place) + column * (int64_t)sizeof(real);
        FN(prefetch_columns)(s, q + LOOKUPS_AHEAD, column, n, whole, arrays);
        for (int k = 0; k < n / FN(lanes); k++) {
            memcpy(&x, from + k * sizeof x, sizeof x);
            sums[k] += x;
        }
    }
    for (int k = 0; k < n / FN(lanes); k++)
        memcpy(to + k * FN(lanes), &sums[k], sizeof x);
    return q;
}

/* Writes the sums of all columns of the gradients of a row's lookups from q on, of TERMS at most. Returns the lookup after
 * these. */
INLINE int64_t FN(sum_terms)(const fastopt_segments *s, int64_t q, int64_t end, const int whole, const int arrays,
                             real *to)
{
    const int64_t width = s->rows->width;
    int64_t column = 0, next = q;
    for (; column <= width - SUMMED; column += SUMMED)
        next = FN(sum_columns)(s, q, end, column, SUMMED, whole, arrays, to + column);
    for (; column < width; column += ROW_LINE)
        next = FN(sum_columns)(s, q, end, column, ROW_LINE, whole, arrays, to + column);
    return next;
}

/* Writes the sum of the gradients of a row's lookups from `first` on, before `end`. `to` has the sum of those before q:
 * of none, or of TERMS. Returns the lookup after all. */
NOINLINE int64_t FN(sum_groups)(const fastopt_segments *s, int64_t first, int64_t q, int64_t end, int whole, int arrays,
                                real *to)
{
    const uint32_t row = s->lookups[first].row;
    real sums[TREE_DEPTH][TILE];
    for (int64_t groups = (q - first) / TERMS;; groups++) {
        const int is_last = groups && (q == end || s->lookups[q].row != row);
        if (groups)
            FN(add_group)(sums, to, s->rows->width, groups - 1, is_last);
        if (is_last)
            return q;
        q = FN(sum_terms)(s, q, end, whole, arrays, to);
    }
}

/* Writes the sum of the gradients of the row of lookup q, its first. Returns the lookup after its last one. */
INLINE int64_t FN(sum_lines)(const fastopt_segments *s, int64_t q, int64_t end, const int whole, const int arrays,
                             real *to)
{
    const int64_t next = FN(sum_terms)(s, q, end, whole, arrays, to);
    if (next - q < TERMS || next == end || s->lookups[next].row != s->lookups[q].row)
        return next;
    if (!s->sums)
        return FN(sum_groups)(s, q, next, end, whole, arrays, to);
    end = FN(segment_end)(s, next, end);
    FN(sum_tree)(s, q, end, 0, s->rows->width, to);
    return end;
}

/* Writes the sum of the gradients of lookups [first, last), which are of one row, for all columns. */
static void FN(sum_row)(const fastopt_segments *s, int64_t first, int64_t last, void *sum)
{
    const int64_t width = s->rows->width;
    if (FN(has_own_loop)(s)) {
        FN(sum_groups)(s, first, first, last, 0, 0, sum);
        return;
    }
    for (int64_t column = 0; column < width; column += TILE)
        FN(sum_gradients)(s, first, last, column, width - column < TILE ? width - column : TILE, (real *)sum + column);
}

/* Updates the elements of a row where they are. The compiler is to see that there are whole lines of them. */
#define UPDATE_ROW(rule, copies)                                                                                      \
    IVDEP                                                                                                             \
    for (int64_t i = 0; i < width; i++)                                                                               \
        ELEMENT(UPDATE_##rule##_##copies)

#define ROW_LOOP(rule)                                                                                                \
    NOINLINE void FN(update_rows_##rule)(const fastopt_segments *s, int64_t begin, int64_t end,                       \
                                         const void *coefficients)                                                    \
    {                                                                                                                 \
        enum { all = ARRAYS_##rule##_1 };                                                                             \
        COEFFICIENTS(rule, 1)                                                                                         \
        const int64_t width = s->rows->width / ROW_LINE * ROW_LINE;                                                   \
        _Alignas(64) real grad[TILE];                                                                                 \
        for (int64_t q = begin, next; q < end; q = next) {                                                            \
            next = FN(sum_lines)(s, q, end, all, all, grad);                                                          \
            void *arrays[all];                                                                                        \
            for (int j = 0; j < all; j++)                                                                             \
                arrays[j] = (char *)s->addresses[j] + s->lookups[q].row * s->strides[j];                              \
            real *restrict param = arrays[0];                                                                         \
            POINTERS_##rule##_1                                                                                       \
            UPDATE_ROW(rule, 1)                                                                                       \
        }                                                                                                             \
    }

/* The same for a rule with states by row, which stand behind parameter and gradient: the update of its elements has no
 * others. */
#define ROW_RULE_LOOP(rule, update)                                                                                   \
    NOINLINE void FN(update_rows_##rule)(const fastopt_segments *s, int64_t begin, int64_t end,                       \
                                         const void *coefficients)                                                    \
    {                                                                                                                 \
        enum { whole = ARRAYS_##update##_1, all = whole + ROW_STATES_##rule };                                        \
        const struct { FN(prologue_coefs) prologue; FN(rule##_coefs) rule; } *c = coefficients;                       \
        const FN(prologue_coefs) prologue = c->prologue;                                                              \
        FN(update##_coefs) folded;                                                                                    \
        const int64_t width = s->rows->width / ROW_LINE * ROW_LINE;                                                   \
        _Alignas(64) real grad[TILE], squares[TILE];                                                                  \
        for (int64_t q = begin, next; q < end; q = next) {                                                            \
            const int64_t row = s->lookups[q].row;                                                                    \
            double lanes[ROW_LINE] = {0};                                                                             \
            next = FN(sum_lines)(s, q, end, whole, all, grad);                                                        \
            real *restrict param = (real *)((char *)s->addresses[0] + row * s->strides[0]);                           \
            if (prologue.weight_decay == 0) /* not to wait for the parameter */                                       \
                for (int64_t i = 0; i < width; i++)                                                                   \
                    squares[i] = prologue.grad_scale * grad[i];                                                       \
            else                                                                                                      \
                IVDEP                                                                                                 \
                for (int64_t i = 0; i < width; i++) {                                                                 \
                    real p = param[i];                                                                                \
                    squares[i] = FN(prologue)(&p, grad[i], &prologue);                                                \
                }                                                                                                     \
            FN(add_squares)(squares, width, lanes);                                                                   \
            real states[ROW_STATES_##rule];                                                                           \
            for (int j = whole; j < all; j++)                                                                         \
                states[j - whole] = *(real *)((char *)s->addresses[j] + row * s->strides[j]);                         \
            FN(fold_row_##rule)(FN(sum_lanes)(lanes) / (double)width, states, &c->rule, &folded);                     \
            for (int j = whole; j < all; j++)                                                                         \
                *(real *)((char *)s->addresses[j] + row * s->strides[j]) = states[j - whole];                         \
            const FN(update##_coefs) coefs[] = {folded};                                                              \
            UPDATE_ROW(update, 1)                                                                                     \
        }                                                                                                             \
    }
FASTOPT_ROW_LOOPS(ROW_LOOP)
FASTOPT_ROW_RULES(ROW_RULE_LOOP)

/* m elements of a lookup's parameter, with the part that its dtype could not hold: in place if possible, else in
 * `to`. */
static const real *FN(row_param)(const fastopt_segments *s, int64_t q, int64_t column, int64_t m, int companion,
                                 real *to)
{
    const fastopt_storage *storage = s->pass.storage;
    const int j = storage && storage->options & FASTOPT_MASTER ? companion : 0, dtype = FN(dtype_at)(s, j);
    const char *from = FN(row_address)(s, q, j, column);
    if (dtype == COMPUTE && (uintptr_t)from % sizeof(real) == 0)
        return (const real *)from;
    FN(read_floats)(dtype, to, from, FN(element_size)(dtype), m);
    if (storage && storage->options & FASTOPT_KAHAN) {
        real lost[TILE];
        const int kind = FN(dtype_at)(s, companion);
        FN(read_floats)(kind, lost, FN(row_address)(s, q, companion, column), FN(element_size)(kind), m);
        for (int64_t i = 0; i < m; i++)
            to[i] = to[i] + lost[i];
    }
    return to;
}

/* Updates segments of a rule with states by row: first the states by the row's mean square, then its
 * elements. */
static void FN(run_whole_rows)(fastopt_kernel kernel, fastopt_row_fold fold, const real *coefs, real scale,
                               const fastopt_segments *s, int64_t begin, int64_t end)
{
    const int64_t width = s->rows->width;
    const int sum = s->rows->duplicates == FASTOPT_SUM, states = s->states;
    const FN(prologue_coefs) prologue = {coefs[0], coefs[1], coefs[2]};
    real params[TILE], grads[TILE], squares[TILE], own[MAX_ROW] = {coefs[0], coefs[1], coefs[2]}, state[MAX_ARRAYS];
    /* The kernel's arrays: parameter, gradient, those that storage adds. */
    int32_t dtypes[MAX_STORED] = {FN(dtype_at)(s, 0), COMPUTE};
    fastopt_storage storage = {0};
    if (s->pass.storage)
        storage = *s->pass.storage;
    storage.dtypes = dtypes;
    for (int j = FIRST_STATE + states; j < s->arrays; j++)
        dtypes[j - states] = FN(dtype_at)(s, j);
    for (int64_t q = begin, next; q < end; q = next) {
        double lanes[16] = {0};
        next = sum ? FN(segment_end)(s, q, end) : q + 1;
        for (int64_t column = 0, m; column < width; column += m) {
            m = width - column < TILE ? width - column : TILE;
            const real *param = FN(row_param)(s, q, column, m, FIRST_STATE + states, params);
            FN(read_gradient)(s, q, next, column, m, scale, grads);
            for (int64_t i = 0; i < m; i++) {
                real p = param[i];
                squares[i] = FN(prologue)(&p, grads[i], &prologue);
            }
            FN(add_squares)(squares, m, lanes);
        }
        for (int k = 0, j = FIRST_STATE; k < states; k++, j++)
            FN(read_floats)(FN(dtype_at)(s, j), &state[k], FN(row_address)(s, q, j, 0), 0, 1);
        fold(FN(sum_lanes)(lanes) / (double)width, state, coefs + OWN, own + OWN);
        for (int k = 0, j = FIRST_STATE; k < states; k++, j++)
            FN(write_float)(FN(dtype_at)(s, j), state[k], FN(row_address)(s, q, j, 0));
        for (int64_t column = 0, m; column < width; column += m) {
            m = width - column < TILE ? width - column : TILE;
            void *at[MAX_STORED] = {FN(row_address)(s, q, 0, column), grads};
            for (int j = FIRST_STATE + states; j < s->arrays; j++)
                at[j - states] = FN(row_address)(s, q, j, column);
            const fastopt_pass pass = FN(row_pass)(s, &storage, q, column);
            const int direct = pass.storage || (uintptr_t)at[0] % sizeof(real) == 0;
            if (width > TILE) /* later columns have overwritten the tiles */
                FN(read_gradient)(s, q, next, column, m, scale, grads);
            if (!direct)
                at[0] = memcpy(params, at[0], (size_t)m * sizeof(real));
            kernel(m, at, own, &pass);
            if (!direct)
                memcpy(FN(row_address)(s, q, 0, column), params, (size_t)m * sizeof(real));
        }
    }
}

static void FN(run_rows)(fastopt_kernel kernel, fastopt_row_fold fold, const fastopt_segments *s, int64_t begin,
                         int64_t end)
{
    real coefs[MAX_ROW];
    for (int j = 0; j < s->coefficients; j++)
        coefs[j] = (real)s->folded[j];
    const real scale = coefs[0];
    if (prepares(&s->pass)) /* the gradient is scaled before the rule's prologue */
        coefs[0] = 1;
    if (FN(has_own_loop)(s))
        s->loop(s, begin, end, coefs);
    else if (fold)
        FN(run_whole_rows)(kernel, fold, coefs, scale, s, begin, end);
    else
        FN(run_elements)(kernel, coefs, scale, s, begin, end);
}
