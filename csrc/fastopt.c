/* The library: folding, checks, the choice of instruction set, threads. Compiled for the baseline. */
#include "fastopt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "sizes.h"

#ifdef _OPENMP
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#define real double
#define FN(name) name##_f64
#define SQRT sqrt
#define ABS fabs
#define FASTOPT_FOLDS
#include "rules.h"

/* ---- the table ---- */

typedef void (*fold_function)(double t, const double *hyper, double *scalars, double *coefficients);

#define FOLD_ENTRY(rule, fold)                                                                                        \
    static void folded_##rule(double t, const double *hyper, double *scalars, double *coefficients)                   \
    {                                                                                                                 \
        fold_##fold(t, (const void *)hyper, scalars, (void *)coefficients);                                           \
    }
FASTOPT_KERNELS(FOLD_ENTRY)

static const struct {
    const char *name;
    fold_function fold;
    int states, scalars, hyper, coefficients; /* coefficients: the prologue's among them */
} rules[FASTOPT_KERNEL_COUNT] = {
#define RULE_ENTRY(rule, fold)                                                                                        \
    {#rule, folded_##rule, STATES_##rule, SCALARS_##rule, (int)(sizeof(fold##_hyper) / sizeof(double)),               \
     3 + (int)(sizeof(rule##_coefs_f64) / sizeof(double))},
    FASTOPT_KERNELS(RULE_ENTRY)};

static const struct {
    const char *alias, *rule;
} aliases[] = {FASTOPT_ALIASES};

int32_t fastopt_find_rule(const char *name)
{
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (name && !strcmp(name, aliases[i].alias))
            name = aliases[i].rule;
    for (int32_t i = 0; i < FASTOPT_KERNEL_COUNT; i++)
        if (name && !strcmp(name, rules[i].name))
            return i;
    return -1;
}

const char *fastopt_message(int code)
{
    static const char *const messages[] = {"no error", "unknown rule", "unknown dtype",
                                           "unknown instruction set, or one that this processor lacks",
                                           "a number of copies that the rule does not have"};
    return code >= 0 && code < (int)(sizeof messages / sizeof *messages) ? messages[code] : "unknown error code";
}

/* ---- instruction sets ---- */

#define DECLARE(level) extern const fastopt_level fastopt_level_##level;
FASTOPT_LEVELS(DECLARE)
#define ADDRESS(level) &fastopt_level_##level,
static const fastopt_level *const levels[] = {FASTOPT_LEVELS(ADDRESS)}; /* from the lowest to the highest */
enum { LEVELS = sizeof levels / sizeof *levels };

static const fastopt_level *chosen;

static int supported(const char *name)
{
#if defined(__x86_64__) || defined(__i386__)
    if (!strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return !strcmp(name, levels[0]->name);
}

static const fastopt_level *level(void)
{
    if (!chosen)
        fastopt_set_isa(NULL);
    return chosen;
}

int fastopt_set_isa(const char *name)
{
    for (int i = LEVELS - 1; i >= 0; i--)
        if ((!name || !*name || !strcmp(name, levels[i]->name)) && supported(levels[i]->name)) {
            chosen = levels[i];
            return FASTOPT_OK;
        }
    return FASTOPT_BAD_ISA;
}

static const char *names(char *buffer, int all)
{
    buffer[0] = 0;
    for (int i = 0; i < LEVELS; i++)
        if (all || supported(levels[i]->name)) {
            if (buffer[0])
                strcat(buffer, ",");
            strcat(buffer, levels[i]->name);
        }
    return buffer;
}

const char *fastopt_isa(void) { return level()->name; }
const char *fastopt_isa_compiled(void) { static char buffer[64]; return names(buffer, 1); }
const char *fastopt_isa_supported(void) { static char buffer[64]; return names(buffer, 0); }
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

/* Whether software prefetch pays for so many bytes: not in cache, and not on AMD's processors, whose own prefetchers
 * do better alone: on Zen 4, Adam over 10^8 float32 elements is 27 % slower with it in one thread, 3 % in two. Elsewhere
 * it gained 10 %. */
static int prefetch_pays(int64_t bytes)
{
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
    static int amd = -1;
    if (amd < 0)
        amd = __builtin_cpu_is("amd") != 0;
    if (amd)
        return 0;
#endif
    return bytes > 4 << 20;
}

/* ---- threads ---- */

int fastopt_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

typedef void (*part_function)(void *context, int64_t begin, int64_t end);

#ifdef _OPENMP
/* A forked child inherits OpenMP's books but none of its threads, and would wait for them for ever: where the parent
 * had started them, the child works with one thread. */
static int pool_started, pool_lost;
static void after_fork(void) { pool_lost = pool_started; }
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }
#endif

/* Below so many elements for each thread, starting a thread costs more than it brings. */
#define GRAIN 16384
/* Parts begin at multiples of so many elements, so that threads share few cache lines. */
#define ALIGN 64
/* Threads take parts of so many elements as they come free: on a busy machine one is often slower than another. */
#define CHUNK 262144

/* Shares out [0, n) among threads. */
static void parallel(part_function function, void *context, int64_t n, int64_t grain, int64_t align, int threads)
{
    if (threads > n / grain)
        threads = (int)(n / grain);
#ifdef _OPENMP
    if (threads > 1 && !pool_lost) {
        pool_started = 1;
        int64_t share = (n + threads - 1) / threads, next = 0;
        if (share > CHUNK)
            share = CHUNK;
        share = (share + align - 1) / align * align;
#pragma omp parallel num_threads(threads)
        for (int64_t begin; (begin = __atomic_fetch_add(&next, share, __ATOMIC_RELAXED)) < n;)
            function(context, begin, begin + share < n ? begin + share : n);
        return;
    }
#else
    (void)align;
#endif
    if (n > 0)
        function(context, 0, n);
}

/* The run that holds element `at`, by bisection: empty runs hold none. */
static int64_t find_run(const int64_t *offsets, int64_t runs, int64_t at)
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

/* ---- one step ---- */

static void fold_into(int rule, double t, double grad_scale, const double *hyper, double *scalars, double *c)
{
    const double lr = hyper[0], weight_decay = hyper[1], decoupled = hyper[2], maximize = hyper[3];
    c[0] = maximize ? -grad_scale : grad_scale;
    c[1] = weight_decay;
    c[2] = 1.0 - lr * decoupled;
    rules[rule].fold(t, hyper, scalars, c + 3);
}

int fastopt_fold(int32_t rule, int64_t t, double grad_scale, const double *hyper, double *scalars,
                 double *coefficients)
{
    if (rule < 0 || rule >= FASTOPT_KERNEL_COUNT)
        return FASTOPT_BAD_RULE;
    fold_into(rule, (double)t, grad_scale, hyper, scalars, coefficients);
    return FASTOPT_OK;
}

/* Advances every tensor and folds its coefficients, once for neighbours that share group, step and scalars. */
static void advance(fastopt_job *job)
{
    const int scalars = rules[job->rule].scalars, copies = job->copies;
    const int row = copies * rules[job->rule].coefficients, hyper = copies * rules[job->rule].hyper;
    double before[4] = {0};
    int32_t rows = 0, last = -1;
    for (int64_t i = 0; i < job->tensors; i++) {
        int32_t at = job->parameter[i];
        double *own = scalars ? job->scalars + (int64_t)at * scalars : NULL;
        int64_t t = ++job->steps[at];
        if (last >= 0 && job->group[at] == job->group[last] && t == job->steps[last]
            && (!scalars || !memcmp(own, before, scalars * sizeof(double)))) {
            if (scalars)
                memcpy(own, job->scalars + (int64_t)last * scalars, scalars * sizeof(double));
        } else {
            if (scalars)
                memcpy(before, own, scalars * sizeof(double));
            for (int k = 0; k < copies; k++)
                fold_into(job->rule, (double)t, job->grad_scale,
                          job->hyper + (int64_t)job->group[at] * hyper + k * rules[job->rule].hyper, own,
                          job->coefficients + (int64_t)rows * row + k * rules[job->rule].coefficients);
            rows++;
        }
        job->row_of[i] = rows - 1;
        last = at;
    }
}

static void update_part(void *context, int64_t begin, int64_t end)
{
    const fastopt_job *job = context;
    const int row = job->copies * rules[job->rule].coefficients;
    const int arrays = 2 + job->copies * rules[job->rule].states;
    const fastopt_kernel kernel = level()->kernels[job->rule][job->copies - 1][job->dtype];
    const fastopt_runner run = level()->run[job->dtype];
    const int64_t size = job->dtype == FASTOPT_FLOAT64 ? 8 : 4;
    const int prefetch = prefetch_pays(job->offsets[job->runs] * arrays * size);
    void *addresses[MAX_ARRAYS];
    for (int64_t r = find_run(job->offsets, job->runs, begin); begin < end; r++) {
        int64_t stop = job->offsets[r + 1] < end ? job->offsets[r + 1] : end;
        if (stop == begin)
            continue;
        const int64_t *strides = job->strides ? job->strides + r * arrays : NULL;
        for (int j = 0; j < arrays; j++)
            addresses[j] = (char *)job->addresses[r * arrays + j]
                         + (begin - job->offsets[r]) * (strides ? strides[j] : size);
        run(kernel, stop - begin, arrays, addresses, strides,
            job->coefficients + (int64_t)job->row_of[job->tensor_of[r]] * row, row, prefetch);
        begin = stop;
    }
}

int fastopt_step(fastopt_job *jobs, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (jobs[i].rule < 0 || jobs[i].rule >= FASTOPT_KERNEL_COUNT)
            return FASTOPT_BAD_RULE;
        if (jobs[i].dtype != FASTOPT_FLOAT32 && jobs[i].dtype != FASTOPT_FLOAT64)
            return FASTOPT_BAD_DTYPE;
        if (jobs[i].copies < 1 || jobs[i].copies > FASTOPT_MAX_COPIES
            || !level()->kernels[jobs[i].rule][jobs[i].copies - 1][0])
            return FASTOPT_BAD_COPIES;
    }
    for (int64_t i = 0; i < n; i++) {
        advance(&jobs[i]);
        parallel(update_part, &jobs[i], jobs[i].offsets[jobs[i].runs], GRAIN, ALIGN, jobs[i].threads);
    }
    return FASTOPT_OK;
}

/* ---- the norm ---- */

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
            c->sums[begin] = level()->square_sum[c->dtype](n < FASTOPT_NORM_BLOCK ? n : FASTOPT_NORM_BLOCK,
                                                            (char *)c->addresses[r] + first * c->strides[r],
                                                            c->strides[r]);
        }
}

