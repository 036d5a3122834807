/* Sums of squares, by blocks: the order of additions does not depend on the number of threads. */
#include "library.h"

typedef struct {
    int dtype;
    int64_t runs;
    void *const *addresses;
    const int64_t *strides, *offsets, *blocks;
    double *sums;
} norm_context;

static void norm_part(void *context, int64_t begin, int64_t end)
{
    const norm_context *c = context;
    for (int64_t r = find_run(c->blocks, c->runs, begin); begin < end; r++)
        for (; begin < end && begin < c->blocks[r + 1]; begin++) {
            int64_t first = (begin - c->blocks[r]) * FASTOPT_NORM_BLOCK, n = c->offsets[r + 1] - c->offsets[r] - first;
            c->sums[begin] = active->loops[c->dtype == FASTOPT_FLOAT64]->square_sum(
                c->dtype, n < FASTOPT_NORM_BLOCK ? n : FASTOPT_NORM_BLOCK,
                (char *)c->addresses[r] + first * c->strides[r], c->strides[r]);
        }
}

int fastopt_square_sums(int32_t dtype, int64_t runs, void *const *addresses, const int64_t *strides,
                        const int64_t *offsets, const int64_t *blocks, double *sums, int32_t threads)
{
    if (dtype < FASTOPT_FLOAT32 || dtype > FASTOPT_FLOAT16)
        return FASTOPT_BAD_DTYPE;
    if (runs < 0 || exceeds_memory(runs, sizeof *addresses))
        return FASTOPT_BAD_SIZE;
    if (runs && (!addresses || !strides || !offsets || !blocks || !sums))
        return FASTOPT_NULL_POINTER;
    int error = check_threads(threads);
    if (error)
        return error;
    norm_context context = {dtype, runs, addresses, strides, offsets, blocks, sums};
    IN_IEEE_ARITHMETIC;
    if (runs)
        parallel_for(norm_part, &context, blocks[runs], GRAIN / FASTOPT_NORM_BLOCK, SHARE, 1, threads);
    return FASTOPT_OK;
}
