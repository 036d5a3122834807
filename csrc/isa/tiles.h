/* Runs of tensors. Strided or unaligned arrays are copied to tiles, updated and copied back. So is a gradient that is
 * clipped, or to which noise is added, or that is a sum. */

/* Copies n elements from one run to another, without conversion. */
static void FN(copy_strided)(char *to, int64_t to_stride, const char *from, int64_t from_stride, int64_t n, int size)
{
    if (to_stride == size && from_stride == size)
        memcpy(to, from, (size_t)(n * size));
    else if (size == 2)
        for (int64_t i = 0; i < n; i++)
            memcpy(to + i * to_stride, from + i * from_stride, 2);
    else
        for (int64_t i = 0; i < n; i++)
            memcpy(to + i * to_stride, from + i * from_stride, sizeof(real));
}

/* Reads n floats of a strided run, of any dtype and alignment. */
static void FN(read_floats)(int dtype, real *tile, const char *from, int64_t stride, int64_t n)
{
#ifdef FASTOPT_CONVERSIONS
    if (dtype != COMPUTE) {
        for (int64_t i = 0; i < n; i += LANES) {
            const int64_t m = n - i < LANES ? n - i : LANES;
            uint16_t some[LANES] = {0};
            real values[LANES];
            FN(copy_strided)((char *)some, sizeof *some, from + i * stride, stride, m, sizeof *some);
            store_floats(values, dtype == FASTOPT_BFLOAT16 ? (floats)(widen_halves(some) << 16) : widen_float16(some));
            memcpy(tile + i, values, (size_t)m * sizeof *tile);
        }
        return;
    }
#else
    (void)dtype;
#endif
    FN(copy_strided)((char *)tile, sizeof(real), from, stride, n, sizeof(real));
}

/* Writes one float, rounded to nearest. */
static void FN(write_float)(int dtype, real x, char *to)
{
#ifdef FASTOPT_CONVERSIONS
    if (dtype != COMPUTE) {
        const words u = SPLAT(bits_of(x));
        uint16_t some[LANES];
        if (dtype == FASTOPT_BFLOAT16)
            store_lower_halves(some, round_bfloat16(u) >> 16);
        else
            narrow_float16(some, (floats)u);
        memcpy(to, some, sizeof *some);
        return;
    }
#else
    (void)dtype;
#endif
    memcpy(to, &x, sizeof x);
}

/* The gradient, scaled and clipped to [-limit, limit]; NaN stays. */
static inline real FN(clip)(real g, real scale, real limit)
{
    g = scale * g;
    g = limit < g ? limit : g;
    return -limit > g ? -limit : g;
}

/* Writes gradients of elements from the pass's on, up to a tile of them, scaled, clipped, and with noise. While noise is
 * drawn, as many elements of the `next` arrays come from memory. */
NOINLINE void FN(prepare_gradients)(const real *restrict gradients, real *restrict to, int64_t n, real scale,
                                    const fastopt_pass *pass, const upcoming *next)
{
    const real deviation = (real)pass->deviation, limit = (real)pass->limit;
    if (limit < INFINITY || deviation < 0)
        for (int64_t i = 0; i < n; i++)
            to[i] = FN(clip)(gradients[i], scale, limit);
    if (deviation < 0)
        return;
    const int64_t before = pass->element % NORMALS;
    float deviates[TILE + 2 * NORMALS];
    normals((uint64_t)(pass->element - before), before + n, (uint64_t)pass->step, pass->noise_seed, next, deviates);
    if (limit < INFINITY)
        for (int64_t i = 0; i < n; i++)
            to[i] = to[i] + deviation * deviates[before + i];
    else
        for (int64_t i = 0; i < n; i++)
            to[i] = scale * gradients[i] + deviation * deviates[before + i];
}

/* Adds up the arrays of a gradient, of n elements, up to a tile of them, from `first` on. Returns where the sum is. */
NOINLINE const real *FN(add_up)(const fastopt_sum *sum, const char *first, int64_t n, real tiles[][PREPARED_TILE])
{
    const real *sums[SUM_DEPTH];
    int left = 0;
    for (int64_t k = 0; k < sum->arrays; k++) {
        sums[left++] = (const real *)(first + sum->distances[k]);
        for (int64_t i = 0; i < n; i += LINE)
            PREFETCH(sums[left - 1] + i + AHEAD);
        for (int joined = 0; joined < sum->joins[k]; joined++) {
            left--;
            const real *const a = sums[left - 1], *const b = sums[left];
            real *const to = tiles[left - 1];
            IVDEP
            for (int64_t i = 0; i < n; i++)
                to[i] = a[i] + b[i];
            sums[left - 1] = to;
        }
    }
    return sums[0];
}

