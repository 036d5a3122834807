/* The calls of fastopt.h that update, and those that describe the library. */
#include "library.h"

#include <stdlib.h>
#include <string.h>

const char *fastopt_version(void) { return FASTOPT_VERSION; }

const char *fastopt_message(int code)
{
    static const char *const messages[] = {
        [FASTOPT_OK] = "no error",
        [FASTOPT_BAD_RULE] = "unknown rule",
        [FASTOPT_BAD_DTYPE] = "unknown dtype",
        [FASTOPT_BAD_ISA] = "unknown instruction set, or one that this processor lacks",
        [FASTOPT_BAD_COPIES] = "a number of copies that the rule does not have",
        [FASTOPT_BAD_HYPER] = "a hyper-parameter that the rule does not have",
        [FASTOPT_BAD_VALUE] =
            "a hyper-parameter, grad_scale or option outside its domain, or one that must be set and was not",
        [FASTOPT_BAD_STEP] = "a step below 1, for steps are counted from 1, or one beyond 2^63 - 1",
        [FASTOPT_BAD_SIZE] =
            "a size, stride or number that is negative or larger than any memory, or a stride at which rows overlap",
        [FASTOPT_BAD_THREADS] = "a number of threads below 1 or above FASTOPT_MAX_THREADS",
        [FASTOPT_NULL_POINTER] = "a null pointer where there must be an array",
        [FASTOPT_NO_MEMORY] = "out of memory",
        [FASTOPT_BAD_STORAGE] = "dtypes or options of storage that do not go together",
        [FASTOPT_ROW_RULE] = "a rule whose states are of rows: fastopt_update_rows takes it",
        [FASTOPT_TENSOR_RULE] = "a rule that measures whole tensors, of which no rows can be updated",
        [FASTOPT_BAD_INDEX] = "an index below 0, or not below the number of rows",
    };
    return code >= 0 && code < (int)(sizeof messages / sizeof *messages) ? messages[code] : "unknown error code";
}

