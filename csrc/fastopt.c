/* The library: folding, checks, the choice of instruction set, threads. Compiled for the baseline. */
#include "fastopt.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arithmetic.h"
#include "kernels.h"
#include "sizes.h"

#ifdef _OPENMP
#include <omp.h>
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
    fastopt_rule rule;
    int kernel;
    fold_function fold;
    int decoupled; /* weight_decay is, and there is no other */
    double scalars[FASTOPT_MAX_SCALARS]; /* before the first step */
} rules[] = {FASTOPT_RULES};
enum { RULES = sizeof rules / sizeof *rules };

int32_t fastopt_find_rule(const char *name)
{
    for (int32_t i = 0; name && i < RULES; i++)
        if (!strcmp(name, rules[i].rule.name))
            return i;
    return -1;
}

const fastopt_rule *fastopt_get_rule(int32_t rule) { return rule >= 0 && rule < RULES ? &rules[rule].rule : NULL; }

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
        [FASTOPT_BAD_VALUE] = "a hyper-parameter, grad_scale or option outside its domain, or one that must be set and was not",
        [FASTOPT_BAD_STEP] = "a step below 1, for steps are counted from 1, or one beyond 2^63 - 1",
        [FASTOPT_BAD_SIZE] = "a size, stride or number that is negative or larger than any memory, or a stride at which rows overlap",
        [FASTOPT_BAD_THREADS] = "a number of threads below 1 or above FASTOPT_MAX_THREADS",
        [FASTOPT_NULL_POINTER] = "a null pointer where there must be an array",
        [FASTOPT_NO_MEMORY] = "out of memory",
        [FASTOPT_BAD_STORAGE] = "dtypes or options of storage that do not go together",
        [FASTOPT_ROW_RULE] = "a rule whose states are of rows: fastopt_update_rows takes it",
        [FASTOPT_BAD_INDEX] = "an index below 0, or not below the number of rows",
    };
    return code >= 0 && code < (int)(sizeof messages / sizeof *messages) ? messages[code] : "unknown error code";
}

/* ---- hyper-parameters ---- */

static int in_domain(const fastopt_hyper *hyper, double value)
{
    return (value >= hyper->low && value <= hyper->high && (!hyper->whole || value == floor(value)))
        || (hyper->optional && isnan(value));
}

int fastopt_defaults(int32_t rule, double *hyper, double *scalars)
{
    const fastopt_rule *found = fastopt_get_rule(rule);
    if (!found)
        return FASTOPT_BAD_RULE;
    if (!hyper || (!scalars && found->scalars))
        return FASTOPT_NULL_POINTER;
    for (int i = 0; i < found->hyper; i++)
        hyper[i] = found->hypers[i].value;
    for (int i = 0; i < found->scalars; i++)
        scalars[i] = rules[rule].scalars[i];
    return FASTOPT_OK;
}

int fastopt_set_hyper(int32_t rule, double *hyper, const char *name, double value)
{
    const fastopt_rule *found = fastopt_get_rule(rule);
    if (!found)
        return FASTOPT_BAD_RULE;
    if (!hyper || !name)
        return FASTOPT_NULL_POINTER;
    IN_IEEE_ARITHMETIC;
    for (int i = 0; i < found->hyper; i++)
        if (!strcmp(name, found->hypers[i].name)) {
            if (!in_domain(&found->hypers[i], value))
                return FASTOPT_BAD_VALUE;
            hyper[i] = value;
            return FASTOPT_OK;
        }
    return FASTOPT_BAD_HYPER;
}

/* Apart from its callers, so that no operation of its is moved out of their arithmetic. */
__attribute__((noinline)) static void fold_into(int rule, double t, double grad_scale, const double *hyper, double *scalars, double *c)
{
    const int one = rules[rule].decoupled;
    const double lr = hyper[0], weight_decay = hyper[1], maximize = hyper[2];
    const double decoupled = one ? weight_decay : hyper[rules[rule].rule.hyper - 1];
    c[0] = maximize ? -grad_scale : grad_scale;
    c[1] = one ? 0.0 : weight_decay;
    c[2] = decoupled ? 1.0 - lr * decoupled : 1.0;
    rules[rule].fold(t, hyper, scalars, c + 3);
}

