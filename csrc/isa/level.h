/* The tables of functions that each instruction-set level has, from its instances of *.dispatch.c. */
#ifndef FASTOPT_LEVEL_H
#define FASTOPT_LEVEL_H

#include <math.h>
#include <stdint.h>

#include "../internal.h"
#include "limits.h"

enum {
#define NUMBER(kernel, fold) number_##kernel,
    FASTOPT_KERNELS(NUMBER)
#undef NUMBER
    KERNELS
};

/* Arrays of the elements that come next: where they are, and the bytes of an element; 0 of blocks. */
typedef struct {
    int arrays, sizes[MAX_STORED];
    const char *at[MAX_STORED];
} upcoming;

/* A pass over some elements of a tensor: all that kernels need beside arrays and coefficients. */
typedef struct {
    int prefetch;
    const fastopt_storage *storage; /* NULL if every array is of the compute dtype */
    const fastopt_sum *sum;         /* NULL if a gradient is one array */
    int64_t element;                /* the number of the first element */
    int64_t step;
    double limit;                   /* of the scaled gradient's magnitude; infinity if there is none */
    double deviation;               /* of the gradient noise; negative if there is none */
    uint64_t noise_seed;
    int first_input, end_input;     /* the arrays between these are only read */
    double *lanes;                  /* where a kernel that measures adds up: sixteen for each sum; NULL for an update */
} fastopt_pass;

/* 1 if gradients are prepared in tiles, before kernels run: scaled, clipped, with noise. */
static inline int prepares(const fastopt_pass *pass) { return pass->deviation >= 0 || pass->limit < INFINITY; }

/* 1 if array j, which is not the gradient, is written. */
static inline int writes(const fastopt_pass *pass, int j) { return j < pass->first_input || j >= pass->end_input; }

typedef void (*fastopt_kernel)(int64_t n, void *const *arrays, const void *coefficients, const fastopt_pass *pass);
/* `arrays` includes those that storage adds; `row` is the number of coefficients. */
typedef void (*fastopt_runner)(fastopt_kernel kernel, int64_t n, int arrays, void *const *addresses,
                               const int64_t *strides, const double *coefficients, int row, const fastopt_pass *pass);

/* A lookup: its row and its place among the lookups. 32 bits take half the memory of 64 and sort twice as fast; calls
 * refuse more rows or lookups. */
typedef struct {
    uint32_t row, place;
} fastopt_lookup;

/* A row's gradients are added up in a tree: TERMS of them one after the other, in their order, then the sums
 * of these groups in the same way, until one is left. It is the same for any number of threads. */
#define TERMS 32
#define TREE_DEPTH 6          /* levels above the first: 32^7 lookups are more than there can be */
#define PIECE (TERMS * TERMS) /* lookups that a thread adds up, of a row that several do */

typedef struct fastopt_segments fastopt_segments;
/* One rule's loop over the rows of lookups [begin, end), which are whole segments. */
typedef void (*fastopt_row_loop)(const fastopt_segments *s, int64_t begin, int64_t end, const void *coefficients);

/* Lookups in the order in which they are updated: those of a row are together, and called its segment. */
struct fastopt_segments {
    const fastopt_rows *rows;
    const fastopt_lookup *lookups;
    int64_t end;      /* of all lookups */
    const void *sums; /* of each whole piece of a segment, if other threads have added them up; else NULL */
    int arrays, states, coefficients; /* arrays includes those that storage adds; states is of one copy */
    void *const *addresses;
    const int64_t *strides;
    const double *folded;
    fastopt_pass pass; /* at the parameter's first element */
    fastopt_row_loop loop; /* the rule's own, or NULL */
};
/* Updates a row's states, an element each, by its mean square; writes the coefficients of the update of its
 * elements. */
typedef void (*fastopt_row_fold)(double square, void *states, const void *folded, void *coefficients);
/* Updates the rows of lookups [begin, end), which are whole segments. */
typedef void (*fastopt_row_runner)(fastopt_kernel kernel, fastopt_row_fold fold, const fastopt_segments *s,
                                   int64_t begin, int64_t end);
/* Writes the sum of the gradients of lookups [first, last), for all columns. */
typedef void (*fastopt_row_adder)(const fastopt_segments *s, int64_t first, int64_t last, void *sum);

/* The arguments of fastopt_stream_rows. */
typedef struct {
    const int64_t *rows, *starts, *places;
    int64_t width;
    int arrays;
    float *const *addresses;
} fastopt_row_stream;

/* The loops for one compute type, from an instance of kernels.dispatch.c. */
typedef struct {
    fastopt_kernel kernels[KERNELS][FASTOPT_MAX_COPIES]; /* by kernel and copies - 1 */
    fastopt_kernel stored[KERNELS][FASTOPT_MAX_COPIES];  /* the same for arrays in storage formats */
    fastopt_kernel measures[KERNELS];        /* the reading pass of a rule with a stage over tensors, else NULL */
    fastopt_kernel stored_measures[KERNELS];
    fastopt_runner run;
    fastopt_row_runner run_rows;
    fastopt_row_adder sum_row;
    fastopt_row_fold row_folds[KERNELS]; /* NULL for a rule without states by row */
    fastopt_row_loop row_loops[KERNELS]; /* NULL for a rule without a loop of its own */
    double (*square_sum)(int32_t dtype, int64_t n, const char *from, int64_t stride);
} fastopt_loops;

/* The streams, from an instance of stream.dispatch.c. */
typedef struct {
    void (*stream)(int64_t n, int arrays, float *const *addresses, int ahead);
    float (*read)(int64_t n, int arrays, float *const *addresses, int ahead);
    void (*stream_rows)(const fastopt_row_stream *s, int64_t begin, int64_t end);
} fastopt_streams;

typedef struct {
    const char *name;
    const fastopt_loops *loops[2]; /* by compute type: FASTOPT_FLOAT32, FASTOPT_FLOAT64 */
    const fastopt_streams *streams;
} fastopt_level;

#endif
