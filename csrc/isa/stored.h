/* Kernels for arrays in storage formats.
 *
 * A kernel takes the arrays of a tensor chunk by chunk: it loads a chunk of each into the compute type, runs the
 * rule's update over them and stores them again. One general loop for each rule serves all dtypes and options, and
 * looks them up for every chunk. In cache that costs a third of the time. So the commonest combinations of dtypes,
 * without options, have a specialised loop for whole chunks: the dtypes are constants there, and chunks stay in
 * registers.
 */
#ifdef FASTOPT_CONVERSIONS
#include "convert.h"
#endif

/* Bytes ahead to prefetch. */
#define STORED_AHEAD 2048

/* The state of one pass. The arrays are those of the update, then those that storage adds: the parameter's
 * companion (the part lost to rounding, or the master) and its average. */
typedef struct {
    const fastopt_pass *pass;
    int dtypes[MAX_STORED];
    int options, all;               /* all: the number of arrays, with those that storage adds */
    int companion, average;         /* indices of these arrays; 0 if there is none */
    real decay, rest;               /* of the average */
    char *begins[MAX_STORED], *at[MAX_STORED];
    _Alignas(64) real chunks[MAX_STORED][CHUNK];
    _Alignas(64) char edges[MAX_STORED][CHUNK * sizeof(real)]; /* an incomplete last chunk, then zeros */
#ifdef FASTOPT_CONVERSIONS
    _Alignas(64) real blocks[MAX_ARRAYS][FASTOPT_BLOCK];
    randoms randoms;
#endif
} FN(stored);

INLINE int FN(in_blocks)(int dtype)
{
    return sizeof(real) == sizeof(float) && dtype >= FASTOPT_BLOCKS_SIGNED;
}

INLINE int FN(element_size)(int dtype)
{
    return dtype == COMPUTE ? (int)sizeof(real) : 2;
}

INLINE int64_t FN(offset)(int dtype, int64_t i)
{
    return FN(in_blocks)(dtype) ? i / FASTOPT_BLOCK * FASTOPT_BLOCK_BYTES : i * FN(element_size)(dtype);
}

#ifdef FASTOPT_CONVERSIONS
NOINLINE void FN(load_float16_chunk)(real *chunk, const char *from) { load_float16(chunk, from); }
NOINLINE void FN(store_float16_chunk)(const real *chunk, char *to) { store_float16(chunk, to); }
NOINLINE void FN(store_float16_dithered)(const real *chunk, char *to, uint32_t first)
{
    store_dithered(FASTOPT_FLOAT16, chunk, to, first);
}

INLINE void FN(load_chunk)(int dtype, real *chunk, const char *from)
{
    if (dtype == FASTOPT_FLOAT32)
        load_float32(chunk, from);
    else if (dtype == FASTOPT_BFLOAT16)
        load_bfloat16(chunk, from);
    else
        FN(load_float16_chunk)(chunk, from);
}

INLINE void FN(store_chunk)(int dtype, const real *chunk, char *to)
{
    if (dtype == FASTOPT_FLOAT32)
        store_float32(chunk, to);
    else if (dtype == FASTOPT_BFLOAT16)
        store_bfloat16(chunk, to);
    else
        FN(store_float16_chunk)(chunk, to);
}
#else
INLINE void FN(load_chunk)(int dtype, real *chunk, const char *from)
{
    (void)dtype;
    memcpy(chunk, from, CHUNK * sizeof(real));
}

INLINE void FN(store_chunk)(int dtype, const real *chunk, char *to)
{
    (void)dtype;
    memcpy(to, chunk, CHUNK * sizeof(real));
}
#endif