int fastopt_fold(int32_t rule, int64_t t, double grad_scale, const double *hyper, double *scalars,
                 double *coefficients)
{
    const fastopt_rule *found = fastopt_get_rule(rule);
    if (!found)
        return FASTOPT_BAD_RULE;
    if (!hyper || !coefficients || (!scalars && found->scalars))
        return FASTOPT_NULL_POINTER;
    if (t < 1)
        return FASTOPT_BAD_STEP;
    IN_IEEE_ARITHMETIC;
    for (int i = 0; i < found->hyper; i++)
        if (!in_domain(&found->hypers[i], hyper[i]))
            return FASTOPT_BAD_VALUE;
    if (!isfinite(grad_scale))
        return FASTOPT_BAD_VALUE;
    fold_into(rule, (double)t, grad_scale, hyper, scalars, coefficients);
    return FASTOPT_OK;
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

int fastopt_set_isa(const char *name)
{
    for (int i = LEVELS - 1; i >= 0; i--)
        if ((!name || !*name || !strcmp(name, levels[i]->name)) && supported(levels[i]->name)) {
            chosen = levels[i];
            return FASTOPT_OK;
        }
    return FASTOPT_BAD_ISA;
}

static char compiled_names[64], supported_names[64];

static void append(char *names, const char *name)
{
    if (names[0])
        strcat(names, ",");
    strcat(names, name);
}

/* When the library is loaded, before there are threads that could race for it. */
__attribute__((constructor)) static void find_levels(void)
{
    for (int i = 0; i < LEVELS; i++) {
        append(compiled_names, levels[i]->name);
        if (supported(levels[i]->name))
            append(supported_names, levels[i]->name);
    }
    fastopt_set_isa(NULL);
}

const char *fastopt_isa(void) { return chosen->name; }
const char *fastopt_isa_compiled(void) { return compiled_names; }
const char *fastopt_isa_supported(void) { return supported_names; }
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
    if (__builtin_cpu_is("amd"))
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

int32_t fastopt_default_threads(void)
{
#ifdef _OPENMP
    int cpus = omp_get_num_procs(), allowed = omp_get_max_threads();
    int threads = allowed < cpus ? allowed : cpus;
    return threads < FASTOPT_MAX_THREADS ? threads : FASTOPT_MAX_THREADS;
#else
    return 1;
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
/* The same for rows, of which some have many more lookups than others. */
#define ROW_CHUNK 16384

#ifdef _OPENMP
static void *wait_for(void *started)
{
    pthread_mutex_lock(started);
    pthread_mutex_unlock(started);
    return NULL;
}

/* So many threads as there can be, of so many at most. Where there is none to be had OpenMP's library ends the process:
 * the calling thread has not had so many yet, they are started once and ended, to see. */
static int threads_to_be_had(int threads)
{
    static _Thread_local int had = 1;
    pthread_t started[FASTOPT_MAX_THREADS];
    pthread_mutex_t all = PTHREAD_MUTEX_INITIALIZER;
    int others = 0;
    if (threads <= had)
        return threads;
    pthread_mutex_lock(&all);
    while (others < threads - 1 && !pthread_create(&started[others], NULL, wait_for, &all))
        others++;
    pthread_mutex_unlock(&all);
    for (int i = 0; i < others; i++)
        pthread_join(started[i], NULL);
    return others + 1 > had ? had = others + 1 : had;
}
#endif

/* Shares out [0, n) among threads: at least `grain` for each, at most `chunk` at a time. Those of OpenMP do arithmetic in
 * the mode of whoever started them; the calling thread's is the caller's to set. */
static void parallel(part_function function, void *context, int64_t n, int64_t grain, int64_t chunk, int64_t align,
                     int threads)
{
    if (threads > n / grain)
        threads = (int)(n / grain);
#ifdef _OPENMP
    if (threads > 1 && !pool_lost && (threads = threads_to_be_had(threads)) > 1) {
        pool_started = 1;
        int64_t share = (n + threads - 1) / threads, next = 0;
        if (share > chunk)
            share = chunk;
        share = (share + align - 1) / align * align;
#pragma omp parallel num_threads(threads)
        {
            IN_IEEE_ARITHMETIC;
            for (int64_t begin; (begin = __atomic_fetch_add(&next, share, __ATOMIC_RELAXED)) < n;)
                function(context, begin, begin + share < n ? begin + share : n);
        }
        return;
    }
#else
    (void)chunk, (void)align;
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

/* Advances every tensor and folds its coefficients, once for neighbours that share group, step and scalars. */
static void advance(fastopt_job *job)
{
    const fastopt_rule *rule = &rules[job->rule].rule;
    const int scalars = rule->scalars, copies = job->copies;
    const int row = copies * rule->coefficients, hyper = copies * rule->hyper;
    double before[FASTOPT_MAX_SCALARS] = {0};
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
                          job->hyper + (int64_t)job->group[at] * hyper + k * rule->hyper, own,
                          job->coefficients + (int64_t)rows * row + k * rule->coefficients);
            rows++;
        }
        job->row_of[i] = rows - 1;
        last = at;
    }
}

