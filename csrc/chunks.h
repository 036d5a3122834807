/* Updates of stored arrays, for one compute type: included by kernels_real.h.
 *
 * A kernel takes the arrays of a tensor chunk by chunk: each is loaded into a chunk of the compute type, the rule's
 * update runs over it, each is stored again. One loop for each rule serves all combinations, asking anew for every chunk
 * what is stored how. That costs a third of the time in cache: the commonest combinations have the same loop compiled
 * with the answers known.
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
APART void FN(store_other_dithered)(int dtype, const real *chunk, char *to, uint32_t first)
{
    store_dithered(dtype, chunk, to, first);
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
        uint32_t random[HALF];
        random_chunk(&s->randoms, (uint64_t)(s->pass->element + i), random);
        store_stochastic(s->dtypes[0], p, s->at[0], random);
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

/* A combination of dtypes: of the parameter, the gradient, every state; ASK where only storage knows. Of states in blocks
 * it is known only that they are. */
#define ASK -1
typedef struct {
    int param, grad, states;
} FN(combination);

INLINE int FN(dtype_of)(const FN(stored) *s, FN(combination) c, int j)
{
    const int known = j == 0 ? c.param : j == 1 ? c.grad : c.states;
    return known == ASK ? s->dtypes[j] : known;
}

/* Where array j has the chunk at i. */
INLINE void FN(place)(FN(stored) *s, int dtype, int j, int64_t i)
{
    s->at[j] = s->begins[j] + FN(offset)(dtype, i);
    if (!s->pass->prefetch)
        return;
    PREFETCH(s->at[j] + STORED_AHEAD + (FN(in_blocks)(dtype) ? i % FASTOPT_BLOCK : 0));
    if (FN(element_size)(dtype) * CHUNK > 64)
        PREFETCH(s->at[j] + STORED_AHEAD + 64);
}

/* The rest of what comes before loading: the arrays that storage adds, and the last elements. */
APART void FN(place_others)(FN(stored) *s, int arrays, int64_t i, int64_t left)
{
    for (int j = arrays; j < s->all; j++)
        s->at[j] = s->begins[j] + FN(offset)(s->dtypes[j], i);
    if (left < CHUNK)
        FN(borrow)(s, left);
}

