/* Checks of the arguments of calls, done before anything is written. */
#include "library.h"

#include <float.h>
#include <math.h>

int check_threads(int threads)
{
    return threads < 1 || threads > FASTOPT_MAX_THREADS ? FASTOPT_BAD_THREADS : FASTOPT_OK;
}

int check_kind(int32_t rule, int32_t dtype, int32_t copies, int32_t threads)
{
    if (!fastopt_get_rule(rule))
        return FASTOPT_BAD_RULE;
    if (dtype != FASTOPT_FLOAT32 && dtype != FASTOPT_FLOAT64)
        return FASTOPT_BAD_DTYPE;
    if (copies < 1 || copies > rules[rule].rule.max_copies)
        return FASTOPT_BAD_COPIES;
    return check_threads(threads);
}

/* 1 if an index is none of a row. The highest bit of `outside` is that of a negative number: of an index, or of what is
 * left behind it. For each type, so that compilers vectorise it. */
#define LEAVE_ROWS(bits)                                                                                              \
    static int leave_rows_##bits(const fastopt_rows *rows)                                                            \
    {                                                                                                                 \
        const int##bits##_t *indices = rows->indices;                                                                 \
        uint64_t outside = 0;                                                                                         \
        for (int64_t i = 0; i < rows->count; i++)                                                                     \
            outside |= (uint64_t)indices[i] | ((uint64_t)rows->rows - 1 - (uint64_t)indices[i]);                      \
        return outside >> 63;                                                                                         \
    }
LEAVE_ROWS(32)
LEAVE_ROWS(64)

int check_rows(int32_t rule, int32_t dtype, int32_t copies, const fastopt_rows *rows, const int64_t *strides,
               const fastopt_storage *storage)
{
    if (rules[rule].sums)
        return FASTOPT_TENSOR_RULE;
    const int arrays = all_arrays_of(rule, copies, storage);
    const int states = rules[rule].rule.by_row ? rules[rule].rule.states : 0;
    if (rows->rows < 0 || rows->width < 0 || rows->count < 0 || rows->rows > UINT32_MAX || rows->count > UINT32_MAX
        || (rows->index_size != 4 && rows->index_size != 8) || rows->width > MAX_BYTES
        || exceeds_memory(rows->rows, rows->width * 8) || exceeds_memory(rows->count, rows->width * 8))
        return FASTOPT_BAD_SIZE;
    if (rows->duplicates < FASTOPT_SUM || rows->duplicates > FASTOPT_HOGWILD)
        return FASTOPT_BAD_VALUE;
    if (!strides || (rows->count && !rows->indices))
        return FASTOPT_NULL_POINTER;
    for (int j = 0; j < arrays; j++) {
        const int64_t width = j >= FIRST_STATE && j < FIRST_STATE + states ? 1 : rows->width;
        const int64_t bytes = width * size_of(storage ? storage->dtypes[j] : dtype);
        if (exceeds_memory(j == GRADIENT ? rows->count : rows->rows, strides[j])
            || (j != GRADIENT && rows->rows > 1 && strides[j] < bytes && strides[j] > -bytes))
            return FASTOPT_BAD_SIZE;
    }
    return (rows->index_size == 4 ? leave_rows_32 : leave_rows_64)(rows) ? FASTOPT_BAD_INDEX : FASTOPT_OK;
}

/* 1 if the number may be eta or gamma of noise: from 0 to 1e38. */
static int noise_parameter(double x) { return x >= 0 && x <= 1e38; }

int check_storage(const fastopt_storage *storage, int32_t rule, int32_t dtype, int32_t copies, int rows)
{
    if (!storage)
        return FASTOPT_OK;
    if (!storage->dtypes)
        return FASTOPT_NULL_POINTER;
    const int arrays = arrays_of(rule, copies), all = all_arrays_of(rule, copies, storage), options = storage->options;
    const int first_input = first_input_of(rule, copies);
    const int kept = options & (FASTOPT_STOCHASTIC | FASTOPT_KAHAN | FASTOPT_MASTER);
    const int32_t *dtypes = storage->dtypes, param = dtypes[0];
    if (options & ~255 || kept & (kept - 1) || (kept && param != FASTOPT_BFLOAT16 && param != FASTOPT_FLOAT16)
        || (rows && options & FASTOPT_ZERO_GRADS) || !(storage->average_decay >= 0 && storage->average_decay <= 1)
        || (options & FASTOPT_NOISE && !(noise_parameter(storage->noise_eta) && noise_parameter(storage->noise_gamma)))
        || (options & FASTOPT_CLIP && !(storage->clip_value >= 0)))
        return FASTOPT_BAD_STORAGE;
    for (int j = 0; j < all; j++) {
        if (dtypes[j] < FASTOPT_FLOAT32 || dtypes[j] > FASTOPT_BLOCKS_POSITIVE)
            return FASTOPT_BAD_DTYPE;
        if ((dtypes[j] == FASTOPT_FLOAT64) != (dtype == FASTOPT_FLOAT64)
            || (in_blocks(dtypes[j]) && (j < FIRST_STATE || j >= first_input || rows)))
            return FASTOPT_BAD_STORAGE;
    }
    if ((options & FASTOPT_MASTER && dtypes[arrays] != dtype) || (options & FASTOPT_KAHAN && dtypes[arrays] != param)
        || (options & FASTOPT_AVERAGE && dtypes[all - 1] != dtype))
        return FASTOPT_BAD_STORAGE;
    return FASTOPT_OK;
}

int check_job(const fastopt_job *job, int threads)
{
    int error = check_kind(job->rule, job->dtype, job->copies, threads);
    if (error)
        return error;
    if (job->runs < 0 || job->tensors < 0 || (job->runs && !job->tensors) || job->tensors > INT32_MAX
        || job->runs > MAX_BYTES / (int64_t)sizeof(void *))
        return FASTOPT_BAD_SIZE;
    if (!job->offsets || (job->runs && (!job->addresses || !job->tensor_of)))
        return FASTOPT_NULL_POINTER;
    if (job->tensors
        && (!job->parameter || !job->group || !job->steps || !job->hyper || !job->coefficients || !job->row_of
            || (!job->scalars && rules[job->rule].rule.scalars)))
        return FASTOPT_NULL_POINTER;
    if (has_stage(job) && job->runs && (!job->blocks || !job->sums))
        return FASTOPT_NULL_POINTER;
    if (job->rows && (job->tensors != 1 || job->runs != 1))
        return FASTOPT_BAD_SIZE;
    error = check_storage(job->storage, job->rule, job->dtype, job->copies, job->rows != NULL);
    if (error)
        return error;
    if (job->sum
        && (job->rows || job->strides
            || (job->storage
                && (job->storage->options & FASTOPT_ZERO_GRADS || job->storage->dtypes[GRADIENT] != job->dtype))))
        return FASTOPT_BAD_STORAGE;
    if (!job->rows)
        return rules[job->rule].rule.by_row ? FASTOPT_ROW_RULE : FASTOPT_OK;
    return check_rows(job->rule, job->dtype, job->copies, job->rows, job->strides, job->storage);
}

int check_coefficients(int32_t rule, int32_t dtype, int32_t copies, const double *coefficients)
{
    const double largest = dtype == FASTOPT_FLOAT32 ? FLT_MAX : DBL_MAX;
    for (int i = 0; i < copies * rules[rule].rule.coefficients; i++)
        if (!(fabs(coefficients[i]) <= largest))
            return FASTOPT_BAD_VALUE;
    return FASTOPT_OK;
}