/* How many arrays a tensor has: of the update, and with those that storage adds. */
static int arrays_of(int rule, int copies) { return 2 + copies * rules[rule].rule.states; }
static int all_arrays_of(int rule, int copies, const fastopt_storage *storage)
{
    const int options = storage ? storage->options : 0;
    return arrays_of(rule, copies) + !!(options & (FASTOPT_KAHAN | FASTOPT_MASTER)) + !!(options & FASTOPT_AVERAGE);
}

static int in_blocks(int32_t dtype) { return dtype == FASTOPT_BLOCKS_SIGNED || dtype == FASTOPT_BLOCKS_POSITIVE; }
static int64_t size_of(int32_t dtype) { return dtype == FASTOPT_FLOAT64 ? 8 : dtype == FASTOPT_FLOAT32 ? 4 : 2; }

/* Whether any of a job's arrays is in blocks, which are updated whole. */
static int has_blocks(const fastopt_storage *storage, int arrays)
{
    for (int j = 2; storage && j < arrays; j++)
        if (in_blocks(storage->dtypes[j]))
            return 1;
    return 0;
}

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Elements [begin, end) of a job; of a run in blocks, the blocks that begin there. */
static void update_part(void *context, int64_t begin, int64_t end)
{
    const fastopt_job *job = context;
    const fastopt_storage *storage = job->storage;
    const int row = job->copies * rules[job->rule].rule.coefficients, kernel_of = rules[job->rule].kernel;
    const int arrays = arrays_of(job->rule, job->copies), all = all_arrays_of(job->rule, job->copies, storage);
    const fastopt_kernel kernel = (storage ? chosen->stored : chosen->kernels)[kernel_of][job->copies - 1][job->dtype];
    const fastopt_runner run = chosen->run[job->dtype];
    const int64_t block = has_blocks(storage, arrays) ? FASTOPT_BLOCK : 1;
    int64_t bytes = 0;
    for (int j = 0; j < all; j++)
        bytes += storage ? in_blocks(storage->dtypes[j]) ? 1 : size_of(storage->dtypes[j]) : size_of(job->dtype);
    fastopt_pass pass = {.prefetch = prefetch_pays(job->offsets[job->runs] * bytes), .storage = storage};
    void *addresses[MAX_STORED];
    for (int64_t r = find_run(job->offsets, job->runs, begin); r < job->runs && job->offsets[r] < end; r++) {
        const int64_t first = job->offsets[r], length = job->offsets[r + 1] - first;
        const int64_t start = round_up(begin > first ? begin - first : 0, block);
        const int64_t stop = round_up(end - first, block) < length ? round_up(end - first, block) : length;
        if (start >= stop)
            continue;
        const int64_t *strides = job->strides ? job->strides + r * all : NULL;
        for (int j = 0; j < all; j++) {
            const int32_t dtype = storage ? storage->dtypes[j] : job->dtype;
            const int64_t beyond = in_blocks(dtype) ? start / FASTOPT_BLOCK * FASTOPT_BLOCK_BYTES
                                                    : start * (strides ? strides[j] : size_of(dtype));
            addresses[j] = (char *)job->addresses[r * all + j] + beyond;
        }
        const int32_t tensor = job->tensor_of[r];
        const double *coefficients = job->coefficients + (int64_t)job->row_of[tensor] * row;
        pass.step = job->steps[job->parameter[tensor]];
        pass.element = (job->elements ? job->elements[r] : first + (storage ? storage->first_element : 0)) + start;
        run(kernel, stop - start, all, addresses, strides, coefficients, row, &pass);
    }
}

