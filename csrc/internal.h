/* The Python package's own calls: jobs (steps over strided arrays, with a step count and a group for each parameter),
 * the norm, and the streams that benchmarks compare with.
 *
 * This header is not installed and promises nothing. The library exports these calls because the Python extension is a
 * file of its own, built and shipped with the library. The build reads the extension's declarations from here and from
 * fastopt.h.
 */
#ifndef FASTOPT_INTERNAL_H
#define FASTOPT_INTERNAL_H

#include "fastopt.h"

/* ---- steps ---- */

/* A gradient that is the sum of several arrays of the compute dtype, which are added within the pass. All are contiguous
 * and aligned. Tables of jobs have the first. Behind array k the last two sums are added joins[k] times:
 * 0, 0, 2 makes a + (b + c), and 0, 1, 1 makes (a + b) + c. At most 11 sums are left at once. */
typedef struct {
    int64_t arrays;
    const int64_t *distances;   /* [arrays]: bytes from the first one to each */
    const int32_t *joins;       /* [arrays] */
} fastopt_sum;

/* The arrays of one update. A *tensor* is a parameter with its gradient, states and inputs. A *run* is a
 * one-dimensional, evenly strided part of a tensor; a dense tensor is one run. The contents of tables are not checked.
 * A table without entries may be NULL. */
typedef struct {
    int32_t rule;
    int32_t dtype;              /* FASTOPT_FLOAT32 or FASTOPT_FLOAT64: of the arithmetic */
    int32_t copies;             /* of the rule's states: 1, or AggMo's number of betas */
    int64_t runs;
    int64_t tensors;
    void *const *addresses;     /* [runs][arrays]: parameter, gradient, states, inputs, what storage adds, single
                                 * states */
    const int64_t *strides;     /* [runs][arrays], in bytes; NULL if every run is contiguous; single states have none */
    const int64_t *offsets;     /* [runs + 1]: the elements before each run, and of all */
    const int32_t *tensor_of;   /* [runs]: the run's tensor */
    const int32_t *parameter;   /* [tensors]: the tensor's index in group, steps and scalars */
    const int32_t *group;       /* by parameter: its row of hyper */
    int64_t *steps;             /* by parameter: steps done so far; the call advances them */
    const double *factors;      /* by parameter: of its gradient in this step, beside grad_scale; NULL: 1 */
    double *scalars;            /* by parameter: the rule's scalars; the call advances them; NULL if it has none */
    const double *hyper;        /* [groups][copies][hyper-parameters], in the rule's order */
    double *coefficients;       /* work space: [tensors][copies][coefficients] */
    int32_t *row_of;            /* work space: [tensors] */
    const fastopt_rows *rows;   /* NULL for a dense job. With rows it has one tensor and one run: addresses are of the
                                 * arrays' first rows, strides go from row to row, a row is contiguous */
    const fastopt_storage *storage; /* NULL if every array is of the dtype; its first_element is ignored */
    const int64_t *elements;    /* [runs]: the number of the run's first element; NULL if numbers are not needed */
    const int64_t *blocks;      /* [runs + 1]: the blocks of FASTOPT_NORM_BLOCK elements before each run, and all; NULL
                                 * if the rule has no stage over tensors */
    double *sums;               /* work space: [blocks][the stage's sums]; else NULL */
    const fastopt_sum *sum;     /* of gradients; NULL: each is one array. Else every run is contiguous */
} fastopt_job;

/* Does one step: advances the tensors' step counts, folds hyper-parameters into coefficients and updates the
 * arrays, by at most so many threads. Returns FASTOPT_BAD_STEP if a count is negative or cannot be advanced. */
FASTOPT_API int fastopt_step(fastopt_job *jobs, int64_t n, double grad_scale, int32_t threads);

/* Does the first part of a step: advances step counts and folds coefficients. */
FASTOPT_API int fastopt_advance(fastopt_job *jobs, int64_t n, double grad_scale);

/* Does a part of the rest: updates elements [begin, end), counted over all runs. Of tensors in blocks it updates
 * the blocks that begin there; of a job with rows all rows. A rule with a stage over tensors updates all elements
 * or none. */
FASTOPT_API int fastopt_update_part(const fastopt_job *job, int64_t begin, int64_t end, int32_t threads);

/* ---- threads ---- */

/* A function that does the elements [begin, end) of some work; Numba compiles such too. */
typedef void (*fastopt_part)(void *context, int64_t begin, int64_t end);

/* Calls the function for parts of [0, n), by at most `threads` threads with at least `grain` elements each. They take at
 * most `share` at a time, from a multiple of `align` on. Arguments are not checked. The threads' arithmetic is IEEE
 * 754's; the calling thread's is the caller's to set. */
FASTOPT_API void fastopt_run_parts(fastopt_part part, void *context, int64_t n, int64_t grain, int64_t share,
                                   int64_t align, int32_t threads);

/* ---- the norm ---- */

/* Writes the sum of squares of each block of FASTOPT_NORM_BLOCK elements of each run, in float64, with the same
 * bits for any number of threads. The dtype has 16 bits or more. blocks[run] is the number of blocks before the
 * run. */
enum { FASTOPT_NORM_BLOCK = 4096 };
FASTOPT_API int fastopt_square_sums(int32_t dtype, int64_t runs, void *const *addresses, const int64_t *strides,
                                    const int64_t *offsets, const int64_t *blocks, double *sums, int32_t threads);

/* ---- arithmetic ---- */

/* Between these two calls the thread's arithmetic is IEEE 754's, as it is within all calls (see "Bits" in
 * fastopt.h). The first returns the mode before, which the second takes. */
FASTOPT_API uint64_t fastopt_enter_ieee(void);
FASTOPT_API void fastopt_leave_ieee(uint64_t before);

/* ---- copies ---- */

/* Copies bytes of arrays that do not overlap, past the caches: for what other processes read next. */
FASTOPT_API void fastopt_copy(void *to, const void *from, int64_t bytes);

/* ---- streams ---- */

/* Reads 2 to 6 float32 arrays of n elements and writes all but the second, with the least arithmetic that the
 * compiler does not remove. Benchmarks take its time for the ceiling. `ahead` is how many elements ahead to
 * prefetch; 0 is none. */
FASTOPT_API int fastopt_stream(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads);

/* Only reads them, all of them. */
FASTOPT_API int fastopt_stream_reads(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead,
                                     int32_t threads);

/* Streams rows in a given order: segment u is of row rows[u] and has the gradients places[starts[u]] to
 * places[starts[u + 1] - 1]. The 2 to 6 float32 arrays have rows of `width` elements; the second holds the
 * gradients. */
FASTOPT_API int fastopt_stream_rows(int64_t segments, const int64_t *rows, const int64_t *starts,
                                    const int64_t *places, int64_t width, int32_t arrays, float *const *addresses,
                                    int32_t threads);

#endif
