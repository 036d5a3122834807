/* Threads: how many can be had, and the work that they share. */
#include "library.h"

#ifdef _OPENMP
#include <ctype.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
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
/* 1 in a forked child, whether it loads this library or its parent has. It inherits OpenMP's bookkeeping but none of its
 * threads, and would wait for them for ever if anybody in the parent had started some. So it starts threads of its own,
 * for each piece of work. */
static int forked;
static void after_fork(void) { forked = 1; }

/* Whether this process is a forked child that has not begun another program, where Linux tells. */
static int was_forked(void)
{
    enum { FORKED_NO_EXEC = 0x40 }; /* PF_FORKNOEXEC */
    char text[512];
    unsigned flags = 0;
    FILE *file = fopen("/proc/self/stat", "r");
    if (!file)
        return 0;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    const char *name_end = strrchr(text, ')'); /* the name may hold anything */
    return name_end && sscanf(name_end, ") %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && flags & FORKED_NO_EXEC;
}

/* So many times the elements make such a thread worth its start. */
enum { GRAINS_OF_FORKED = 4 };

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
    forked = was_forked();
    pthread_atfork(NULL, NULL, after_fork);
}

/* Starts at most n threads with stacks of that size; returns how many there are. */
static int start_threads(pthread_t *started, int n, void *(*function)(void *), void *argument)
{
    pthread_attr_t attributes;
    int k = 0;
    if (pthread_attr_init(&attributes))
        return 0;
    if (stack_size)
        pthread_attr_setstacksize(&attributes, stack_size); /* a size too small is refused, here as by the runtime */
    while (k < n && !pthread_create(&started[k], &attributes, function, argument))
        k++;
    pthread_attr_destroy(&attributes);
    return k;
}

static void *wait_for(void *mutex)
{
    pthread_mutex_lock(mutex);
    pthread_mutex_unlock(mutex);
    return NULL;
}

/* The number of threads that can be had, at most `wanted`. OpenMP's runtime ends the process if a thread cannot be
 * started. So the first time that the calling thread wants so many, they are started here, and ended again. */
static int available_threads(int wanted)
{
    static _Thread_local int most = 1;
    pthread_t started[FASTOPT_MAX_THREADS];
    pthread_mutex_t all = PTHREAD_MUTEX_INITIALIZER;
    if (wanted <= most)
        return wanted;
    pthread_mutex_lock(&all);
    const int others = start_threads(started, wanted - 1, wait_for, &all);
    pthread_mutex_unlock(&all);
    for (int i = 0; i < others; i++)
        pthread_join(started[i], NULL);
    return others + 1 > most ? most = others + 1 : most;
}

/* ---- teams of a forked child ---- */

/* A team whose threads are started for one piece of work. */
typedef struct {
    team_function function;
    void *context;
    int threads, joined, met; /* met: those that wait for the others */
    int64_t meetings;
    pthread_mutex_t lock;
    pthread_cond_t all_met;
} team;

static _Thread_local team *own_team; /* that the calling thread is in */

static void work_in_team(team *own, int thread)
{
    IN_IEEE_ARITHMETIC;
    own_team = own;
    own->function(own->context, thread, own->threads);
    own_team = NULL;
}

static void *join_team(void *argument)
{
    team *own = argument;
    pthread_mutex_lock(&own->lock); /* until it is known how many they are */
    const int thread = ++own->joined;
    pthread_mutex_unlock(&own->lock);
    work_in_team(own, thread);
    return NULL;
}

static void wait_for_own_team(void)
{
    team *own = own_team;
    pthread_mutex_lock(&own->lock);
    const int64_t meeting = own->meetings;
    if (++own->met == own->threads) {
        own->met = 0;
        own->meetings++;
        pthread_cond_broadcast(&own->all_met);
    }
    while (own->meetings == meeting)
        pthread_cond_wait(&own->all_met, &own->lock);
    pthread_mutex_unlock(&own->lock);
}

static void run_own_team(team_function function, void *context, int threads)
{
    pthread_t others[FASTOPT_MAX_THREADS];
    team own = {.function = function, .context = context, .lock = PTHREAD_MUTEX_INITIALIZER,
                .all_met = PTHREAD_COND_INITIALIZER};
    pthread_mutex_lock(&own.lock);
    const int started = start_threads(others, threads - 1, join_team, &own);
    own.threads = started + 1;
    pthread_mutex_unlock(&own.lock);
    work_in_team(&own, 0);
    for (int k = 0; k < started; k++)
        pthread_join(others[k], NULL);
}

/* ---- teams of OpenMP ---- */

/* OpenMP waits for all threads at the end of their work. Beside others who compute, one may not get a processor for
 * milliseconds. Where the caller has waited for longer than it worked, and for longer than it takes to wake a thread,
 * it does the next pieces of work alone: twice as many each time that it waits again. */
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
void run_team(team_function function, void *context, int threads)
{
#ifdef _OPENMP
    if (threads > 1 && forked) {
        run_own_team(function, context, threads);
        return;
    }
    if (threads > 1 && !works_alone() && (threads = available_threads(threads)) > 1) {
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
#endif
    function(context, 0, 1);
}

void wait_for_team(int threads)
{
#ifdef _OPENMP
    if (threads == 1) /* a barrier would be that of a region around the call */
        return;
    if (own_team) {
        wait_for_own_team();
        return;
    }
    const double begun = omp_get_wtime();
#pragma omp barrier
    waited += omp_get_wtime() - begun;
#else
    (void)threads;
#endif
}

/* What is done in parts, by whichever thread is free. */
typedef struct {
    fastopt_part function;
    void *context;
    int64_t n, share, align, next;
} parts;

static void take_parts(void *context, int thread, int threads)
{
    parts *own = context;
    const int64_t n = own->n, even = (n + threads - 1) / threads;
    const int64_t most = threads > 1 && own->share < even ? own->share : even;
    const int64_t share = (most + own->align - 1) / own->align * own->align;
    for (int64_t begin; (begin = __atomic_fetch_add(&own->next, share, __ATOMIC_RELAXED)) < n;)
        own->function(own->context, begin, begin + share < n ? begin + share : n);
    (void)thread;
}

void parallel_for(fastopt_part function, void *context, int64_t n, int64_t grain, int64_t share, int64_t align,
                  int threads)
{
    parts own = {function, context, n, share, align, 0};
#ifdef _OPENMP
    if (forked)
        grain *= GRAINS_OF_FORKED;
#endif
    run_team(take_parts, &own, threads < n / grain ? threads : (int)(n / grain));
}

void fastopt_run_parts(fastopt_part part, void *context, int64_t n, int64_t grain, int64_t share, int64_t align,
                       int32_t threads)
{
    parallel_for(part, context, n, grain, share, align, threads);
}

uint64_t fastopt_enter_ieee(void) { return enter_ieee(); }
void fastopt_leave_ieee(uint64_t before) { leave_ieee(before); }