/* ---- rows ---- */

/* Lookups are dealt out into buckets, by their rows' highest bits; each bucket is ordered and updated by whichever thread
 * takes it. A row's lookups stay in their order all along. */
enum { BUCKET_BITS = 12, DIGIT = 11 }; /* so that counters fit the first-level cache */

static int bits_of(int64_t n)
{
    int bits = 0;
    for (; n > 0; n >>= 1)
        bits++;
    return bits;
}

static int64_t row_at(const fastopt_rows *rows, int64_t i)
{
    return rows->index_size == 4 ? ((const int32_t *)rows->indices)[i] : ((const int64_t *)rows->indices)[i];
}

/* Orders lookups by the lowest bits of their rows. */
static void sort_lookups(fastopt_lookup *lookups, fastopt_lookup *other, int64_t n, int bits)
{
    if (n <= 32) {
        for (int64_t i = 1; i < n; i++) {
            const fastopt_lookup lookup = lookups[i];
            int64_t at = i;
            for (; at > 0 && lookups[at - 1].row > lookup.row; at--)
                lookups[at] = lookups[at - 1];
            lookups[at] = lookup;
        }
        return;
    }
    for (int shift = 0; shift < bits; shift += DIGIT) {
        const int digit = bits - shift < DIGIT ? bits - shift : DIGIT, mask = (1 << digit) - 1;
        int64_t at[1 << DIGIT], sum = 0;
        memset(at, 0, sizeof *at << digit);
        for (int64_t i = 0; i < n; i++)
            at[lookups[i].row >> shift & mask]++;
        for (int d = 0; d <= mask; d++) {
            const int64_t count = at[d];
            at[d] = sum;
            sum += count;
        }
        for (int64_t i = 0; i < n; i++)
            other[at[lookups[i].row >> shift & mask]++] = lookups[i];
        memcpy(lookups, other, n * sizeof *lookups);
    }
}

typedef struct {
    fastopt_kernel kernel;
    fastopt_row_fold fold;
    fastopt_row_runner run;
    fastopt_segments segments; /* but for those of a part */
    fastopt_lookup *lookups, *other;
    int64_t *starts;
    int shift, slices;         /* bits of a row that are within its bucket; parts that lookups are dealt out in */
    int64_t *counts;           /* [slices][buckets]: the slice's lookups in the bucket, then where they go */
    int64_t buckets[(1 << BUCKET_BITS) + 1]; /* where each begins among the lookups */
} row_context;

static int64_t slice_at(const row_context *c, int64_t slice) { return c->segments.rows->count * slice / c->slices; }

static void count_slices(void *context, int64_t begin, int64_t end)
{
    const row_context *c = context;
    for (int64_t slice = begin; slice < end; slice++) {
        int64_t *counts = c->counts + (slice << BUCKET_BITS);
        memset(counts, 0, sizeof *counts << BUCKET_BITS);
        for (int64_t i = slice_at(c, slice); i < slice_at(c, slice + 1); i++)
            counts[row_at(c->segments.rows, i) >> c->shift]++;
    }
}

static void deal_slices(void *context, int64_t begin, int64_t end)
{
    const row_context *c = context;
    for (int64_t slice = begin; slice < end; slice++)
        for (int64_t i = slice_at(c, slice); i < slice_at(c, slice + 1); i++) {
            const int64_t row = row_at(c->segments.rows, i);
            c->lookups[c->counts[(slice << BUCKET_BITS) + (row >> c->shift)]++] =
                (fastopt_lookup){(uint32_t)row, (uint32_t)i};
        }
}

static void bucket_part(void *context, int64_t begin, int64_t end)
{
    const row_context *c = context;
    const int64_t first = c->buckets[begin], last = c->buckets[end];
    /* Of their own, for the parts before have at most as many segments as lookups, and one entry more each. */
    int64_t *starts = c->starts + first + begin, segments = 0;
    for (int64_t b = begin; b < end; b++)
        sort_lookups(c->lookups + c->buckets[b], c->other + c->buckets[b], c->buckets[b + 1] - c->buckets[b], c->shift);
    for (int64_t i = first; i < last; i++)
        if (i == first || c->lookups[i].row != c->lookups[i - 1].row)
            starts[segments++] = i;
    starts[segments] = last;
    fastopt_segments own = c->segments;
    own.starts = starts;
    own.end = last;
    c->run(c->kernel, c->fold, &own, 0, segments);
}