const char *fastopt_compiler(void)
{
#ifdef __clang__
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

/* Fills offsets[tensors + 1]; checks sizes and that no array is missing. */
static int find_offsets(int64_t tensors, const int64_t *sizes, void *const *arrays, int width, int64_t *offsets)
{
    const int64_t most = MAX_BYTES / (int64_t)sizeof(double);
    for (int64_t i = 0; i < tensors; i++) {
        if (sizes[i] < 0 || sizes[i] > most - offsets[i])
            return FASTOPT_BAD_SIZE;
        for (int j = 0; sizes[i] && j < width; j++)
            if (!arrays[i * width + j])
                return FASTOPT_NULL_POINTER;
        offsets[i + 1] = offsets[i] + sizes[i];
    }
    return FASTOPT_OK;
}

/* Measures each tensor and updates it. */
static int update_measured(fastopt_job *job, int threads)
{
    const int64_t tensors = job->tensors, row = rules[job->rule].rule.coefficients;
    int64_t *blocks = calloc((size_t)tensors + 1, sizeof *blocks);
    int32_t *numbers = malloc((size_t)tensors * sizeof *numbers);
    double *coefficients = malloc((size_t)(tensors * row) * sizeof *coefficients), *sums = NULL;
    if (blocks && numbers && coefficients) {
        for (int64_t i = 0; i < tensors; i++) {
            const int64_t size = job->offsets[i + 1] - job->offsets[i];
            blocks[i + 1] = blocks[i] + (size + FASTOPT_NORM_BLOCK - 1) / FASTOPT_NORM_BLOCK;
            numbers[i] = (int32_t)i;
            memcpy(coefficients + i * row, job->coefficients, (size_t)row * sizeof *coefficients);
        }
        sums = malloc((size_t)(blocks[tensors] * rules[job->rule].sums + 1) * sizeof *sums);
    }
    if (sums) {
        job->blocks = blocks;
        job->sums = sums;
        job->coefficients = coefficients;
        job->tensor_of = job->row_of = numbers;
        IN_IEEE_ARITHMETIC;
        measure_tensors(job, 1, threads);
        update_elements(job, 0, job->offsets[tensors], threads);
    }
    free(blocks);
    free(numbers);
    free(coefficients);
    free(sums);
    return sums ? FASTOPT_OK : FASTOPT_NO_MEMORY;
}

static int update_tensors(int32_t rule, int32_t dtype, int32_t copies, int64_t tensors, const int64_t *sizes,
                          void *const *arrays, const double *coefficients, const fastopt_storage *storage, int64_t t,
                          int32_t threads)
{
    int error = check_kind(rule, dtype, copies, threads);
    if (!error)
        error = check_storage(storage, rule, dtype, copies, 0);
    if (error)
        return error;
    if (rules[rule].rule.by_row)
        return FASTOPT_ROW_RULE;
    if (tensors < 0)
        return FASTOPT_BAD_SIZE;
    if (tensors == 0)
        return FASTOPT_OK;
    if (!sizes || !arrays || !coefficients)
        return FASTOPT_NULL_POINTER;
    error = check_coefficients(rule, dtype, copies, coefficients);
    if (error)
        return error;
    int64_t *offsets = calloc((size_t)tensors + 1, sizeof *offsets);
    int32_t *zeros = calloc((size_t)tensors, sizeof *zeros);
    if (!offsets || !zeros)
        error = FASTOPT_NO_MEMORY;
    else
        error = find_offsets(tensors, sizes, arrays, width_of(rule, copies, storage), offsets);
    if (!error) {
        fastopt_job job = {.rule = rule, .dtype = dtype, .copies = copies, .runs = tensors, .addresses = arrays,
                           .offsets = offsets, .coefficients = (double *)coefficients, .storage = storage,
                           .tensors = tensors, .tensor_of = zeros, .parameter = zeros, .row_of = zeros, .steps = &t};
        if (has_stage(&job)) {
            error = update_measured(&job, threads);
        } else {
            IN_IEEE_ARITHMETIC;
            update_elements(&job, 0, offsets[tensors], threads);
        }
    }
    free(offsets);
    free(zeros);
    return error;
}

int fastopt_update(int32_t rule, int32_t dtype, int32_t copies, int64_t tensors, const int64_t *sizes,
                   void *const *arrays, const double *coefficients, int32_t threads)
{
    return update_tensors(rule, dtype, copies, tensors, sizes, arrays, coefficients, NULL, 0, threads);
}

int fastopt_update_stored(int32_t rule, int32_t dtype, int32_t copies, int64_t tensors, const int64_t *sizes,
                          void *const *arrays, const double *coefficients, const fastopt_storage *storage, int64_t t,
                          int32_t threads)
{
    if (!storage)
        return FASTOPT_NULL_POINTER;
    if (t < 1)
        return FASTOPT_BAD_STEP;
    return update_tensors(rule, dtype, copies, tensors, sizes, arrays, coefficients, storage, t, threads);
}

int fastopt_update_rows(int32_t rule, int32_t dtype, int32_t copies, const fastopt_rows *rows, void *const *addresses,
                        const int64_t *strides, const double *coefficients, int32_t threads)
{
    int error = check_kind(rule, dtype, copies, threads);
    if (!error && (!rows || !addresses || !coefficients))
        error = FASTOPT_NULL_POINTER;
    if (!error)
        error = check_coefficients(rule, dtype, copies, coefficients);
    if (!error)
        error = check_rows(rule, dtype, copies, rows, strides, NULL);
    if (error || !rows->count || !rows->width)
        return error;
    for (int j = 0; j < arrays_of(rule, copies); j++)
        if (!addresses[j])
            return FASTOPT_NULL_POINTER;
    fastopt_job job = {.rule = rule, .dtype = dtype, .copies = copies, .addresses = addresses, .strides = strides,
                       .coefficients = (double *)coefficients, .rows = rows};
    row_space *space = take_space(space_of(&job));
    if (!space)
        return FASTOPT_NO_MEMORY;
    IN_IEEE_ARITHMETIC;
    update_rows(&job, space, threads);
    leave_space(space);
    return FASTOPT_OK;
}