/* Loads array j's part of the chunk at i, and returns where it then is. */
INLINE real *FN(load)(FN(stored) *s, int dtype, int j, int64_t i)
{
#ifdef FASTOPT_CONVERSIONS
    if (j > 1 && FN(in_blocks)(dtype)) {
        if (i % FASTOPT_BLOCK == 0)
            load_block(s->dtypes[j], s->blocks[j], s->at[j]);
        return s->blocks[j] + i % FASTOPT_BLOCK;
    }
#else
    (void)i;
#endif
    FN(load_chunk)(dtype, s->chunks[j], s->at[j]);
    return s->chunks[j];
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

INLINE void FN(store_param)(FN(stored) *s, int dtype, int64_t i)
{
    if (s->options & ~FASTOPT_DITHER)
        FN(store_specially)(s, i);
    else
        FN(store_chunk)(dtype, s->chunks[0], s->at[0]);
}

INLINE void FN(store_state)(FN(stored) *s, int dtype, int j, int64_t i)
{
    if (FN(in_blocks)(dtype))
        return;
#ifdef FASTOPT_CONVERSIONS
    if (s->options & FASTOPT_DITHER && dtype != FASTOPT_FLOAT32) {
        const uint32_t dither = dither_of((uint64_t)(s->pass->element + i), (uint64_t)s->pass->step);
        if (dtype == FASTOPT_BFLOAT16)
            store_dithered(dtype, s->chunks[j], s->at[j], dither);
        else
            FN(store_other_dithered)(dtype, s->chunks[j], s->at[j], dither);
        return;
    }
#else
    (void)i;
#endif
    FN(store_chunk)(dtype, s->chunks[j], s->at[j]);
}

/* What comes after storing: the blocks that end here, and the last elements. */
APART void FN(store_others)(FN(stored) *s, int arrays, int64_t i, int64_t n)
{
#ifdef FASTOPT_CONVERSIONS
    FN(store_blocks)(s, arrays, i, n);
#else
    (void)arrays;
#endif
    if (n - i < CHUNK)
        FN(give_back)(s, i, n - i);
}

#define DTYPE(j) FN(dtype_of)(s, known, j)
#define PLACE(j) FN(place)(s, DTYPE(j), j, at);
#define LOAD(j) arrays[j] = FN(load)(s, DTYPE(j), j, at);
#define STORE(j) FN(store_state)(s, DTYPE(j), j, at);

/* The loop, and the kernel that chooses among its combinations. */
#define STORED_KERNEL(rule, copies)                                                                                   \
    INLINE void FN(chunks_##rule##_##copies)(FN(stored) *s, FN(combination) known, int64_t n, const void *coefficients) \
    {                                                                                                                 \
        COEFFICIENTS(rule, copies)                                                                                    \
        enum { ARRAYS = ARRAYS_##rule##_##copies };                                                                   \
        void *arrays[ARRAYS];                                                                                         \
        const int blocks = known.states == ASK || FN(in_blocks)(known.states);                                        \
        for (int64_t at = 0; at < n; at += CHUNK) {                                                                   \
            PLACE(0) PLACE(1) STATES_##rule##_##copies(PLACE)                                                         \
            if (s->all > ARRAYS || n - at < CHUNK)                                                                    \
                FN(place_others)(s, ARRAYS, at, n - at);                                                              \
            LOAD(0) LOAD(1) STATES_##rule##_##copies(LOAD)                                                            \
            if (s->companion)                                                                                         \
                FN(load_companion)(s);                                                                                \
            {                                                                                                         \
                real *restrict param = arrays[0];                                                                     \
                const real *restrict grad = arrays[1];                                                                \
                POINTERS_##rule##_##copies                                                                            \
                INDEPENDENT                                                                                           \
                for (int i = 0; i < CHUNK; i++)                                                                       \
                    ELEMENT(UPDATE_##rule##_##copies)                                                                 \
            }                                                                                                         \
            FN(store_param)(s, DTYPE(0), at);                                                                         \
            STATES_##rule##_##copies(STORE)                                                                           \
            if (n - at <= CHUNK || (blocks && at % FASTOPT_BLOCK == FASTOPT_BLOCK - CHUNK))                           \
                FN(store_others)(s, ARRAYS, at, n);                                                                   \
        }                                                                                                             \
    }                                                                                                                 \
    static void FN(stored_##rule##_##copies)(int64_t n, void *const *addresses, const void *coefficients,             \
                                             const fastopt_pass *pass)                                                \
    {                                                                                                                 \
        FN(stored) s;                                                                                                 \
        FN(begin)(&s, ARRAYS_##rule##_##copies, addresses, pass);                                                     \
        CHOOSE_COMBINATION(rule, copies)                                                                              \
        FN(chunks_##rule##_##copies)(&s, (FN(combination)){ASK, ASK, ASK}, n, coefficients);                          \
    }

#define COMBINATION(rule, copies, ...)                                                                                \
    if (copies == 1 && FN(is)(&s, (FN(combination)){__VA_ARGS__}, ARRAYS_##rule##_##copies)) {                        \
        FN(chunks_##rule##_##copies)(&s, (FN(combination)){__VA_ARGS__}, n, coefficients);                            \
        return;                                                                                                       \
    }
#ifdef FASTOPT_CONVERSIONS
APART int FN(is)(const FN(stored) *s, FN(combination) c, int arrays)
{
    int is = s->dtypes[0] == c.param && s->dtypes[1] == c.grad;
    for (int j = 2; j < arrays; j++)
        is &= s->dtypes[j] == c.states || (FN(in_blocks)(s->dtypes[j]) && FN(in_blocks)(c.states));
    return is;
}
#define CHOOSE_COMBINATION(rule, copies)                                                                              \
    COMBINATION(rule, copies, FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_BFLOAT16)                                     \
    COMBINATION(rule, copies, FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_BLOCKS_SIGNED)                                \
    COMBINATION(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16)                                   \
    COMBINATION(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_FLOAT32)                                    \
    COMBINATION(rule, copies, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_BLOCKS_SIGNED)
#else
#define CHOOSE_COMBINATION(rule, copies)
#endif
FASTOPT_INSTANCES(STORED_KERNEL)

#undef STORED_KERNEL
#undef ASK
#undef DTYPE
#undef PLACE
#undef LOAD
#undef STORE
#undef COMBINATION
#undef CHOOSE_COMBINATION