NOINLINE void FN(init_stored)(FN(stored) *s, int arrays, void *const *addresses, const fastopt_pass *pass)
{
    const fastopt_storage *storage = pass->storage;
    s->pass = pass;
    s->options = storage->options;
    s->all = arrays;
    s->companion = s->average = 0;
    if (s->options & (FASTOPT_KAHAN | FASTOPT_MASTER))
        s->companion = s->all++;
    if (s->options & FASTOPT_AVERAGE)
        s->average = s->all++;
    s->decay = (real)storage->average_decay;
    s->rest = (real)(1.0 - storage->average_decay);
    for (int j = 0; j < s->all; j++) {
        s->dtypes[j] = storage->dtypes[j];
        s->begins[j] = addresses[j];
    }
#ifdef FASTOPT_CONVERSIONS
    s->randoms = (randoms){.seed = storage->seed, .step = (uint64_t)pass->step};
#endif
}

/* Loads the last elements of arrays, which do not fill a chunk, into the edges. */
NOINLINE void FN(load_tail)(FN(stored) *s, int64_t left)
{
    for (int j = 0; j < s->all; j++)
        if (!FN(in_blocks)(s->dtypes[j])) {
            memset(s->edges[j], 0, sizeof s->edges[j]);
            memcpy(s->edges[j], s->at[j], (size_t)left * FN(element_size)(s->dtypes[j]));
            s->at[j] = s->edges[j];
        }
}

/* Stores them from the edges. */
NOINLINE void FN(store_tail)(FN(stored) *s, int64_t i, int64_t left)
{
    for (int j = 0; j < s->all; j++)
        if (!FN(in_blocks)(s->dtypes[j]) && (j != GRADIENT || s->options & FASTOPT_ZERO_GRADS))
            memcpy(s->begins[j] + FN(offset)(s->dtypes[j], i), s->edges[j],
                   (size_t)left * FN(element_size)(s->dtypes[j]));
}

/* Loads the parameter with the part that its dtype could not hold. */
NOINLINE void FN(load_companion)(FN(stored) *s)
{
    real *p = s->chunks[0], *lost = s->chunks[s->companion];
    if (s->options & FASTOPT_MASTER) {
        FN(load_chunk)(COMPUTE, p, s->at[s->companion]);
        return;
    }
    FN(load_chunk)(s->dtypes[s->companion], lost, s->at[s->companion]);
    for (int k = 0; k < CHUNK; k++)
        p[k] = p[k] + lost[k];
}

/* Stores the parameter as the options say, its average, and the zeroed gradient. */
NOINLINE void FN(store_param)(FN(stored) *s, int64_t i)
{
    real *p = s->chunks[0];
    if (s->average) {
        real *average = s->chunks[s->average];
        FN(load_chunk)(s->dtypes[s->average], average, s->at[s->average]);
        for (int k = 0; k < CHUNK; k++)
            average[k] = s->decay * average[k] + s->rest * p[k];
        FN(store_chunk)(s->dtypes[s->average], average, s->at[s->average]);
    }
    if (s->options & FASTOPT_ZERO_GRADS)
        memset(s->at[GRADIENT], 0, (size_t)CHUNK * FN(element_size)(s->dtypes[GRADIENT]));
    if (s->options & FASTOPT_MASTER)
        FN(store_chunk)(COMPUTE, p, s->at[s->companion]);
#ifdef FASTOPT_CONVERSIONS
    if (s->options & FASTOPT_STOCHASTIC) {
        store_stochastic(s->dtypes[0], p, s->at[0], &s->randoms, (uint64_t)(s->pass->element + i));
        return;
    }
#else
    (void)i;
#endif
    FN(store_chunk)(s->dtypes[0], p, s->at[0]);
    if (s->options & FASTOPT_KAHAN) {
        real *lost = s->chunks[s->companion], kept[CHUNK];
        FN(load_chunk)(s->dtypes[0], kept, s->at[0]);
        for (int k = 0; k < CHUNK; k++) /* infinity - infinity is NaN: nothing is lost */
            lost[k] = isfinite(kept[k]) ? p[k] - kept[k] : 0;
        FN(store_chunk)(s->dtypes[s->companion], lost, s->at[s->companion]);
    }
}

