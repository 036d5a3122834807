/* Declarations that the library's files share. None of them is exported. */
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

/* Makes further coefficients of sums over a tensor, and new values of its single states. */
typedef void (*stage_function)(const double *sums, double *singles, double *coefficients);

typedef struct {
    fastopt_rule rule;
    int kernel;
    fold_function fold;
    int sums;             /* that its stage measures over a tensor; 0 if it has none */
    stage_function stage;
    int folds;            /* the coefficients of its own fold; behind them come, as they are before the step: */
    int reads;            /* single states that the stage measures with, ... */
    int read_at[MAX_SINGLES]; /* ... which of them */
    int decay; /* 0: L2 and decoupled; 1: weight_decay is decoupled; 2: it is the update's */
    double scalars[FASTOPT_MAX_SCALARS]; /* before the first step */
} rule_entry;
extern const rule_entry rules[];

/* Folds a row of hyper-parameters, for one copy of the states, and advances the scalars. Nothing is checked. */
void fold_into(int rule, double t, double grad_scale, const double *hyper, double *scalars, double *c);

/* ---- isa.c ---- */

extern const fastopt_level *active;
int prefetch_pays(int64_t bytes);

/* ---- threads.c ---- */

/* The fewest elements for a thread: with fewer, starting it costs more than it saves. */
#define GRAIN 16384
/* Parts begin at multiples of this many elements, so that threads share few cache lines. */
#define ALIGN 64
/* The most elements that a thread takes at a time. Each takes the next part when it has finished one, because on a
 * busy machine some threads are slower than others. */
#define SHARE 262144
/* The same where a thread takes rows: some take far longer than others. */
#define ROW_SHARE 16384

/* Calls the function for parts of [0, n), by at most `threads` threads with at least `grain` each, who take at most
 * `share` at a time. The caller sets the arithmetic of its own thread. */
void parallel_for(fastopt_part function, void *context, int64_t n, int64_t grain, int64_t share, int64_t align,
                  int threads);

/* A team of threads that do work in phases. It is by whom parts of the work are begun, not how many threads there are, that
 * differs from run to run: a thread can come late, or never. */
typedef struct team team;
typedef void (*team_function)(team *own, void *context, int thread);
/* Calls the function in each of at most `threads` threads. Each has a number, which it mostly had before. Small work wakes
 * none. */
void run_team(team_function function, void *context, int threads, int is_small);
/* Work of fewer grains is small. */
enum { SMALL = 8 };

/* Each thread of a team calls this for each phase, in their order. Calls the function for those of n parts that no other
 * thread has begun. Returns when all parts are done. */
enum { MAX_PHASES = 16 };
typedef void (*phase_part)(void *context, int64_t part);
void do_phase(team *own, int phase, int64_t n, phase_part part, void *context);

/* A clock, in seconds. */
double now(void);

/* ---- openmp.c ---- */

/* Calls the function in each of at most `threads` threads of OpenMP. Returns 0, without a call, where the process has none,
 * or they have been waited for too long. */
int run_in_openmp(void (*function)(void *context, int thread), void *context, int threads);

/* ---- checks.c ---- */

/* More bytes than any process has addresses for. Products of sizes below it do not overflow. */
#define MAX_BYTES ((int64_t)1 << 56)

/* 1 if n things of so many bytes each, or at such a stride, take more than MAX_BYTES. */
static inline int exceeds_memory(int64_t n, int64_t bytes)
{
    return n > 0 && (n > MAX_BYTES || bytes > MAX_BYTES / n || bytes < -(MAX_BYTES / n));
}

int check_threads(int threads);
int check_kind(int32_t rule, int32_t dtype, int32_t copies, int32_t threads);
/* Checks that dtypes and options go together: all float64, or 16 and 32 bits with blocks for states only. */
int check_storage(const fastopt_storage *storage, int32_t rule, int32_t dtype, int32_t copies, int rows);
int check_rows(int32_t rule, int32_t dtype, int32_t copies, const fastopt_rows *rows, const int64_t *strides,
               const fastopt_storage *storage);
/* Checks that the compute type can hold the coefficients: infinity times a gradient of 0 would be NaN. */
int check_coefficients(int32_t rule, int32_t dtype, int32_t copies, const double *coefficients);
/* Checks all of a job but its step counts. */
int check_job(const fastopt_job *job, int threads);

/* ---- step.c, rows.c ---- */

/* The pass of step t over a job's arrays, from element 0 on. */
fastopt_pass pass_of(const fastopt_job *job, int64_t t);

/* 1 if the job's rule measures whole tensors before it updates them. */
static inline int has_stage(const fastopt_job *job) { return rules[job->rule].sums > 0; }
/* 1 if it measures all tensors together. */
static inline int is_over_all(const fastopt_job *job) { return rules[job->rule].rule.by_tensor == 2; }
/* Measures the tensors of those jobs whose rules do, and completes their coefficients. The others are folded before, and
 * each tensor has a row of its own. */
void measure_tensors(const fastopt_job *jobs, int64_t n, int threads);
/* Updates elements [begin, end) of a job's runs. The coefficients are folded before. */
void update_elements(const fastopt_job *job, int64_t begin, int64_t end, int threads);
/* Work space for rows, of so many bytes at least; NULL if there is no memory. It is kept from step to step: who takes it
 * leaves it to the next. */
typedef struct row_space row_space;
row_space *take_space(int64_t bytes);
void leave_space(row_space *space);
/* The bytes of work space that a job's rows need. */
int64_t space_of(const fastopt_job *job);
/* Updates the rows of a job. The coefficients are folded before. */
void update_rows(const fastopt_job *job, row_space *space, int threads);

#pragma GCC visibility pop

/* ---- arrays ---- */

/* The place of a tensor's first input, and the number of its arrays that have all elements, without and with those that
 * storage adds. */
static inline int first_input_of(int rule, int copies) { return FIRST_STATE + copies * rules[rule].rule.states; }
static inline int arrays_of(int rule, int copies) { return first_input_of(rule, copies) + rules[rule].rule.inputs; }
static inline int all_arrays_of(int rule, int copies, const fastopt_storage *storage)
{
    const int options = storage ? storage->options : 0;
    return arrays_of(rule, copies) + !!(options & (FASTOPT_KAHAN | FASTOPT_MASTER)) + !!(options & FASTOPT_AVERAGE);
}

/* The length of a tensor's row of addresses: single states come last. */
static inline int width_of(int rule, int copies, const fastopt_storage *storage)
{
    return all_arrays_of(rule, copies, storage) + rules[rule].rule.singles;
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

/* The run that holds element `at`, by bisection. Empty runs hold none. */
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
