/* Threads: how many can be had, and the work that they share. */
#include "library.h"

#ifdef _OPENMP
#include <ctype.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#endif

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

#ifdef _OPENMP
/* A forked child inherits OpenMP's bookkeeping but none of its threads, and would wait for them for ever. If the
 * parent had started them, the child works with one thread. */
static int pool_started, pool_lost;
static void after_fork(void) { pool_lost = pool_started; }

/* The stack size of OpenMP's threads in bytes; 0 is the system's default. */
static size_t stack_size;

/* Reads a value of OMP_STACKSIZE: a number with a unit of B, K, M or G, K by default. Returns 0 for anything else. */
static size_t parse_stack_size(const char *text)
{
    static const char units[] = "bkmg";
    char *end;
    const unsigned long long number = strtoull(text, &end, 10);
    while (isspace((unsigned char)*end))
        end++;
    const char *unit = *end ? strchr(units, tolower((unsigned char)*end)) : units + 1;
    if (!unit || number > SIZE_MAX >> 10 * (unit - units))
        return 0;
    return (size_t)number << 10 * (unit - units);
}

/* Runs when the library is loaded. OpenMP's runtime reads the environment then too. */
__attribute__((constructor)) static void prepare_threads(void)
{
    static const char *const variables[] = {"OMP_STACKSIZE", "GOMP_STACKSIZE"};
    for (int i = 0; i < 2 && !stack_size; i++)
        if (getenv(variables[i]))
            stack_size = parse_stack_size(getenv(variables[i]));
    pthread_atfork(NULL, NULL, after_fork);
}

static void *wait_for(void *mutex)
{
    pthread_mutex_lock(mutex);
    pthread_mutex_unlock(mutex);
    return NULL;
}

/* The number of threads that can be had, at most `wanted`. OpenMP's runtime ends the process if a thread cannot be
 * started. So the first time that the calling thread wants so many, they are started here with stacks of the same
 * size, and ended again. */
static int available_threads(int wanted)
{
    static _Thread_local int most = 1;
    pthread_t started[FASTOPT_MAX_THREADS];
    pthread_mutex_t all = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    int others = 0;
    if (wanted <= most)
        return wanted;
    if (pthread_attr_init(&attributes))
        return most;
    if (stack_size)
        pthread_attr_setstacksize(&attributes, stack_size); /* a size too small is refused, here as by the runtime */
    pthread_mutex_lock(&all);
    while (others < wanted - 1 && !pthread_create(&started[others], &attributes, wait_for, &all))
        others++;
    pthread_mutex_unlock(&all);
    for (int i = 0; i < others; i++)
        pthread_join(started[i], NULL);
    pthread_attr_destroy(&attributes);
    return others + 1 > most ? most = others + 1 : most;
}

/* OpenMP waits for all threads at the end of their work. Beside others who compute, one may not get a processor for
 * milliseconds. Where the caller has waited for longer than it worked, and for longer than it takes to wake a thread, it
 * does the next pieces of work alone: twice as many each time that it waits again. */
#define LONG_WAIT 200e-6 /* seconds */
enum { LEAST_ALONE = 4, MOST_ALONE = 64 }; /* pieces of work */
static int alone, next_alone = LEAST_ALONE;
static _Thread_local double waited; /* by a thread in a team, before the end */

static int works_alone(void)
{
    const int left = __atomic_load_n(&alone, __ATOMIC_RELAXED);
    if (left > 0)
        __atomic_store_n(&alone, left - 1, __ATOMIC_RELAXED);
    return left > 0;
}

static void learn_from(double worked, double waited)
{
    const int next = __atomic_load_n(&next_alone, __ATOMIC_RELAXED), late = waited > LONG_WAIT && waited > worked;
    if (late)
        __atomic_store_n(&alone, next, __ATOMIC_RELAXED);
    if (late ? next < MOST_ALONE : next > LEAST_ALONE)
        __atomic_store_n(&next_alone, late ? 2 * next : next / 2, __ATOMIC_RELAXED);
}
#endif

/* OpenMP's threads inherit the arithmetic of the thread that started them, so each sets its own. */
void run_threads(fastopt_part function, void *context, int64_t n, int64_t share, int64_t align, int threads)
{
#ifdef _OPENMP
    if (!pool_lost && !works_alone() && (threads = available_threads(threads)) > 1) {
        pool_started = 1;
        const double begun = omp_get_wtime();
        double done = begun;
        int64_t each = (n + threads - 1) / threads, next = 0;
        if (each < share)
            share = each;
        share = (share + align - 1) / align * align;
#pragma omp parallel num_threads(threads)
        {
            IN_IEEE_ARITHMETIC;
            for (int64_t begin; (begin = __atomic_fetch_add(&next, share, __ATOMIC_RELAXED)) < n;)
                function(context, begin, begin + share < n ? begin + share : n);
            if (omp_get_thread_num() == 0)
                done = omp_get_wtime();
        }
        learn_from(done - begun, omp_get_wtime() - done);
        return;
    }
#else
    (void)share, (void)align, (void)threads;
#endif
    function(context, 0, n);
}

void run_team(team_function function, void *context, int threads)
{
#ifdef _OPENMP
    if (threads > 1 && !pool_lost && !works_alone() && (threads = available_threads(threads)) > 1) {
        pool_started = 1;
        const double begun = omp_get_wtime();
        double done = begun;
        waited = 0;
#pragma omp parallel num_threads(threads)
        {
            IN_IEEE_ARITHMETIC;
            function(context, omp_get_thread_num(), omp_get_num_threads());
            if (omp_get_thread_num() == 0)
                done = omp_get_wtime();
        }
        learn_from(done - begun - waited, waited + omp_get_wtime() - done);
        return;
    }
#else
    (void)threads;
#endif
    function(context, 0, 1);
}

void wait_for_team(int threads)
{
#ifdef _OPENMP
    if (threads > 1) { /* else the barrier would be that of a region around the call */
        const double begun = omp_get_wtime();
#pragma omp barrier
        waited += omp_get_wtime() - begun;
    }
#else
    (void)threads;
#endif
}

void fastopt_run_parts(fastopt_part part, void *context, int64_t n, int64_t grain, int64_t share, int64_t align,
                       int32_t threads)
{
    parallel_for(part, context, n, grain, share, align, threads);
}

uint64_t fastopt_enter_ieee(void) { return enter_ieee(); }
void fastopt_leave_ieee(uint64_t before) { leave_ieee(before); }

