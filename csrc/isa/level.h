/* What one instruction-set level offers: tables of functions, the same from each level's instances of *.dispatch.c. */
#ifndef FASTOPT_LEVEL_H
#define FASTOPT_LEVEL_H

#include <stdint.h>

#include "fastopt.h"
#include "rule_table.h"

enum {
#define NUMBER(kernel, fold) number_##kernel,
    FASTOPT_KERNELS(NUMBER)
#undef NUMBER
    KERNELS
};

/* What a pass over some elements of a tensor needs to know beside arrays and coefficients. */
typedef struct {
    int prefetch;
    const fastopt_storage *storage; /* NULL: every array is of the compute dtype */
    int64_t element;                /* the number of the first */
    int64_t step;
} fastopt_pass;

typedef void (*fastopt_kernel)(int64_t n, void *const *arrays, const void *coefficients, const fastopt_pass *pass);
/* `arrays` counts those that storage adds too; `row` is how many coefficients there are. */
typedef void (*fastopt_runner)(fastopt_kernel kernel, int64_t n, int arrays, void *const *addresses,
                               const int64_t *strides, const double *coefficients, int row, const fastopt_pass *pass);

/* A lookup: the row that it is of, and its place among the lookups. Half as long as with 64 bits, and twice as fast to
 * sort; that many rows or lookups are refused. */
typedef struct {
    uint32_t row, place;
} fastopt_lookup;

/* Lookups by segments, each of one row: segment u is lookups[starts[u]] to lookups[starts[u + 1] - 1]. */
typedef struct {
    const fastopt_rows *rows;
    const fastopt_lookup *lookups;
    const int64_t *starts;
    int64_t end; /* of the lookups */
    int arrays, states, coefficients; /* arrays: all; states: of one copy of a rule of rows */
    void *const *addresses;
    const int64_t *strides;
    const double *folded;
    fastopt_pass pass; /* of the parameter's first element */
} fastopt_segments;
/* What a row's mean square makes of its states, an element each, in `coefficients`: those of an update. */
typedef void (*fastopt_row_fold)(double square, void *states, const void *folded, void *coefficients);
typedef void (*fastopt_row_runner)(fastopt_kernel kernel, fastopt_row_fold fold, const fastopt_segments *s,
                                   int64_t begin, int64_t end);

/* The traffic of an update of rows whose order is known: see fastopt_stream_rows. */
typedef struct {
    const int64_t *rows, *starts, *places;
    int64_t width;
    int arrays;
    float *const *addresses;
} fastopt_row_stream;

/* The loops for one compute type, from an instance of kernels.dispatch.c. */
typedef struct {
    fastopt_kernel kernels[KERNELS][FASTOPT_MAX_COPIES]; /* by kernel and copies - 1 */
    fastopt_kernel stored[KERNELS][FASTOPT_MAX_COPIES];  /* the same for arrays as storage says */
    fastopt_runner run;
    fastopt_row_runner run_rows;
    fastopt_row_fold row_folds[KERNELS]; /* NULL for a rule of elements */
    double (*square_sum)(int32_t dtype, int64_t n, const char *from, int64_t stride);
} fastopt_loops;

/* The ceiling's, from an instance of stream.dispatch.c. */
typedef struct {
    void (*stream)(int64_t n, int arrays, float *const *addresses, int ahead);
    void (*stream_rows)(const fastopt_row_stream *s, int64_t begin, int64_t end);
} fastopt_streams;

typedef struct {
    const char *name;
    const fastopt_loops *loops[2]; /* by compute type: FASTOPT_FLOAT32, FASTOPT_FLOAT64 */
    const fastopt_streams *streams;
} fastopt_level;

#endif
