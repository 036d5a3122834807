/* fastopt: fused optimizer updates. The C interface, in plain C types.
 *
 * Every call returns FASTOPT_OK or an error code; fastopt_message tells it in words. Nothing is written unless the
 * call's arguments passed its checks. Sizes are 64-bit. Calls from several threads at once are safe as long as they
 * update different arrays.
 */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FASTOPT_API __attribute__((visibility("default")))
#else
#define FASTOPT_API
#endif

enum { FASTOPT_OK = 0, FASTOPT_BAD_RULE = 1, FASTOPT_BAD_DTYPE = 2, FASTOPT_BAD_ISA = 3, FASTOPT_BAD_COPIES = 4 };
enum { FASTOPT_FLOAT32 = 0, FASTOPT_FLOAT64 = 1 };

/* The arrays of one update. A *tensor* is a parameter with its gradient and states; a *run* is a one-dimensional,
 * evenly strided part of a tensor (a dense tensor is one run). */
typedef struct {
    int32_t rule;               /* as found by fastopt_find_rule */
    int32_t dtype;              /* of every array: FASTOPT_FLOAT32 or FASTOPT_FLOAT64 */
    int32_t threads;            /* at most so many */
    int32_t copies;             /* of the rule's states: 1, or AggMo's number of betas */
    int64_t runs;
    int64_t tensors;
    void *const *addresses;     /* [runs][2 + copies*states]: parameter, gradient, states */
    const int64_t *strides;     /* [runs][2 + copies*states], in bytes; NULL where every run is contiguous */
    const int64_t *offsets;     /* [runs + 1]: elements before each run, and in all */
    const int32_t *tensor_of;   /* [runs]: the run's tensor */
    const int32_t *parameter;   /* [tensors]: the tensor's place in group, steps and scalars */
    const int32_t *group;       /* by parameter: its row of hyper */
    int64_t *steps;             /* by parameter: steps done so far; advanced by the call */
    double *scalars;            /* by parameter: the rule's scalars; advanced by the call; NULL where it has none */
    const double *hyper;        /* [groups][copies][hyper-parameters], in the rule's order */
    double grad_scale;
    double *coefficients;       /* work space: [tensors][copies][3 + coefficients] */
    int32_t *row_of;            /* work space: [tensors] */
} fastopt_job;

/* One step: advances the tensors' step counts, folds hyper-parameters into coefficients, updates the arrays. */
FASTOPT_API int fastopt_step(fastopt_job *jobs, int64_t n);

/* Folds a row of hyper-parameters into coefficients for step t (1-based), the prologue's three first. */
FASTOPT_API int fastopt_fold(int32_t rule, int64_t t, double grad_scale, const double *hyper, double *scalars,
                             double *coefficients);

/* Sums of squares over blocks of FASTOPT_NORM_BLOCK elements of each run, in float64; the same bits whatever the
 * number of threads. blocks[run] is the number of blocks before the run. */
enum { FASTOPT_NORM_BLOCK = 4096 };
FASTOPT_API int fastopt_square_sums(int32_t dtype, int64_t runs, void *const *addresses, const int64_t *strides,
                                    const int64_t *offsets, const int64_t *blocks, double *sums, int32_t threads);

/* The ceiling: reads `arrays` float32 arrays of n elements and writes all but the second, with no more arithmetic
 * than keeps the compiler from leaving them out; `ahead` is how far to prefetch, in elements (0: not at all). */
FASTOPT_API int fastopt_stream(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads);

/* The rule's number, or -1. Rules that differ only in defaults share a kernel: adamw is found as adam. */
FASTOPT_API int32_t fastopt_find_rule(const char *name);

/* The instruction set in use, the levels compiled, and those that this processor has (names, comma-separated). */
FASTOPT_API const char *fastopt_isa(void);
FASTOPT_API const char *fastopt_isa_compiled(void);
FASTOPT_API const char *fastopt_isa_supported(void);
/* Chooses a level by name; NULL or "" takes the highest that the processor has. */
FASTOPT_API int fastopt_set_isa(const char *name);

FASTOPT_API int fastopt_has_openmp(void);
FASTOPT_API const char *fastopt_compiler(void);
FASTOPT_API const char *fastopt_message(int code);

#ifdef __cplusplus
}
#endif
#endif