/* Prefetches what comes soon after an array's chunk at i. */
INLINE void FN(prefetch_chunk)(int dtype, const char *at, int64_t i)
{
    PREFETCH(at + STORED_AHEAD + (FN(in_blocks)(dtype) ? i % FASTOPT_BLOCK : 0));
    if (FN(element_size)(dtype) * CHUNK > 64)
        PREFETCH(at + STORED_AHEAD + 64);
}

#ifdef FASTOPT_CONVERSIONS
/* Stores the block of array j that ends with the chunk at i. */
NOINLINE void FN(finish_block)(const FN(stored) *s, int j, char *at, int64_t i)
{
    store_block(s->dtypes[j], s->blocks[j], at, (uint64_t)(s->pass->element + i - i % FASTOPT_BLOCK),
                (uint64_t)s->pass->step);
}
#endif

/* ---- the general loop ---- */

/* Loads the chunk at i, or the elements left; sets `tiles` to the loaded parts. */
INLINE void FN(load_arrays)(FN(stored) *s, int arrays, int64_t i, int64_t n, void **tiles)
{
    for (int j = 0; j < s->all; j++) {
        s->at[j] = s->begins[j] + FN(offset)(s->dtypes[j], i);
        if (s->pass->prefetch)
            FN(prefetch_chunk)(s->dtypes[j], s->at[j], i);
    }
    if (n - i < CHUNK)
        FN(load_tail)(s, n - i);
    for (int j = 0; j < arrays; j++) {
        tiles[j] = s->chunks[j];
#ifdef FASTOPT_CONVERSIONS
        if (FN(in_blocks)(s->dtypes[j])) {
            if (i % FASTOPT_BLOCK == 0)
                load_block(s->dtypes[j], s->blocks[j], s->at[j]);
            tiles[j] = s->blocks[j] + i % FASTOPT_BLOCK;
            continue;
        }
#endif
        FN(load_chunk)(s->dtypes[j], s->chunks[j], s->at[j]);
    }
    if (s->companion)
        FN(load_companion)(s);
}

INLINE void FN(store_state)(FN(stored) *s, int dtype, const real *chunk, char *at, int64_t i)
{
#ifdef FASTOPT_CONVERSIONS
    if (s->options & FASTOPT_DITHER && dtype != FASTOPT_FLOAT32) {
        const uint32_t dither = dither_of((uint64_t)(s->pass->element + i), (uint64_t)s->pass->step);
        if (dtype == FASTOPT_BFLOAT16)
            store_dithered(dtype, chunk, at, dither);
        else
            FN(store_float16_dithered)(chunk, at, dither);
        return;
    }
#else
    (void)s, (void)i;
#endif
    FN(store_chunk)(dtype, chunk, at);
}

/* Stores the chunk at i and the blocks that end with it. After the tensor's end blocks hold zeros. */
INLINE void FN(store_arrays)(FN(stored) *s, int arrays, int64_t i, int64_t n)
{
    FN(store_param)(s, i);
    for (int j = FIRST_STATE; j < arrays; j++) {
        if (!FN(in_blocks)(s->dtypes[j])) {
            FN(store_state)(s, s->dtypes[j], s->chunks[j], s->at[j], i);
            continue;
        }
#ifdef FASTOPT_CONVERSIONS
        if (i % FASTOPT_BLOCK == FASTOPT_BLOCK - CHUNK || n - i <= CHUNK) {
            for (int64_t k = n - i + i % FASTOPT_BLOCK; k < FASTOPT_BLOCK; k++)
                s->blocks[j][chunk_index((int)k)] = 0;
            FN(finish_block)(s, j, s->at[j], i);
        }
#endif
    }
    if (n - i < CHUNK)
        FN(store_tail)(s, i, n - i);
}