int fastopt_square_sums(int32_t dtype, int64_t runs, void *const *addresses, const int64_t *strides,
                        const int64_t *offsets, const int64_t *blocks, double *sums, int32_t threads)
{
    if (dtype != FASTOPT_FLOAT32 && dtype != FASTOPT_FLOAT64)
        return FASTOPT_BAD_DTYPE;
    norm_context context = {dtype, runs, addresses, strides, offsets, blocks, sums};
    if (runs > 0)
        parallel(norm_part, &context, blocks[runs], GRAIN / FASTOPT_NORM_BLOCK, 1, threads);
    return FASTOPT_OK;
}

/* ---- the ceiling ---- */

typedef struct {
    int arrays, ahead;
    float *const *addresses;
} stream_context;

static void stream_part(void *context, int64_t begin, int64_t end)
{
    const stream_context *c = context;
    float *addresses[5];
    for (int j = 0; j < c->arrays; j++)
        addresses[j] = c->addresses[j] + begin;
    level()->stream(end - begin, c->arrays, addresses, c->ahead);
}

int fastopt_stream(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads)
{
    if (arrays < 2 || arrays > 5)
        return FASTOPT_BAD_RULE;
    stream_context context = {arrays, ahead, addresses};
    parallel(stream_part, &context, n, GRAIN, ALIGN, threads);
    return FASTOPT_OK;
}
