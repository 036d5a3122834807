/* Updates of stored arrays, for one compute type: included by kernels_real.h.
 *
 * A kernel takes the arrays of a tensor chunk by chunk: each is loaded into a chunk of the compute type, the rule's
 * update runs over it, each is stored again. What is stored how is asked anew for every chunk; that is a branch which
 * processors foresee, and one kernel for each rule serves all combinations.
 */

/* The arrays of an update, then those that storage adds: the parameter's companion (what its rounding lost, or its
 * master) and its average. */
typedef struct {
    const fastopt_pass *pass;
    int dtypes[MAX_STORED];
    int options, all;               /* all the arrays, those that storage adds among them */
    int companion, average;         /* where these two are */
    real decay, rest;               /* of the average */
    char *begins[MAX_STORED], *at[MAX_STORED];
    _Alignas(64) real chunks[MAX_STORED][CHUNK];
    _Alignas(64) char edges[MAX_STORED][CHUNK * sizeof(real)]; /* a last chunk's elements, and zeros */
#ifdef FASTOPT_CONVERSIONS
    _Alignas(64) real blocks[MAX_ARRAYS][FASTOPT_BLOCK];
    randoms randoms;
#endif
} FN(stored);

#define OWN (sizeof(real) == sizeof(float) ? FASTOPT_FLOAT32 : FASTOPT_FLOAT64)

INLINE int FN(in_blocks)(int dtype)
{
    return sizeof(real) == sizeof(float) && dtype >= FASTOPT_BLOCKS_SIGNED;
}

INLINE int FN(element_size)(int dtype)
{
    return dtype == OWN ? (int)sizeof(real) : 2;
}

INLINE int64_t FN(offset)(int dtype, int64_t i)
{
    return FN(in_blocks)(dtype) ? i / FASTOPT_BLOCK * BLOCK_BYTES : i * FN(element_size)(dtype);
}

#ifdef FASTOPT_CONVERSIONS
APART void FN(load_other)(int dtype, real *chunk, const char *from) { (void)dtype; load_float16(chunk, from); }
APART void FN(store_other)(int dtype, const real *chunk, char *to) { (void)dtype; store_float16(chunk, to); }
APART void FN(store_dithered)(int dtype, const real *chunk, char *to, uint64_t element, uint64_t step)
{
    const words dither = dither_of(element, step);
    store_dithered(dtype, chunk, to, dither >> 16, (dither + K(NEXT)) >> 16);
}

INLINE void FN(load_chunk)(int dtype, real *chunk, const char *from)
{
    if (dtype == FASTOPT_FLOAT32)
        load_float32(chunk, from);
    else if (dtype == FASTOPT_BFLOAT16)
        load_bfloat16(chunk, from);
    else
        FN(load_other)(dtype, chunk, from);
}

INLINE void FN(store_chunk)(int dtype, const real *chunk, char *to)
{
    if (dtype == FASTOPT_FLOAT32)
        store_float32(chunk, to);
    else if (dtype == FASTOPT_BFLOAT16)
        store_bfloat16(chunk, to);
    else
        FN(store_other)(dtype, chunk, to);
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

APART void FN(begin)(FN(stored) *s, int arrays, void *const *addresses, const fastopt_pass *pass)
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

/* The last elements of arrays that do not fill a chunk, followed by zeros. */
APART void FN(borrow)(FN(stored) *s, int64_t left)
{
    for (int j = 0; j < s->all; j++)
        if (!FN(in_blocks)(s->dtypes[j])) {
            memset(s->edges[j], 0, sizeof s->edges[j]);
            memcpy(s->edges[j], s->at[j], (size_t)left * FN(element_size)(s->dtypes[j]));
            s->at[j] = s->edges[j];
        }
}

APART void FN(give_back)(FN(stored) *s, int64_t i, int64_t left)
{
    for (int j = 0; j < s->all; j++)
        if (!FN(in_blocks)(s->dtypes[j]) && (j != 1 || s->options & FASTOPT_ZERO_GRADS))
            memcpy(s->begins[j] + FN(offset)(s->dtypes[j], i), s->edges[j],
                   (size_t)left * FN(element_size)(s->dtypes[j]));
}

/* The parameter with what its dtype could not hold. */
APART void FN(load_companion)(FN(stored) *s)
{
    real *p = s->chunks[0], *lost = s->chunks[s->companion];
    if (s->options & FASTOPT_MASTER) {
        FN(load_chunk)(OWN, p, s->at[s->companion]);
        return;
    }
    FN(load_chunk)(s->dtypes[s->companion], lost, s->at[s->companion]);
    for (int k = 0; k < CHUNK; k++)
        p[k] = p[k] + lost[k];
}

/* The parameter as its options say, its average, the zeroed gradient. */
APART void FN(store_specially)(FN(stored) *s, int64_t i)
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
        memset(s->at[1], 0, (size_t)CHUNK * FN(element_size)(s->dtypes[1]));
    if (s->options & FASTOPT_MASTER)
        FN(store_chunk)(OWN, p, s->at[s->companion]);
#ifdef FASTOPT_CONVERSIONS
    if (s->options & FASTOPT_STOCHASTIC) {
        const words random = random_chunk(&s->randoms, (uint64_t)(s->pass->element + i));
        store_dithered(s->dtypes[0], p, s->at[0], random & 0xffff, random >> 16);
        return;
    }
#else
    (void)i;
#endif
    FN(store_chunk)(s->dtypes[0], p, s->at[0]);
    if (s->options & FASTOPT_KAHAN) {
        real *lost = s->chunks[s->companion], kept[CHUNK];
        FN(load_chunk)(s->dtypes[0], kept, s->at[0]);
        for (int k = 0; k < CHUNK; k++) /* infinity less infinity is none lost */
            lost[k] = isfinite(kept[k]) ? p[k] - kept[k] : 0;
        FN(store_chunk)(s->dtypes[s->companion], lost, s->at[s->companion]);
    }
}

