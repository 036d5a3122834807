/* The calls of the Python package beside those of fastopt.h: jobs, which are steps over strided arrays with a step count
 * and a group for each parameter, the norm, and the streams that benchmarks compare with.
 *
 * It is not installed, and nothing of it is promised: the library shows these calls because the extension of Python is
 * another file, which is built and shipped with it. The extension's declarations are read from here and from fastopt.h.
 */
#ifndef FASTOPT_INTERNAL_H
#define FASTOPT_INTERNAL_H

#include "fastopt.h"

/* ---- steps ---- */

/* The arrays of one update. A *tensor* is a parameter with its gradient and states; a *run* is a one-dimensional,
 * evenly strided part of a tensor (a dense tensor is one run). The tables' contents are taken as they are; tables
 * without entries may be NULL. */
typedef struct {
    int32_t rule;
    int32_t dtype;              /* FASTOPT_FLOAT32 or FASTOPT_FLOAT64: that of computing, and of every array */
    int32_t copies;             /* of the rule's states: 1, or AggMo's number of betas */
    int64_t runs;
    int64_t tensors;
    void *const *addresses;     /* [runs][arrays]: parameter, gradient, states, what storage adds */
    const int64_t *strides;     /* [runs][arrays], in bytes; NULL where every run is contiguous */
    const int64_t *offsets;     /* [runs + 1]: elements before each run, and in all */
    const int32_t *tensor_of;   /* [runs]: the run's tensor */
    const int32_t *parameter;   /* [tensors]: the tensor's place in group, steps and scalars */
    const int32_t *group;       /* by parameter: its row of hyper */
    int64_t *steps;             /* by parameter: steps done so far; advanced by the call */
    double *scalars;            /* by parameter: the rule's scalars; advanced by the call; NULL where it has none */
    const double *hyper;        /* [groups][copies][hyper-parameters], in the rule's order */
    double *coefficients;       /* work space: [tensors][copies][coefficients] */
    int32_t *row_of;            /* work space: [tensors] */
    const fastopt_rows *rows;   /* NULL, or: one tensor and one run, whose addresses are those of the arrays' first rows
                                 * and whose strides are those from row to row; within a row elements are contiguous */
    const fastopt_storage *storage; /* NULL: every array is of the dtype; its first_element is not looked at */
    const int64_t *elements;    /* [runs]: the number of the run's first element; NULL where no number is needed */
} fastopt_job;

/* One step: advances the tensors' step counts, folds hyper-parameters into coefficients, updates the arrays by at most so
 * many threads. FASTOPT_BAD_STEP where a count is negative, or could not be advanced. */
FASTOPT_API int fastopt_step(fastopt_job *jobs, int64_t n, double grad_scale, int32_t threads);

/* The first part of a step: step counts and coefficients. */
FASTOPT_API int fastopt_advance(fastopt_job *jobs, int64_t n, double grad_scale);

/* Some of the rest: elements [begin, end) of all runs', of tensors in blocks whole blocks, of a job with rows all. */
FASTOPT_API int fastopt_update_part(const fastopt_job *job, int64_t begin, int64_t end, int32_t threads);

/* ---- the norm ---- */

/* Sums of squares over blocks of FASTOPT_NORM_BLOCK elements of each run, in float64; the same bits whatever the
 * number of threads. Elements are floats of 16 bits or more. blocks[run] is the number of blocks before the run. */
enum { FASTOPT_NORM_BLOCK = 4096 };
FASTOPT_API int fastopt_square_sums(int32_t dtype, int64_t runs, void *const *addresses, const int64_t *strides,
                                    const int64_t *offsets, const int64_t *blocks, double *sums, int32_t threads);

/* ---- arithmetic ---- */

/* Arithmetic between the two, in the calling thread, is IEEE 754's, as it is within all calls: see "Bits". The first
 * returns what the second is to be given. */
FASTOPT_API uint64_t fastopt_enter_ieee(void);
FASTOPT_API void fastopt_leave_ieee(uint64_t before);

/* ---- streams ---- */

/* The ceiling, for benchmarks: reads 2 to 5 float32 arrays of n elements and writes all but the second, with no more
 * arithmetic than keeps the compiler from leaving them out; `ahead` is how far to prefetch, in elements (0: not at
 * all). */
FASTOPT_API int fastopt_stream(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads);

/* The same for rows, whose order is given: segment u is of row rows[u] and has the gradients places[starts[u]] to
 * places[starts[u + 1] - 1]. Of 2 to 5 float32 arrays with rows of `width`, the second is that of gradients. */
FASTOPT_API int fastopt_stream_rows(int64_t segments, const int64_t *rows, const int64_t *starts,
                                    const int64_t *places, int64_t width, int32_t arrays, float *const *addresses,
                                    int32_t threads);

#endif