static void racing_part(void *context, int64_t begin, int64_t end)
{
    const row_context *c = context;
    c->run(c->kernel, c->fold, &c->segments, begin, end);
}

/* Work space for n lookups: the lookups twice, where segments start, and what slices count. */
enum { MAX_SLICES = 16 };
static fastopt_lookup *lookup_space(int64_t n)
{
    const size_t starts = (size_t)n + (1 << BUCKET_BITS) + 1, counts = (size_t)MAX_SLICES << BUCKET_BITS;
    return malloc((size_t)n * 2 * sizeof(fastopt_lookup) + (starts + counts) * sizeof(int64_t));
}

/* Updates the rows of a job, whose coefficients are folded, in a work space for its lookups. */
static void update_rows(const fastopt_job *job, fastopt_lookup *space)
{
    const fastopt_rows *rows = job->rows;
    const fastopt_rule *rule = &rules[job->rule].rule;
    const int kernel = rules[job->rule].kernel;
    const int64_t n = rows->count, width = rows->width;
    const fastopt_pass pass = {.storage = job->storage,
                               .element = job->elements ? job->elements[0] : 0,
                               .step = job->steps ? job->steps[job->parameter[0]] : 0};
    row_context c = {
        .kernel = (job->storage ? chosen->stored : chosen->kernels)[kernel][job->copies - 1][job->dtype],
        .fold = chosen->row_folds[kernel][job->dtype],
        .run = chosen->run_rows[job->dtype],
        .segments = {rows, space, NULL, n, all_arrays_of(job->rule, job->copies, job->storage), rule->states,
                     job->copies * rule->coefficients, job->addresses, job->strides, job->coefficients, pass},
        .lookups = space,
        .other = space + n,
        .starts = (int64_t *)(space + 2 * n),
    };
    if (rows->duplicates == FASTOPT_HOGWILD) {
        for (int64_t i = 0; i < n; i++) {
            space[i] = (fastopt_lookup){(uint32_t)row_at(rows, i), (uint32_t)i};
            c.starts[i] = i;
        }
        c.starts[n] = n;
        c.segments.starts = c.starts;
        parallel(racing_part, &c, n, GRAIN / width + 1, ROW_CHUNK / width + 1, 1, job->threads);
        return;
    }
    const int bits = bits_of(rows->rows - 1), most = bits_of(n / 16) < BUCKET_BITS ? bits_of(n / 16) : BUCKET_BITS;
    const int bucket_bits = bits < most ? bits : most;
    const int64_t buckets = (int64_t)1 << bucket_bits, each = n / buckets * width + 1;
    c.shift = bits - bucket_bits;
    c.slices = n < GRAIN || job->threads < 2 ? 1 : job->threads < MAX_SLICES ? job->threads : MAX_SLICES;
    c.counts = c.starts + n + (1 << BUCKET_BITS) + 1;
    parallel(count_slices, &c, c.slices, 1, 1, 1, job->threads);
    int64_t at = 0;
    for (int64_t b = 0; b < buckets; b++) {
        c.buckets[b] = at;
        for (int slice = 0; slice < c.slices; slice++) {
            int64_t *count = &c.counts[(slice << BUCKET_BITS) + b];
            const int64_t own = *count;
            *count = at;
            at += own;
        }
    }
    c.buckets[buckets] = n;
    parallel(deal_slices, &c, c.slices, 1, 1, 1, job->threads);
    parallel(bucket_part, &c, buckets, GRAIN / each + 1, ROW_CHUNK / each + 1, 1, job->threads);
}

static int check_threads(int threads)
{
    return threads < 1 || threads > FASTOPT_MAX_THREADS ? FASTOPT_BAD_THREADS : FASTOPT_OK;
}