/* Elements [i, i + CHUNK), or what there is of them; `tiles` is told where they are. */
INLINE void FN(load_arrays)(FN(stored) *s, int arrays, int64_t i, int64_t n, void **tiles)
{
    for (int j = 0; j < arrays; j++) {
        s->at[j] = s->begins[j] + FN(offset)(s->dtypes[j], i);
        tiles[j] = s->chunks[j];
    }
    for (int j = arrays; j < s->all; j++)
        s->at[j] = s->begins[j] + FN(offset)(s->dtypes[j], i);
    if (s->pass->prefetch)
        for (int j = 0; j < arrays; j++) {
            PREFETCH(s->at[j] + STORED_AHEAD + (FN(in_blocks)(s->dtypes[j]) ? i % FASTOPT_BLOCK : 0));
            if (FN(element_size)(s->dtypes[j]) * CHUNK > 64)
                PREFETCH(s->at[j] + STORED_AHEAD + 64);
        }
    if (n - i < CHUNK)
        FN(borrow)(s, n - i);
    for (int j = 0; j < arrays; j++) {
#ifdef FASTOPT_CONVERSIONS
        if (j > 1 && FN(in_blocks)(s->dtypes[j])) {
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

#ifdef FASTOPT_CONVERSIONS
/* Stores the blocks that end with the chunk at i; behind the tensor's end they hold zeros. */
APART void FN(store_blocks)(FN(stored) *s, int arrays, int64_t i, int64_t n)
{
    for (int j = 2; j < arrays; j++)
        if (FN(in_blocks)(s->dtypes[j])) {
            const int64_t begin = i - i % FASTOPT_BLOCK;
            for (int64_t k = n - begin; k < FASTOPT_BLOCK; k++)
                s->blocks[j][place_in_chunk((int)k)] = 0;
            store_block(s->dtypes[j], s->blocks[j], s->at[j], (uint64_t)(s->pass->element + begin),
                        (uint64_t)s->pass->step);
        }
}
#endif

INLINE void FN(store_arrays)(FN(stored) *s, int arrays, int64_t i, int64_t n)
{
    if (s->options & ~FASTOPT_DITHER)
        FN(store_specially)(s, i);
    else
        FN(store_chunk)(s->dtypes[0], s->chunks[0], s->at[0]);
    for (int j = 2; j < arrays; j++) {
        if (FN(in_blocks)(s->dtypes[j]))
            continue;
#ifdef FASTOPT_CONVERSIONS
        if (s->options & FASTOPT_DITHER && s->dtypes[j] != FASTOPT_FLOAT32) {
            FN(store_dithered)(s->dtypes[j], s->chunks[j], s->at[j], (uint64_t)(s->pass->element + i),
                               (uint64_t)s->pass->step);
            continue;
        }
#endif
        FN(store_chunk)(s->dtypes[j], s->chunks[j], s->at[j]);
    }
#ifdef FASTOPT_CONVERSIONS
    if (i % FASTOPT_BLOCK == FASTOPT_BLOCK - CHUNK || n - i <= CHUNK)
        FN(store_blocks)(s, arrays, i, n);
#endif
    if (n - i < CHUNK)
        FN(give_back)(s, i, n - i);
}

#define STORED_KERNEL(rule, copies)                                                                                   \
    static void FN(stored_##rule##_##copies)(int64_t n, void *const *addresses, const void *coefficients,             \
                                             const fastopt_pass *pass)                                                \
    {                                                                                                                 \
        COEFFICIENTS(rule, copies)                                                                                    \
        enum { ARRAYS = ARRAYS_##rule##_##copies };                                                                   \
        FN(stored) s;                                                                                                 \
        void *arrays[ARRAYS];                                                                                         \
        FN(begin)(&s, ARRAYS, addresses, pass);                                                                       \
        for (int64_t at = 0; at < n; at += CHUNK) {                                                                   \
            FN(load_arrays)(&s, ARRAYS, at, n, arrays);                                                               \
            {                                                                                                         \
                real *restrict param = arrays[0];                                                                     \
                const real *restrict grad = arrays[1];                                                                \
                POINTERS_##rule##_##copies                                                                            \
                for (int i = 0; i < CHUNK; i++)                                                                       \
                    ELEMENT(UPDATE_##rule##_##copies)                                                                 \
            }                                                                                                         \
            FN(store_arrays)(&s, ARRAYS, at, n);                                                                      \
        }                                                                                                             \
    }
FASTOPT_INSTANCES(STORED_KERNEL)

#undef STORED_KERNEL