/* Runs a rule's update over a chunk. `arrays` points to the loaded parts. */
#define UPDATE_CHUNK(rule, copies)                                                                                    \
    {                                                                                                                 \
        real *restrict param = arrays[0];                                                                             \
        const real *restrict grad = arrays[GRADIENT];                                                                 \
        POINTERS_##rule##_##copies                                                                                    \
        IVDEP                                                                                                         \
        for (int i = 0; i < CHUNK; i++)                                                                               \
            ELEMENT(UPDATE_##rule##_##copies)                                                                         \
    }

/* ---- the specialised loops ---- */

#ifdef FASTOPT_CONVERSIONS
/* 1 if arrays are of these dtypes and no option is set that the specialised loops lack. Blocks of either dtype match
 * each other. */
NOINLINE int FN(matches)(const FN(stored) *s, int arrays, int param, int grad, int states)
{
    int is = s->dtypes[0] == param && s->dtypes[GRADIENT] == grad && !(s->options & ~(FASTOPT_DITHER | FASTOPT_NOISE | FASTOPT_STOCHASTIC));
    for (int j = FIRST_STATE; j < arrays; j++)
        is &= s->dtypes[j] == states || (FN(in_blocks)(s->dtypes[j]) && FN(in_blocks)(states));
    return is;
}

#define LOAD(j, dtype)                                                                                                \
    char *const at_##j = s->begins[j] + FN(offset)(dtype, at);                                                        \
    if (prefetch)                                                                                                     \
        FN(prefetch_chunk)(dtype, at_##j, at);                                                                        \
    if (!FN(in_blocks)(dtype))                                                                                        \
        FN(load_chunk)(dtype, chunks[j], at_##j);                                                                     \
    else if (at % FASTOPT_BLOCK == 0)                                                                                 \
        load_block(s->dtypes[j], s->blocks[j], at_##j);                                                               \
    arrays[j] = FN(in_blocks)(dtype) ? s->blocks[j] + at % FASTOPT_BLOCK : chunks[j];
#define LOAD_STATE(j) LOAD(j, states)
#define STORE_STATE(j)                                                                                                \
    if (states == FASTOPT_BFLOAT16 && dithered)                                                                       \
        store_dithered(states, chunks[j], at_##j, dither);                                                            \
    else if (!FN(in_blocks)(states))                                                                                  \
        FN(store_chunk)(states, chunks[j], at_##j);                                                                   \
    else if (at % FASTOPT_BLOCK == FASTOPT_BLOCK - CHUNK)                                                             \
        FN(finish_block)(s, j, at_##j, at);

/* Updates whole chunks, or whole blocks if states are in blocks, and returns the number of elements updated. The
 * general loop does the rest, for only it writes zeros after the tensor's end. */
#define SPECIALISED(rule, copies)                                                                                     \
    INLINE int64_t FN(specialised_##rule##_##copies)(FN(stored) *s, int64_t n, const void *coefficients,              \
                                                     const int dtype, const int grad_dtype, const int states)         \
    {                                                                                                                 \
        COEFFICIENTS(rule, copies)                                                                                    \
        const int prefetch = s->pass->prefetch, dithered = s->options & FASTOPT_DITHER;                               \
        const int stochastic = s->options & FASTOPT_STOCHASTIC;                                                       \
        const uint64_t element = (uint64_t)s->pass->element, step = (uint64_t)s->pass->step;                          \
        _Alignas(64) real chunks[ARRAYS_##rule##_##copies][CHUNK];                                                    \
        void *arrays[ARRAYS_##rule##_##copies];                                                                       \
        int64_t at = 0, end = n - n % (FN(in_blocks)(states) ? FASTOPT_BLOCK : CHUNK);                                \
        for (; at < end; at += CHUNK) {                                                                               \
            LOAD(0, dtype) LOAD(1, grad_dtype) STATES_##rule##_##copies(LOAD_STATE)                                   \
            UPDATE_CHUNK(rule, copies)                                                                                \
            if (dtype == FASTOPT_BFLOAT16 && stochastic)                                                              \
                store_stochastic(dtype, chunks[0], at_0, &s->randoms, element + (uint64_t)at);                        \
            else                                                                                                      \
                FN(store_chunk)(dtype, chunks[0], at_0);                                                              \
            const uint32_t dither = dither_of(element + (uint64_t)at, step);                                          \
            (void)dithered, (void)dither, (void)stochastic;                                                           \
            STATES_##rule##_##copies(STORE_STATE)                                                                     \
        }                                                                                                             \
        return end;                                                                                                   \
    }
FASTOPT_INSTANCES(SPECIALISED)

#define TRY(rule, copies, ...)                                                                                        \
    else if (copies == 1 && FN(matches)(&s, ARRAYS_##rule##_##copies, __VA_ARGS__))                                   \
        at = FN(specialised_##rule##_##copies)(&s, n, coefficients, __VA_ARGS__);
#define TRY_SPECIALISED(rule, copies)                                                                                 \
    if (n < CHUNK)                                                                                                    \
        ;                                                                                                             \
    TRY(rule, copies, FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_BFLOAT16)                                             \
    TRY(rule, copies, FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_BLOCKS_SIGNED)                                        \
    TRY(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16)                                           \
    TRY(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_FLOAT32)                                            \
    TRY(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_BLOCKS_SIGNED)
#else
#define TRY_SPECIALISED(rule, copies)
#endif

/* ---- the kernels ---- */

#define STORED_KERNEL(rule, copies)                                                                                   \
    static void FN(stored_##rule##_##copies)(int64_t n, void *const *addresses, const void *coefficients,             \
                                             const fastopt_pass *pass)                                                \
    {                                                                                                                 \
        enum { ARRAYS = ARRAYS_##rule##_##copies };                                                                   \
        FN(stored) s;                                                                                                 \
        void *arrays[ARRAYS];                                                                                         \
        int64_t at = 0;                                                                                               \
        FN(init_stored)(&s, ARRAYS, addresses, pass);                                                                 \
        TRY_SPECIALISED(rule, copies)                                                                                 \
        COEFFICIENTS(rule, copies)                                                                                    \
        for (; at < n; at += CHUNK) {                                                                                 \
            FN(load_arrays)(&s, ARRAYS, at, n, arrays);                                                               \
            UPDATE_CHUNK(rule, copies)                                                                                \
            FN(store_arrays)(&s, ARRAYS, at, n);                                                                      \
        }                                                                                                             \
    }
FASTOPT_INSTANCES(STORED_KERNEL)

/* ---- the reading pass ---- */

/* Copies a chunk, as it was loaded, in the order of its elements. */
INLINE void FN(order_chunk)(real *to, const real *chunk)
{
#ifdef FASTOPT_CONVERSIONS
    for (int k = 0; k < HALF; k++) {
        to[2 * k] = chunk[k];
        to[2 * k + 1] = chunk[HALF + k];
    }
#else
    memcpy(to, chunk, CHUNK * sizeof *to);
#endif
}

#define STORED_MEASURE(rule)                                                                                          \
    static void FN(stored_measure_##rule)(int64_t n, void *const *addresses, const void *coefficients,                \
                                          const fastopt_pass *pass)                                                   \
    {                                                                                                                 \
        enum { ARRAYS = ARRAYS_##rule##_1 };                                                                          \
        FN(stored) s;                                                                                                 \
        void *arrays[ARRAYS];                                                                                         \
        _Alignas(64) real tiles[ARRAYS][TILE];                                                                        \
        fastopt_pass own = *pass;                                                                                     \
        own.prefetch = 0;                                                                                             \
        FN(init_stored)(&s, ARRAYS, addresses, pass);                                                                 \
        for (int64_t at = 0; at < n; at += TILE) {                                                                    \
            const int64_t m = n - at < TILE ? n - at : TILE;                                                          \
            for (int64_t i = 0; i < m; i += CHUNK) {                                                                  \
                FN(load_arrays)(&s, ARRAYS, at + i, n, arrays);                                                       \
                for (int j = 0; j < ARRAYS; j++)                                                                      \
                    FN(order_chunk)(tiles[j] + i, arrays[j]);                                                         \
            }                                                                                                         \
            for (int j = 0; j < ARRAYS; j++)                                                                          \
                arrays[j] = tiles[j];                                                                                 \
            FN(run_measure_##rule)(m, arrays, coefficients, &own);                                                    \
        }                                                                                                             \
    }
FASTOPT_STAGES(STORED_MEASURE)