static int check_kind(int32_t rule, int32_t dtype, int32_t copies, int32_t threads)
{
    if (!fastopt_get_rule(rule))
        return FASTOPT_BAD_RULE;
    if (dtype != FASTOPT_FLOAT32 && dtype != FASTOPT_FLOAT64)
        return FASTOPT_BAD_DTYPE;
    if (copies < 1 || copies > rules[rule].rule.max_copies)
        return FASTOPT_BAD_COPIES;
    return check_threads(threads);
}

/* More bytes than any process has addresses for: products of sizes that are below it do not overflow. */
#define MEMORY ((int64_t)1 << 56)

/* Whether so many things, each of so many bytes or at such a stride, are more than that. */
static int beyond_memory(int64_t n, int64_t bytes)
{
    return n > 0 && (n > MEMORY || bytes > MEMORY / n || bytes < -(MEMORY / n));
}

static int check_rows(int32_t rule, int32_t dtype, int32_t copies, const fastopt_rows *rows, const int64_t *strides,
                      const fastopt_storage *storage)
{
    const int arrays = all_arrays_of(rule, copies, storage), states = rules[rule].rule.by_row ? rules[rule].rule.states : 0;
    if (rows->rows < 0 || rows->width < 0 || rows->count < 0 || rows->rows > UINT32_MAX || rows->count > UINT32_MAX
        || (rows->index_size != 4 && rows->index_size != 8) || rows->width > MEMORY
        || beyond_memory(rows->rows, rows->width * 8) || beyond_memory(rows->count, rows->width * 8))
        return FASTOPT_BAD_SIZE;
    if (rows->duplicates < FASTOPT_SUM || rows->duplicates > FASTOPT_HOGWILD)
        return FASTOPT_BAD_VALUE;
    if (!strides || (rows->count && !rows->indices))
        return FASTOPT_NULL_POINTER;
    for (int j = 0; j < arrays; j++) {
        const int64_t width = j >= 2 && j < 2 + states ? 1 : rows->width;
        const int64_t bytes = width * size_of(storage ? storage->dtypes[j] : dtype);
        if (beyond_memory(j == 1 ? rows->count : rows->rows, strides[j])
            || (j != 1 && rows->rows > 1 && strides[j] < bytes && strides[j] > -bytes))
            return FASTOPT_BAD_SIZE;
    }
    for (int64_t i = 0; i < rows->count; i++)
        if (row_at(rows, i) < 0 || row_at(rows, i) >= rows->rows)
            return FASTOPT_BAD_INDEX;
    return FASTOPT_OK;
}

/* Whether dtypes and options go together: float64 throughout, or 16 and 32 bits, and states in blocks. */
static int check_storage(const fastopt_storage *storage, int32_t rule, int32_t dtype, int32_t copies, int rows)
{
    if (!storage)
        return FASTOPT_OK;
    if (!storage->dtypes)
        return FASTOPT_NULL_POINTER;
    const int arrays = arrays_of(rule, copies), all = all_arrays_of(rule, copies, storage), options = storage->options;
    const int kept = options & (FASTOPT_STOCHASTIC | FASTOPT_KAHAN | FASTOPT_MASTER);
    const int32_t *dtypes = storage->dtypes, param = dtypes[0];
    if (options & ~63 || kept & (kept - 1) || (kept && param != FASTOPT_BFLOAT16 && param != FASTOPT_FLOAT16)
        || (rows && options & FASTOPT_ZERO_GRADS) || !(storage->average_decay >= 0 && storage->average_decay <= 1))
        return FASTOPT_BAD_STORAGE;
    for (int j = 0; j < all; j++) {
        if (dtypes[j] < FASTOPT_FLOAT32 || dtypes[j] > FASTOPT_BLOCKS_POSITIVE)
            return FASTOPT_BAD_DTYPE;
        if ((dtypes[j] == FASTOPT_FLOAT64) != (dtype == FASTOPT_FLOAT64)
            || (in_blocks(dtypes[j]) && (j < 2 || j >= arrays || rows)))
            return FASTOPT_BAD_STORAGE;
    }
    if ((options & FASTOPT_MASTER && dtypes[arrays] != dtype) || (options & FASTOPT_KAHAN && dtypes[arrays] != param)
        || (options & FASTOPT_AVERAGE && dtypes[all - 1] != dtype))
        return FASTOPT_BAD_STORAGE;
    return FASTOPT_OK;
}

