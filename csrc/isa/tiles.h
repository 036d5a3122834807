/* Runs of tensors. Strided or unaligned arrays are copied to tiles, updated and copied back. So is a gradient to which
 * noise is added. */
#include "random.h"

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

/* Scales gradients of elements from the pass's on, up to a tile of them, and adds noise. */
NOINLINE void FN(add_noise)(real *gradients, int64_t n, real scale, const fastopt_pass *pass)
{
    const int64_t before = pass->element % NORMALS;
    const real deviation = (real)pass->deviation;
    float deviates[TILE + 2 * NORMALS];
    normals((uint64_t)(pass->element - before), before + n, (uint64_t)pass->step, pass->noise_seed, deviates);
    for (int64_t i = 0; i < n; i++)
        gradients[i] = scale * gradients[i] + deviation * deviates[before + i];
}

/* Updates n elements of one run. The coefficients are in float64 and rounded here. With noise the gradient is scaled
 * before the rule's prologue. */
static void FN(run_strided)(fastopt_kernel kernel, int64_t n, int arrays, void *const *addresses,
                            const int64_t *strides, const double *coefficients, int row, const fastopt_pass *pass)
{
    const fastopt_storage *storage = pass->storage;
    const int noisy = pass->deviation >= 0;
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
    if (!copied && direct[GRADIENT] && !noisy) {
        kernel(n, addresses, coefs, pass);
        return;
    }
    const int zeroed = storage && storage->options & FASTOPT_ZERO_GRADS;
    const real scale = coefs[0];
    real tiles[MAX_STORED][TILE];
    void *tile[MAX_STORED];
    fastopt_pass own = *pass;
    fastopt_storage with_noise;
    own.prefetch &= !copied;
    if (noisy) {
        coefs[0] = 1;
        direct[GRADIENT] = 0;
        if (storage) {
            with_noise = *storage;
            with_noise.dtypes = dtypes;
            with_noise.options &= ~FASTOPT_ZERO_GRADS;
            own.storage = &with_noise;
        }
    }
    const int gradient = dtypes[GRADIENT];
    if (noisy)
        dtypes[GRADIENT] = COMPUTE;
    const int64_t tile_size = noisy ? NOISY_TILE : TILE;
    for (int64_t i = 0; i < n; i += tile_size) {
        const int64_t m = n - i < tile_size ? n - i : tile_size;
        own.element = pass->element + i;
        for (int j = 0; j < arrays; j++) {
            const int64_t stride = strides ? strides[j] : sizes[j];
            char *const from = (char *)addresses[j] + (sizes[j] ? i * stride : FN(offset)(FASTOPT_BLOCKS_SIGNED, i));
            tile[j] = direct[j] ? (void *)from : tiles[j];
            if (j == GRADIENT && gradient != dtypes[GRADIENT])
                FN(read_floats)(gradient, tiles[GRADIENT], from, stride, m);
            else if (!direct[j])
                FN(copy_strided)((char *)tiles[j], sizes[j], from, stride, m, sizes[j]);
        }
        for (int k = 0; noisy && own.prefetch && k < NOISY_TILE * sizes[GRADIENT]; k += 64)
            PREFETCH((const char *)addresses[GRADIENT] + i * sizes[GRADIENT] + 2048 + k);
        if (noisy)
            FN(add_noise)(tiles[GRADIENT], m, scale, &own);
        kernel(m, tile, coefs, &own);
        if (noisy && zeroed)
            memset(tiles[GRADIENT], 0, sizeof tiles[GRADIENT]);
        for (int j = 0; j < arrays; j++) {
            const int64_t stride = strides ? strides[j] : sizes[j];
            if (!direct[j] && (j != GRADIENT || zeroed))
                FN(copy_strided)((char *)addresses[j] + i * stride, stride, (char *)tiles[j], sizes[j], m, sizes[j]);
        }
    }
}