/* Updates n elements of one run. The coefficients are in float64 and rounded here. A gradient that is prepared
 * is scaled before the rule's prologue. */
static void FN(run_strided)(fastopt_kernel kernel, int64_t n, int arrays, void *const *addresses,
                            const int64_t *strides, const double *coefficients, int row, const fastopt_pass *pass)
{
    const fastopt_storage *storage = pass->storage;
    const fastopt_sum *sum = pass->sum;
    const int prepared = prepares(pass), drawn = pass->deviation >= 0;
    real coefs[MAX_ROW];
    int dtypes[MAX_STORED], sizes[MAX_STORED], direct[MAX_STORED], copied = 0;
    for (int j = 0; j < row; j++)
        coefs[j] = (real)coefficients[j];
    for (int j = 0; j < arrays; j++) {
        dtypes[j] = storage ? storage->dtypes[j] : COMPUTE;
        sizes[j] = FN(in_blocks)(dtypes[j]) ? 0 : FN(element_size)(dtypes[j]);
        direct[j] = !sizes[j] /* blocks have no strides; conversions take any alignment */
                 || ((!strides || strides[j] == sizes[j]) && (storage || (uintptr_t)addresses[j] % sizeof(real) == 0));
        copied += j != GRADIENT && !direct[j];
    }
    if (!copied && direct[GRADIENT] && !prepared && !sum) {
        kernel(n, addresses, coefs, pass);
        return;
    }
    const int reads = pass->lanes != NULL, zeroed = storage && storage->options & FASTOPT_ZERO_GRADS && !reads;
    const int gradient = dtypes[GRADIENT];
    const int read_there =
        direct[GRADIENT] && gradient == COMPUTE && (uintptr_t)addresses[GRADIENT] % sizeof(real) == 0;
    const real scale = coefs[0];
    real tiles[MAX_STORED][TILE], prepared_tile[PREPARED_TILE], sums[SUM_DEPTH][PREPARED_TILE];
    void *tile[MAX_STORED];
    fastopt_pass own = *pass;
    fastopt_storage of_prepared;
    own.prefetch &= !copied;
    upcoming next = {own.prefetch && drawn ? arrays : 0, {0}, {0}};
    for (int j = 0; j < next.arrays; j++)
        next.sizes[j] = sizes[j];
    if (prepared) {
        coefs[0] = 1;
        dtypes[GRADIENT] = COMPUTE;
        if (storage) {
            of_prepared = *storage;
            of_prepared.dtypes = dtypes;
            of_prepared.options &= ~FASTOPT_ZERO_GRADS;
            own.storage = &of_prepared;
        }
    }
    const int64_t tile_size = prepared || sum ? PREPARED_TILE : TILE;
    for (int64_t i = 0; i < n; i += tile_size) {
        const int64_t m = n - i < tile_size ? n - i : tile_size;
        own.element = pass->element + i;
        for (int j = 0; j < arrays; j++) {
            const int64_t stride = strides ? strides[j] : sizes[j];
            char *from = (char *)addresses[j] + (sizes[j] ? i * stride : FN(offset)(FASTOPT_BLOCKS_SIGNED, i));
            if (j == GRADIENT && sum)
                from = (char *)FN(add_up)(sum, from, m, sums);
            tile[j] = direct[j] ? (void *)from : tiles[j];
            if (j == GRADIENT && prepared) {
                if (!read_there)
                    FN(read_floats)(gradient, tiles[j], from, stride, m);
                for (int k = 0; k < next.arrays; k++)
                    next.at[k] = (const char *)addresses[k] + (i + PREPARED_AHEAD) * next.sizes[k];
                FN(prepare_gradients)(read_there ? (const real *)from : tiles[j], prepared_tile, m, scale, &own, &next);
                tile[j] = prepared_tile;
            } else if (!direct[j])
                FN(copy_strided)((char *)tiles[j], sizes[j], from, stride, m, sizes[j]);
        }
        for (int k = 0; prepared && !drawn && !sum && own.prefetch && k < PREPARED_TILE * sizes[GRADIENT]; k += 64)
            PREFETCH((const char *)addresses[GRADIENT] + i * sizes[GRADIENT] + 2048 + k);
        kernel(m, tile, coefs, &own);
        if (prepared && zeroed)
            memset(tiles[GRADIENT], 0, sizeof tiles[GRADIENT]);
        for (int j = 0; !reads && j < arrays; j++) {
            const int64_t stride = strides ? strides[j] : sizes[j];
            if (j == GRADIENT ? zeroed && (prepared || !direct[j]) : !direct[j] && writes(pass, j))
                FN(copy_strided)((char *)addresses[j] + i * stride, stride, (char *)tiles[j], sizes[j], m, sizes[j]);
        }
    }
}