static int check_job(const fastopt_job *job)
{
    int error = check_kind(job->rule, job->dtype, job->copies, job->threads);
    if (error)
        return error;
    if (job->runs < 0 || job->tensors < 0 || (job->runs && !job->tensors) || job->tensors > INT32_MAX
        || job->runs > MEMORY / (int64_t)sizeof(void *))
        return FASTOPT_BAD_SIZE;
    if (!job->offsets || (job->runs && (!job->addresses || !job->tensor_of)))
        return FASTOPT_NULL_POINTER;
    if (job->tensors
        && (!job->parameter || !job->group || !job->steps || !job->hyper || !job->coefficients || !job->row_of
            || (!job->scalars && rules[job->rule].rule.scalars)))
        return FASTOPT_NULL_POINTER;
    for (int64_t i = 0; !job->advanced && i < job->tensors; i++)
        if (job->steps[job->parameter[i]] < 0 || job->steps[job->parameter[i]] == INT64_MAX)
            return FASTOPT_BAD_STEP;
    if (job->rows && (job->tensors != 1 || job->runs != 1))
        return FASTOPT_BAD_SIZE;
    if (job->begin < 0 || job->end < job->begin || job->end > job->offsets[job->runs])
        return FASTOPT_BAD_SIZE;
    error = check_storage(job->storage, job->rule, job->dtype, job->copies, job->rows != NULL);
    if (error)
        return error;
    if (!job->rows)
        return rules[job->rule].rule.by_row ? FASTOPT_ROW_RULE : FASTOPT_OK;
    return check_rows(job->rule, job->dtype, job->copies, job->rows, job->strides, job->storage);
}

static void update_span(void *context, int64_t begin, int64_t end)
{
    const fastopt_job *job = context;
    update_part(context, job->begin + begin, job->begin + end);
}

/* The elements of a job, whose coefficients are folded. */
static void update(fastopt_job *job, int threads)
{
    parallel(update_span, job, job->end - job->begin, GRAIN, CHUNK, ALIGN, threads);
}

int fastopt_step(fastopt_job *jobs, int64_t n)
{
    if (n < 0 || beyond_memory(n, sizeof *jobs))
        return FASTOPT_BAD_SIZE;
    if (n && !jobs)
        return FASTOPT_NULL_POINTER;
    for (int64_t i = 0; i < n; i++) {
        int error = check_job(&jobs[i]);
        if (error)
            return error;
    }
    int64_t lookups = 0;
    for (int64_t i = 0; i < n; i++)
        if (jobs[i].rows && jobs[i].rows->count > lookups)
            lookups = jobs[i].rows->count;
    fastopt_lookup *space = lookups ? lookup_space(lookups) : NULL;
    if (lookups && !space)
        return FASTOPT_NO_MEMORY;
    IN_IEEE_ARITHMETIC;
    for (int64_t i = 0; i < n; i++) {
        if (!jobs[i].advanced)
            advance(&jobs[i]);
        if (jobs[i].rows && jobs[i].rows->count && jobs[i].rows->width && jobs[i].end > jobs[i].begin)
            update_rows(&jobs[i], space);
        else if (!jobs[i].rows)
            update(&jobs[i], jobs[i].threads);
    }
    free(space);
    return FASTOPT_OK;
}

