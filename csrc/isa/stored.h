/* Kernels for arrays in storage formats.
 *
 * A kernel takes the arrays of a tensor tile by tile: it converts a tile of each to the compute type, runs the rule's
 * kernel for contiguous arrays over them, and stores them again. So dtypes and options add no code of a rule's own.
 * Where all arrays are of the compute type, the tiles are the arrays.
 *
 * In cache the conversions cost a third of the time. So the commonest combinations of dtypes, without options, have a
 * specialised loop for whole chunks: the dtypes are constants there, and chunks stay in registers. A level whose
 * vectors are too short to gain by that is compiled with FASTOPT_TILES_ONLY.
 */
/* Bytes ahead to prefetch. */
#define STORED_AHEAD 2048

#ifdef FASTOPT_CONVERSIONS
#include "convert.h"
#include "blocks.h"
#endif

/* The state of one pass. The arrays are those of the update, inputs last, then those that storage adds: the
 * parameter's companion (the part lost to rounding, or the master) and its average. */
typedef struct {
    const fastopt_pass *pass;
    int dtypes[MAX_STORED];
    int options, all;       /* all: the number of arrays, with those that storage adds */
    int companion, average; /* indices of these arrays; 0 if there is none */
    int plain;              /* 1 if all arrays are of the compute dtype: elements stay in their order */
    real decay, rest;       /* of the average */
    char *begins[MAX_STORED];
    void *tiles[MAX_STORED]; /* in the space, or where a plain array is */
    _Alignas(64) real space[MAX_STORED][STORED_TILE];
#ifdef FASTOPT_CONVERSIONS
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

NOINLINE void FN(init_stored)(FN(stored) *s, int arrays, void *const *addresses, const fastopt_pass *pass)
{
    const fastopt_storage *storage = pass->storage;
    s->pass = pass;
    s->options = storage->options;
    s->all = arrays;
    s->companion = s->average = 0;
    s->plain = 1;
    if (s->options & (FASTOPT_KAHAN | FASTOPT_MASTER))
        s->companion = s->all++;
    if (s->options & FASTOPT_AVERAGE)
        s->average = s->all++;
    s->decay = (real)storage->average_decay;
    s->rest = (real)(1.0 - storage->average_decay);
    for (int j = 0; j < s->all; j++) {
        s->dtypes[j] = storage->dtypes[j];
        s->begins[j] = addresses[j];
        s->plain &= s->dtypes[j] == COMPUTE;
    }
#ifdef FASTOPT_CONVERSIONS
    s->randoms = (randoms){.seed = storage->seed, .step = (uint64_t)pass->step};
#endif
}

/* ---- elements ---- */

enum { NEAREST, DITHERED, STOCHASTIC }; /* ways to round */

#ifdef FASTOPT_CONVERSIONS
INLINE void FN(load_chunk)(int dtype, real *chunk, const char *from)
{
    if (dtype == FASTOPT_FLOAT32)
        load_float32(chunk, from);
    else if (dtype == FASTOPT_BFLOAT16)
        load_bfloat16(chunk, from);
    else
        load_float16(chunk, from);
}

INLINE void FN(store_chunk)(int dtype, const real *chunk, char *to)
{
    if (dtype == FASTOPT_FLOAT32)
        store_float32(chunk, to);
    else if (dtype == FASTOPT_BFLOAT16)
        store_bfloat16(chunk, to);
    else
        store_float16(chunk, to);
}

INLINE void FN(load_as)(int dtype, real *tile, const char *from, int64_t n)
{
    const int size = FN(element_size)(dtype);
    int64_t k = 0;
    for (; k <= n - CHUNK; k += CHUNK)
        FN(load_chunk)(dtype, tile + k, from + k * size);
    if (k < n) {
        char edge[CHUNK * sizeof(real)] = {0};
        memcpy(edge, from + k * size, (size_t)((n - k) * size));
        FN(load_chunk)(dtype, tile + k, edge);
    }
}

INLINE void FN(store_as)(FN(stored) *s, int dtype, int rounding, const real *tile, char *to, int64_t i, int64_t n)
{
    const int size = FN(element_size)(dtype);
    const uint64_t element = (uint64_t)(s->pass->element + i), step = (uint64_t)s->pass->step;
    for (int64_t k = 0; k < n; k += CHUNK) {
        char edge[CHUNK * sizeof(real)], *const at = n - k < CHUNK ? edge : to + k * size;
        if (rounding == STOCHASTIC)
            store_stochastic(dtype, tile + k, at, &s->randoms, element + (uint64_t)k);
        else if (rounding == DITHERED)
            store_dithered(dtype, tile + k, at, dither_of(element + (uint64_t)k, step));
        else
            FN(store_chunk)(dtype, tile + k, at);
        if (at == edge)
            memcpy(to + k * size, edge, (size_t)((n - k) * size));
    }
}

INLINE void FN(store_rounded)(FN(stored) *s, int dtype, int rounding, const real *tile, char *to, int64_t i, int64_t n)
{
    if (rounding == STOCHASTIC)
        FN(store_as)(s, dtype, STOCHASTIC, tile, to, i, n);
    else if (rounding == DITHERED)
        FN(store_as)(s, dtype, DITHERED, tile, to, i, n);
    else
        FN(store_as)(s, dtype, NEAREST, tile, to, i, n);
}
#endif

/* The elements of the chunks that hold n. */
INLINE int64_t FN(whole_chunks)(const FN(stored) *s, int64_t n)
{
#ifdef FASTOPT_CONVERSIONS
    if (!s->plain)
        return (n + CHUNK - 1) & -CHUNK;
#endif
    (void)s;
    return n;
}

/* Loads n elements into chunks; zeros follow the last. */
NOINLINE void FN(load_elements)(const FN(stored) *s, int dtype, real *tile, const char *from, int64_t n)
{
    if (s->plain)
        memcpy(tile, from, (size_t)n * sizeof(real));
#ifdef FASTOPT_CONVERSIONS
    else if (dtype == FASTOPT_FLOAT32)
        FN(load_as)(FASTOPT_FLOAT32, tile, from, n);
    else if (dtype == FASTOPT_BFLOAT16)
        FN(load_as)(FASTOPT_BFLOAT16, tile, from, n);
    else
        FN(load_as)(FASTOPT_FLOAT16, tile, from, n);
#else
    (void)dtype;
#endif
}

/* Stores n elements of chunks, the first of which is the tensor's element i. */
NOINLINE void FN(store_elements)(FN(stored) *s, int dtype, int rounding, const real *tile, char *to, int64_t i,
                                 int64_t n)
{
    if (s->plain) {
        memcpy(to, tile, (size_t)n * sizeof(real));
        return;
    }
#ifdef FASTOPT_CONVERSIONS
    if (dtype == FASTOPT_FLOAT32)
        FN(store_as)(s, FASTOPT_FLOAT32, NEAREST, tile, to, i, n);
    else if (dtype == FASTOPT_BFLOAT16)
        FN(store_rounded)(s, FASTOPT_BFLOAT16, rounding, tile, to, i, n);
    else
        FN(store_rounded)(s, FASTOPT_FLOAT16, rounding, tile, to, i, n);
#else
    (void)dtype, (void)rounding, (void)i;
#endif
}

/* ---- tiles ---- */

/* The address of element i of array j. */
INLINE char *FN(address)(const FN(stored) *s, int j, int64_t i) { return s->begins[j] + FN(offset)(s->dtypes[j], i); }

/* Loads n elements of array j, from i on, as a tile. */
static void FN(load_array)(FN(stored) *s, int j, int tile, int64_t i, int64_t n)
{
    const int dtype = s->dtypes[j];
    char *const from = FN(address)(s, j, i);
    const int64_t bytes = FN(in_blocks)(dtype) ? FASTOPT_BLOCK_BYTES : n * FN(element_size)(dtype);
    for (int64_t at = 0; s->pass->prefetch && at < bytes; at += 64)
        PREFETCH(from + STORED_AHEAD + at);
    s->tiles[tile] = s->space[tile];
    if (s->plain && (uintptr_t)from % sizeof(real) == 0)
        s->tiles[tile] = from;
#ifdef FASTOPT_CONVERSIONS
    else if (FN(in_blocks)(dtype))
        load_block(dtype, s->space[tile], from);
#endif
    else
        FN(load_elements)(s, dtype, s->space[tile], from, n);
}

/* Stores a tile as n elements of array j, from i on. After the tensor's end blocks hold zeros. */
static void FN(store_array)(FN(stored) *s, int j, int tile, int rounding, int64_t i, int64_t n)
{
    char *const to = FN(address)(s, j, i);
    if (s->tiles[tile] == to)
        return;
#ifdef FASTOPT_CONVERSIONS
    if (FN(in_blocks)(s->dtypes[j])) {
        for (int64_t k = n; k < FASTOPT_BLOCK; k++)
            s->space[tile][chunk_index((int)k)] = 0;
        store_block(s->dtypes[j], s->space[tile], to, (uint64_t)(s->pass->element + i), (uint64_t)s->pass->step);
        return;
    }
#endif
    FN(store_elements)(s, s->dtypes[j], rounding, s->space[tile], to, i, n);
}

/* Loads n elements of the update's arrays, from i on; of the parameter the master or, added, the lost part too. */
static void FN(load_tiles)(FN(stored) *s, int arrays, int64_t i, int64_t n)
{
    FN(load_array)(s, s->options & FASTOPT_MASTER ? s->companion : 0, 0, i, n);
    for (int j = GRADIENT; j < arrays; j++)
        FN(load_array)(s, j, j, i, n);
    if (!(s->options & FASTOPT_KAHAN))
        return;
    FN(load_array)(s, s->companion, s->companion, i, n);
    real *const p = s->space[0], *const lost = s->space[s->companion];
    for (int64_t k = 0, end = FN(whole_chunks)(s, n); k < end; k++)
        p[k] = p[k] + lost[k];
}

/* Stores the parameter as the options say, its average, and the zeroed gradient. */
static void FN(store_param)(FN(stored) *s, int64_t i, int64_t n)
{
    const real *const p = s->tiles[0];
    const int64_t end = FN(whole_chunks)(s, n);
    if (s->average) {
        FN(load_array)(s, s->average, s->average, i, n);
        real *const average = s->tiles[s->average];
        for (int64_t k = 0; k < end; k++)
            average[k] = s->decay * average[k] + s->rest * p[k];
        FN(store_array)(s, s->average, s->average, NEAREST, i, n);
    }
    if (s->options & FASTOPT_ZERO_GRADS)
        memset(FN(address)(s, GRADIENT, i), 0, (size_t)n * FN(element_size)(s->dtypes[GRADIENT]));
    if (s->options & FASTOPT_MASTER)
        FN(store_array)(s, s->companion, 0, NEAREST, i, n);
    FN(store_array)(s, 0, 0, s->options & FASTOPT_STOCHASTIC ? STOCHASTIC : NEAREST, i, n);
    if (s->options & FASTOPT_KAHAN) {
        real *const lost = s->space[s->companion], kept[STORED_TILE];
        FN(load_elements)(s, s->dtypes[0], kept, FN(address)(s, 0, i), n);
        for (int64_t k = 0; k < end; k++) /* infinity - infinity is NaN: nothing is lost */
            lost[k] = isfinite(kept[k]) ? p[k] - kept[k] : 0;
        FN(store_array)(s, s->companion, s->companion, NEAREST, i, n);
    }
}

/* Updates the elements from `at` on. */
NOINLINE void FN(update_tiles)(FN(stored) *s, int arrays, int64_t at, int64_t n, fastopt_kernel kernel,
                               const void *coefficients)
{
    const int rounding = s->options & FASTOPT_DITHER ? DITHERED : NEAREST;
    fastopt_pass own = *s->pass;
    own.prefetch = 0;
    for (; at < n; at += STORED_TILE) {
        const int64_t m = n - at < STORED_TILE ? n - at : STORED_TILE;
        FN(load_tiles)(s, arrays, at, m);
        kernel(FN(whole_chunks)(s, m), s->tiles, coefficients, &own);
        FN(store_param)(s, at, m);
        for (int j = FIRST_STATE; j < arrays; j++)
            if (writes(s->pass, j))
                FN(store_array)(s, j, j, rounding, at, m);
    }
}

/* ---- the specialised loops ---- */

#if defined FASTOPT_CONVERSIONS && !defined FASTOPT_TILES_ONLY
/* Prefetches what comes soon after an array's chunk at i. */
INLINE void FN(prefetch_chunk)(int dtype, const char *at, int64_t i)
{
    PREFETCH_NEAR(at + STORED_AHEAD + (FN(in_blocks)(dtype) ? i % FASTOPT_BLOCK : 0));
    if (FN(element_size)(dtype) * CHUNK > 64)
        PREFETCH_NEAR(at + STORED_AHEAD + 64);
}

/* 1 if arrays are of these dtypes and no option is set that the specialised loops lack. Where states are in blocks,
 * those of `positive`, a bit for each array, are in blocks of states that are never negative. */
NOINLINE int FN(matches)(const FN(stored) *s, int arrays, int positive, int param, int grad, int states)
{
    const int here = FASTOPT_DITHER | FASTOPT_NOISE | FASTOPT_STOCHASTIC;
    int is = s->dtypes[0] == param && s->dtypes[GRADIENT] == grad && !(s->options & ~here);
    for (int j = FIRST_STATE; j < arrays; j++)
        is &= s->dtypes[j] == (FN(in_blocks)(states) && positive >> j & 1 ? FASTOPT_BLOCKS_POSITIVE : states);
    return is;
}

#define LOCATE(j, dtype) char *const at_##j = s->begins[j] + FN(offset)(dtype, at);
#define LOAD(j, dtype)                                                                                                \
    if (!FN(in_blocks)(dtype))                                                                                        \
        FN(load_chunk)(dtype, chunks[j], at_##j);                                                                     \
    else if (at % FASTOPT_BLOCK == 0)                                                                                 \
        load_block(s->dtypes[j], s->space[j], at_##j);                                                                \
    arrays[j] = FN(in_blocks)(dtype) ? s->space[j] + at % FASTOPT_BLOCK : chunks[j];
#define LOCATE_STATE(j) LOCATE(j, states)
#define PREFETCH_STATE(j) FN(prefetch_chunk)(states, at_##j, at);
#define LOAD_STATE(j) LOAD(j, states)
#define DITHER_STATE(j) store_dithered(states, chunks[j], at_##j, dither_of(element + (uint64_t)at, step));
#define STORE_STATE(j)                                                                                                \
    if (!FN(in_blocks)(states))                                                                                       \
        FN(store_chunk)(states, chunks[j], at_##j);                                                                   \
    else if (at % FASTOPT_BLOCK == FASTOPT_BLOCK - CHUNK)                                                             \
        store_block(s->dtypes[j], s->space[j], at_##j, element + (uint64_t)(at - at % FASTOPT_BLOCK), step);

/* Updates whole chunks, or whole blocks if states are in blocks, and returns the number of elements updated. Tiles do
 * the rest: only they write zeros after the tensor's end. */
#define SPECIALISED(rule, copies)                                                                                     \
    INLINE int64_t FN(specialised_##rule##_##copies)(FN(stored) *s, int64_t n, const void *coefficients,              \
                                                     const int dtype, const int grad_dtype, const int states)         \
    {                                                                                                                 \
        COEFFICIENTS(rule, copies)                                                                                    \
        const int prefetch = s->pass->prefetch, dithered = s->options & FASTOPT_DITHER;                               \
        const int stochastic = s->options & FASTOPT_STOCHASTIC;                                                       \
        const uint64_t element = (uint64_t)s->pass->element, step = (uint64_t)s->pass->step;                          \
        (void)dithered, (void)stochastic, (void)element, (void)step;                                                  \
        _Alignas(64) real chunks[ARRAYS_##rule##_##copies][CHUNK];                                                    \
        void *arrays[ARRAYS_##rule##_##copies];                                                                       \
        int64_t at = 0, end = n - n % (FN(in_blocks)(states) ? FASTOPT_BLOCK : CHUNK);                                \
        for (; at < end; at += CHUNK) {                                                                               \
            LOCATE(0, dtype) LOCATE(1, grad_dtype) STATES_##rule##_##copies(LOCATE_STATE)                             \
            READ_##rule##_##copies(LOCATE_STATE)                                                                      \
            if (prefetch) {                                                                                           \
                FN(prefetch_chunk)(dtype, at_0, at);                                                                  \
                FN(prefetch_chunk)(grad_dtype, at_1, at);                                                             \
                STATES_##rule##_##copies(PREFETCH_STATE)                                                              \
                READ_##rule##_##copies(PREFETCH_STATE)                                                                \
            }                                                                                                         \
            LOAD(0, dtype) LOAD(1, grad_dtype) STATES_##rule##_##copies(LOAD_STATE)                                   \
            READ_##rule##_##copies(LOAD_STATE)                                                                        \
            real *restrict param = arrays[0];                                                                         \
            const real *restrict grad = arrays[GRADIENT];                                                             \
            POINTERS_##rule##_##copies                                                                                \
            IVDEP                                                                                                     \
            for (int i = 0; i < CHUNK; i++)                                                                           \
                ELEMENT(UPDATE_##rule##_##copies)                                                                     \
            if (dtype != FASTOPT_FLOAT32 && stochastic)                                                               \
                store_stochastic(dtype, chunks[0], at_0, &s->randoms, element + (uint64_t)at);                        \
            else                                                                                                      \
                FN(store_chunk)(dtype, chunks[0], at_0);                                                              \
            if (dithered && (states == FASTOPT_BFLOAT16 || states == FASTOPT_FLOAT16)) {                              \
                STATES_##rule##_##copies(DITHER_STATE)                                                                \
            } else {                                                                                                  \
                STATES_##rule##_##copies(STORE_STATE)                                                                 \
            }                                                                                                         \
        }                                                                                                             \
        return end;                                                                                                   \
    }
FASTOPT_INSTANCES(SPECIALISED)

#ifdef __AVX512BW__
#define BEGIN_BLOCK(j)                                                                                                \
    usual &= begin_block(&b.of[j - FIRST_STATE], s->dtypes[j],                                                        \
                         s->begins[j] + FN(offset)(FASTOPT_BLOCKS_SIGNED, at));                                       \
    most[j] = (floats)SPLAT(0);
#define PREFETCH_CODES(j) PREFETCH_NEAR(b.of[j - FIRST_STATE].at + STORED_AHEAD + from);
#define SPLIT_CODES(j) split_codes(&b.of[j - FIRST_STATE], order, from, positive >> j & 1, split[j]);
#define DECODE_VECTOR(j)                                                                                              \
    store_floats(vectors[j], decode_vector(&b.of[j - FIRST_STATE], split[j], k, positive >> j & 1));
#define KEEP_VECTOR(j)                                                                                                \
    store_floats(b.of[j - FIRST_STATE].elements + from + k * LANES, load_floats(vectors[j]));                         \
    most[j] = max_magnitudes(most[j], load_floats(vectors[j]));
#define KEEP_MOST(j) b.of[j - FIRST_STATE].most = most[j];

/* Loads vector k of a batch. */
INLINE floats FN(load_vector)(int dtype, const char *batch, int k)
{
    if (dtype == FASTOPT_FLOAT32)
        return load_floats(batch + k * 64);
    const words w = load_words(batch + k / 2 * 64);
    return (floats)(k % 2 ? w & K(UPPER) : w << 16);
}

/* The same with states in blocks, for arrays of float32 or bfloat16. A prologue that changes nothing is left out. */
#define BLOCKED(rule, copies)                                                                                         \
    INLINE int64_t FN(blocked_##rule##_##copies)(FN(stored) *s, int64_t n, const void *coefficients, const int dtype) \
    {                                                                                                                 \
        COEFFICIENTS(rule, copies)                                                                                    \
        const int scales = prologue.grad_scale != 1 || prologue.weight_decay != 0, decays = prologue.decay != 1;      \
        const int prefetch = s->pass->prefetch, stochastic = s->options & FASTOPT_STOCHASTIC;                         \
        const int size = FN(element_size)(dtype), positive = POSITIVE_##rule;                                         \
        const batch_order *const order = dtype == FASTOPT_FLOAT32 ? &in_memory : &in_chunks;                          \
        const uint64_t element = (uint64_t)s->pass->element;                                                          \
        const int64_t end = n - n % FASTOPT_BLOCK;                                                                    \
        _Alignas(64) real vectors[ARRAYS_##rule##_##copies][LANES], updated[BATCH];                                   \
        words split[ARRAYS_##rule##_##copies][2];                                                                     \
        floats most[ARRAYS_##rule##_##copies];                                                                        \
        block_pass b;                                                                                                 \
        (void)positive, (void)split, (void)most;                                                                      \
        begin_pass(&b, order, s->pass->step);                                                                         \
        for (int64_t at = 0; at < end; at += FASTOPT_BLOCK) {                                                         \
            int usual = 1;                                                                                            \
            STATES_##rule##_##copies(BEGIN_BLOCK)                                                                     \
            if (!usual) {                                                                                             \
                FN(update_tiles)(s, ARRAYS_##rule##_##copies, at, at + FASTOPT_BLOCK, FN(run_##rule##_##copies),      \
                                 coefficients);                                                                       \
                continue;                                                                                             \
            }                                                                                                         \
            for (int from = 0; from < FASTOPT_BLOCK; from += BATCH) {                                                 \
                char *const at_0 = s->begins[0] + (at + from) * size, *const at_1 = s->begins[1] + (at + from) * size;\
                for (int line = 0; prefetch && line < BATCH * size; line += 64) {                                     \
                    PREFETCH_NEAR(at_0 + STORED_AHEAD + line);                                                        \
                    PREFETCH_NEAR(at_1 + STORED_AHEAD + line);                                                        \
                }                                                                                                     \
                if (prefetch) {                                                                                       \
                    STATES_##rule##_##copies(PREFETCH_CODES)                                                          \
                }                                                                                                     \
                STATES_##rule##_##copies(SPLIT_CODES)                                                                 \
                UNROLL(4)                                                                                             \
                for (int k = 0; k < 4; k++) {                                                                         \
                    floats x = FN(load_vector)(dtype, at_0, k), y = FN(load_vector)(dtype, at_1, k);                  \
                    if (scales)                                                                                       \
                        y = scale_and_decay(y, x, prologue.grad_scale, prologue.weight_decay);                        \
                    if (decays)                                                                                       \
                        x = x * prologue.decay;                                                                       \
                    store_floats(updated + k * LANES, x);                                                             \
                    store_floats(vectors[1], y);                                                                      \
                    STATES_##rule##_##copies(DECODE_VECTOR)                                                           \
                    void *arrays[ARRAYS_##rule##_##copies];                                                           \
                    for (int j = FIRST_STATE; j < ARRAYS_##rule##_##copies; j++)                                      \
                        arrays[j] = vectors[j];                                                                       \
                    (void)arrays;                                                                                     \
                    real *restrict param = updated + k * LANES;                                                       \
                    const real *restrict grad = vectors[1];                                                           \
                    POINTERS_##rule##_##copies                                                                        \
                    IVDEP                                                                                             \
                    for (int i = 0; i < LANES; i++)                                                                   \
                        REST_OF_ELEMENT(UPDATE_##rule##_##copies)                                                     \
                    STATES_##rule##_##copies(KEEP_VECTOR)                                                             \
                }                                                                                                     \
                for (int k = 0; k < BATCH; k += CHUNK)                                                                \
                    if (dtype == FASTOPT_FLOAT32)                                                                     \
                        copy_chunk(at_0 + k * 4, (const char *)(updated + k));                                        \
                    else if (stochastic)                                                                              \
                        store_stochastic(dtype, updated + k, at_0 + k * 2, &s->randoms,                               \
                                         element + (uint64_t)(at + from + k));                                        \
                    else                                                                                              \
                        store_bfloat16(updated + k, at_0 + k * 2);                                                    \
            }                                                                                                         \
            STATES_##rule##_##copies(KEEP_MOST)                                                                       \
            END_BLOCKS_##rule(&b, element + (uint64_t)at);                                                            \
        }                                                                                                             \
        return end;                                                                                                   \
    }
FASTOPT_INSTANCES(BLOCKED)
#endif

#define TRY(rule, copies, ...)                                                                                        \
    else if (copies == 1 && FN(matches)(&s, ARRAYS_##rule##_##copies, POSITIVE_##rule, __VA_ARGS__))                  \
        at = FN(specialised_##rule##_##copies)(&s, n, coefficients, __VA_ARGS__);
#ifdef __AVX512BW__
#define TRY_BLOCKED(rule, copies, dtype) /* inputs are never in blocks */                                             \
    else if (copies == 1 && !INPUTS_##rule##_##copies                                                                 \
             && FN(matches)(&s, ARRAYS_##rule##_##copies, POSITIVE_##rule, dtype, dtype,                              \
                            FASTOPT_BLOCKS_SIGNED))                                                                   \
        at = FN(blocked_##rule##_##copies)(&s, n, coefficients, dtype);
#define TRY_FLOAT16(rule, copies) TRY(rule, copies, FASTOPT_FLOAT16, FASTOPT_FLOAT16, FASTOPT_FLOAT16)
#else
#define TRY_BLOCKED(rule, copies, dtype) TRY(rule, copies, dtype, dtype, FASTOPT_BLOCKS_SIGNED)
#define TRY_FLOAT16(rule, copies) /* tiles take a quarter longer, but no time to compile */
#endif
#define TRY_SPECIALISED(rule, copies)                                                                                 \
    if (n < CHUNK)                                                                                                    \
        ;                                                                                                             \
    TRY(rule, copies, FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_BFLOAT16)                                             \
    TRY_BLOCKED(rule, copies, FASTOPT_FLOAT32)                                                                        \
    TRY(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16)                                           \
    TRY(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_FLOAT32)                                            \
    TRY_BLOCKED(rule, copies, FASTOPT_BFLOAT16)                                                                       \
    TRY_FLOAT16(rule, copies)
#else
#define TRY_SPECIALISED(rule, copies)
#endif

/* ---- the kernels ---- */

#define STORED_KERNEL(rule, copies)                                                                                   \
    static void FN(stored_##rule##_##copies)(int64_t n, void *const *addresses, const void *coefficients,             \
                                             const fastopt_pass *pass)                                                \
    {                                                                                                                 \
        FN(stored) s;                                                                                                 \
        int64_t at = 0;                                                                                               \
        FN(init_stored)(&s, ARRAYS_##rule##_##copies, addresses, pass);                                               \
        TRY_SPECIALISED(rule, copies)                                                                                 \
        FN(update_tiles)(&s, ARRAYS_##rule##_##copies, at, n, FN(run_##rule##_##copies), coefficients);               \
    }
FASTOPT_INSTANCES(STORED_KERNEL)

/* ---- the reading pass ---- */

NOINLINE void FN(measure_tiles)(int arrays, int64_t n, void *const *addresses, fastopt_kernel kernel,
                                const void *coefficients, const fastopt_pass *pass)
{
    FN(stored) s;
    _Alignas(64) real ordered[MAX_ARRAYS][STORED_TILE];
    fastopt_pass own = *pass;
    own.prefetch = 0;
    FN(init_stored)(&s, arrays, addresses, pass);
    for (int64_t at = 0; at < n; at += STORED_TILE) {
        const int64_t m = n - at < STORED_TILE ? n - at : STORED_TILE;
        FN(load_tiles)(&s, arrays, at, m);
#ifdef FASTOPT_CONVERSIONS
        for (int j = 0; !s.plain && j < arrays; j++) {
            FN(store_as)(&s, FASTOPT_FLOAT32, NEAREST, s.space[j], (char *)ordered[j], at, m);
            s.tiles[j] = ordered[j];
        }
#else
        (void)ordered;
#endif
        kernel(m, s.tiles, coefficients, &own);
    }
}

#define STORED_MEASURE(rule)                                                                                          \
    static void FN(stored_measure_##rule)(int64_t n, void *const *addresses, const void *coefficients,                \
                                          const fastopt_pass *pass)                                                   \
    {                                                                                                                 \
        FN(measure_tiles)(ARRAYS_##rule##_1, n, addresses, FN(run_measure_##rule), coefficients, pass);               \
    }
FASTOPT_STAGES(STORED_MEASURE)
