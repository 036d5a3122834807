/* Runs of tensors. Strided or unaligned arrays are copied to tiles, updated and copied back. */

/* Reads n floats of a strided run, of any dtype and alignment. */
static void FN(read_floats)(int dtype, real *tile, const char *from, int64_t stride, int64_t n)
{
#ifdef FASTOPT_CONVERSIONS
    if (dtype != COMPUTE) {
        for (int64_t i = 0; i < n; i += LANES) {
            const int64_t m = n - i < LANES ? n - i : LANES;
            uint16_t some[LANES] = {0};
            real values[LANES];
            for (int64_t k = 0; k < m; k++)
                memcpy(some + k, from + (i + k) * stride, sizeof *some);
            const words w = widen_halves(some);
            store_words(values, dtype == FASTOPT_BFLOAT16 ? w << 16 : from_float16(w));
            memcpy(tile + i, values, (size_t)m * sizeof *tile);
        }
        return;
    }
#else
    (void)dtype;
#endif
    for (int64_t i = 0; i < n; i++)
        memcpy(tile + i, from + i * stride, sizeof(real));
}

/* Writes one float, rounded to nearest. */
static void FN(write_float)(int dtype, real x, char *to)
{
#ifdef FASTOPT_CONVERSIONS
    if (dtype != COMPUTE) {
        const words u = SPLAT(bits_of(x));
        const uint16_t h = (uint16_t)(dtype == FASTOPT_BFLOAT16 ? round_bfloat16(u)[0] >> 16 : to_float16(u)[0]);
        memcpy(to, &h, sizeof h);
        return;
    }
#else
    (void)dtype;
#endif
    memcpy(to, &x, sizeof x);
}

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

/* Updates n elements of one run. The coefficients are in float64 and rounded here. */
static void FN(run_strided)(fastopt_kernel kernel, int64_t n, int arrays, void *const *addresses,
                            const int64_t *strides, const double *coefficients, int row, const fastopt_pass *pass)
{
    const fastopt_storage *storage = pass->storage;
    real coefs[MAX_ROW];
    int sizes[MAX_STORED], dense = 1;
    for (int j = 0; j < row; j++)
        coefs[j] = (real)coefficients[j];
    for (int j = 0; j < arrays; j++) {
        const int dtype = storage ? storage->dtypes[j] : COMPUTE;
        sizes[j] = FN(in_blocks)(dtype) ? 0 : FN(element_size)(dtype);
        if (sizes[j]) /* blocks have no strides; conversions take any alignment */
            dense &= (!strides || strides[j] == sizes[j]) && (storage || (uintptr_t)addresses[j] % sizeof(real) == 0);
    }
    if (dense) {
        kernel(n, addresses, coefs, pass);
        return;
    }
    const int zeroed = storage && storage->options & FASTOPT_ZERO_GRADS;
    real tiles[MAX_STORED][TILE];
    void *tile[MAX_STORED];
    fastopt_pass own = *pass;
    own.prefetch = 0;
    for (int64_t i = 0; i < n; i += TILE) {
        const int64_t m = n - i < TILE ? n - i : TILE;
        for (int j = 0; j < arrays; j++) {
            const int64_t stride = strides ? strides[j] : sizes[j];
            tile[j] = sizes[j] ? (void *)tiles[j] : (char *)addresses[j] + FN(offset)(FASTOPT_BLOCKS_SIGNED, i);
            if (sizes[j])
                FN(copy_strided)((char *)tiles[j], sizes[j], (char *)addresses[j] + i * stride, stride, m, sizes[j]);
        }
        own.element = pass->element + i;
        kernel(m, tile, coefs, &own);
        for (int j = 0; j < arrays; j++) {
            const int64_t stride = strides ? strides[j] : sizes[j];
            if (sizes[j] && (j != GRADIENT || zeroed))
                FN(copy_strided)((char *)addresses[j] + i * stride, stride, (char *)tiles[j], sizes[j], m, sizes[j]);
        }
    }
}