/* Offsets of tensors whose arrays are all there. */
static int find_offsets(int64_t tensors, const int64_t *sizes, void *const *arrays, int width, int64_t *offsets)
{
    const int64_t most = MEMORY / (int64_t)sizeof(double);
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

/* Whether the compute type can hold coefficients: infinity times a gradient of 0 would be NaN. */
static int check_coefficients(int32_t rule, int32_t dtype, int32_t copies, const double *coefficients)
{
    const double largest = dtype == FASTOPT_FLOAT32 ? FLT_MAX : DBL_MAX;
    for (int i = 0; i < copies * rules[rule].rule.coefficients; i++)
        if (!(fabs(coefficients[i]) <= largest))
            return FASTOPT_BAD_VALUE;
    return FASTOPT_OK;
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
        error = find_offsets(tensors, sizes, arrays, all_arrays_of(rule, copies, storage), offsets);
    if (!error) {
        fastopt_job job = {.rule = rule, .dtype = dtype, .copies = copies, .runs = tensors, .addresses = arrays,
                           .offsets = offsets, .coefficients = (double *)coefficients, .storage = storage,
                           .tensor_of = zeros, .parameter = zeros, .row_of = zeros, .steps = &t, .end = offsets[tensors]};
        IN_IEEE_ARITHMETIC;
        update(&job, threads);
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
    for (int j = 0; j < 2 + copies * rules[rule].rule.states; j++)
        if (!addresses[j])
            return FASTOPT_NULL_POINTER;
    fastopt_lookup *space = lookup_space(rows->count);
    if (!space)
        return FASTOPT_NO_MEMORY;
    fastopt_job job = {.rule = rule, .dtype = dtype, .copies = copies, .threads = threads, .addresses = addresses,
                       .strides = strides, .coefficients = (double *)coefficients, .rows = rows};
    IN_IEEE_ARITHMETIC;
    update_rows(&job, space);
    free(space);
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
            c->sums[begin] = chosen->square_sum[c->dtype == FASTOPT_FLOAT64](
                c->dtype, n < FASTOPT_NORM_BLOCK ? n : FASTOPT_NORM_BLOCK,
                (char *)c->addresses[r] + first * c->strides[r], c->strides[r]);
        }
}

int fastopt_square_sums(int32_t dtype, int64_t runs, void *const *addresses, const int64_t *strides,
                        const int64_t *offsets, const int64_t *blocks, double *sums, int32_t threads)
{
    if (dtype < FASTOPT_FLOAT32 || dtype > FASTOPT_FLOAT16)
        return FASTOPT_BAD_DTYPE;
    if (runs < 0 || beyond_memory(runs, sizeof *addresses))
        return FASTOPT_BAD_SIZE;
    if (runs && (!addresses || !strides || !offsets || !blocks || !sums))
        return FASTOPT_NULL_POINTER;
    int error = check_threads(threads);
    if (error)
        return error;
    norm_context context = {dtype, runs, addresses, strides, offsets, blocks, sums};
    IN_IEEE_ARITHMETIC;
    if (runs)
        parallel(norm_part, &context, blocks[runs], GRAIN / FASTOPT_NORM_BLOCK, CHUNK, 1, threads);
    return FASTOPT_OK;
}

/* ---- arithmetic ---- */

uint64_t fastopt_enter_ieee(void) { return enter_ieee(); }
void fastopt_leave_ieee(uint64_t before) { leave_ieee(before); }

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
    chosen->stream(end - begin, c->arrays, addresses, c->ahead);
}

int fastopt_stream(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads)
{
    if (n < 0 || beyond_memory(n, sizeof **addresses) || arrays < 2 || arrays > 5)
        return FASTOPT_BAD_SIZE;
    for (int j = 0; j < arrays; j++)
        if (!addresses || (n && !addresses[j]))
            return FASTOPT_NULL_POINTER;
    int error = check_threads(threads);
    if (error)
        return error;
    stream_context context = {arrays, ahead, addresses};
    parallel(stream_part, &context, n, GRAIN, CHUNK, ALIGN, threads);
    return FASTOPT_OK;
}

static void row_stream_part(void *context, int64_t begin, int64_t end) { chosen->stream_rows(context, begin, end); }

int fastopt_stream_rows(int64_t segments, const int64_t *rows, const int64_t *starts, const int64_t *places,
                        int64_t width, int32_t arrays, float *const *addresses, int32_t threads)
{
    if (segments < 0 || beyond_memory(segments, sizeof *rows) || width < 1 || beyond_memory(width, sizeof **addresses)
        || arrays < 2 || arrays > 5)
        return FASTOPT_BAD_SIZE;
    if (!rows || !starts || !places || !addresses)
        return FASTOPT_NULL_POINTER;
    for (int j = 0; segments && j < arrays; j++)
        if (!addresses[j])
            return FASTOPT_NULL_POINTER;
    int error = check_threads(threads);
    if (error)
        return error;
    fastopt_row_stream stream = {rows, starts, places, width, arrays, addresses};
    parallel(row_stream_part, &stream, segments, GRAIN / width + 1, ROW_CHUNK / width + 1, 1, threads);
    return FASTOPT_OK;
}
