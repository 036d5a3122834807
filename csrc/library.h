/* What the files of the library share, all of it hidden from whoever links to it. */
#ifndef FASTOPT_LIBRARY_H
#define FASTOPT_LIBRARY_H

#include <stddef.h>

#include "arithmetic.h"
#include "internal.h"
#include "isa/level.h"
#include "isa/limits.h"

#pragma GCC visibility push(hidden)

/* ---- rules.c ---- */

typedef void (*fold_function)(double t, const double *hyper, double *scalars, double *coefficients);

typedef struct {
    fastopt_rule rule;
    int kernel;
    fold_function fold;
    int decoupled; /* weight_decay is, and there is no other */
    double scalars[FASTOPT_MAX_SCALARS]; /* before the first step */
} rule_entry;
extern const rule_entry rules[];

void fold_into(int rule, double t, double grad_scale, const double *hyper, double *scalars, double *c);

/* ---- isa.c ---- */

extern const fastopt_level *chosen;
int prefetch_pays(int64_t bytes);

/* ---- threads.c ---- */

/* Below so many elements for each thread, starting a thread costs more than it brings. */
#define GRAIN 16384
/* Parts begin at multiples of so many elements, so that threads share few cache lines. */
#define ALIGN 64
/* Threads take parts of so many elements as they come free: on a busy machine one is often slower than another. */
#define SHARE 262144
/* The same for rows, of which some have many more lookups than others. */
#define ROW_SHARE 16384

typedef void (*part_function)(void *context, int64_t begin, int64_t end);
void share_out(part_function function, void *context, int64_t n, int64_t share, int64_t align, int threads);

/* Does the parts of [0, n) by threads, of which each has at least `grain` to do, at most `share` at a time. The calling
 * thread's arithmetic is the caller's to set. */
static inline void parallel(part_function function, void *context, int64_t n, int64_t grain, int64_t share,
                            int64_t align, int threads)
{
    if (threads > n / grain)
        threads = (int)(n / grain);
    if (threads > 1)
        share_out(function, context, n, share, align, threads);
    else if (n > 0)
        function(context, 0, n);
}

/* ---- checks.c ---- */

/* More bytes than any process has addresses for: products of sizes that are below it do not overflow. */
#define MEMORY ((int64_t)1 << 56)

/* Whether so many things, each of so many bytes or at such a stride, are more than that. */
static inline int beyond_memory(int64_t n, int64_t bytes)
{
    return n > 0 && (n > MEMORY || bytes > MEMORY / n || bytes < -(MEMORY / n));
}

int check_threads(int threads);
int check_kind(int32_t rule, int32_t dtype, int32_t copies, int32_t threads);
/* Dtypes and options that go together: float64 throughout, or 16 and 32 bits, and states in blocks. */
int check_storage(const fastopt_storage *storage, int32_t rule, int32_t dtype, int32_t copies, int rows);
int check_rows(int32_t rule, int32_t dtype, int32_t copies, const fastopt_rows *rows, const int64_t *strides,
               const fastopt_storage *storage);
/* Coefficients that the compute type can hold: infinity times a gradient of 0 would be NaN. */
int check_coefficients(int32_t rule, int32_t dtype, int32_t copies, const double *coefficients);
/* But for step counts, which `advance` is to find as it needs them. */
int check_job(const fastopt_job *job, int threads);

/* ---- step.c, rows.c ---- */

/* The elements [begin, end) of a job's runs, whose coefficients are folded. */
void update_elements(const fastopt_job *job, int64_t begin, int64_t end, int threads);
/* The rows of a job, whose coefficients are folded, in a work space for its lookups, which malloc made. */
void update_rows(const fastopt_job *job, fastopt_lookup *space, int threads);
fastopt_lookup *lookup_space(int64_t n);

#pragma GCC visibility pop

/* ---- of arrays ---- */

/* How many arrays a tensor has: of the update, and with those that storage adds. */
static inline int arrays_of(int rule, int copies) { return 2 + copies * rules[rule].rule.states; }
static inline int all_arrays_of(int rule, int copies, const fastopt_storage *storage)
{
    const int options = storage ? storage->options : 0;
    return arrays_of(rule, copies) + !!(options & (FASTOPT_KAHAN | FASTOPT_MASTER)) + !!(options & FASTOPT_AVERAGE);
}

static inline int in_blocks(int32_t dtype)
{
    return dtype == FASTOPT_BLOCKS_SIGNED || dtype == FASTOPT_BLOCKS_POSITIVE;
}
static inline int64_t size_of(int32_t dtype)
{
    return dtype == FASTOPT_FLOAT64 ? 8 : dtype == FASTOPT_FLOAT32 ? 4 : 2;
}

static inline int64_t row_at(const fastopt_rows *rows, int64_t i)
{
    return rows->index_size == 4 ? ((const int32_t *)rows->indices)[i] : ((const int64_t *)rows->indices)[i];
}

/* The run that holds element `at`, by bisection: empty runs hold none. */
static inline int64_t find_run(const int64_t *offsets, int64_t runs, int64_t at)
{
    int64_t low = 0, high = runs - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (offsets[middle] <= at)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

#endif
