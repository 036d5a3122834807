/* OpenMP's threads, which are used instead of the pool's where another library of the process has loaded GCC's runtime of
 * OpenMP, as PyTorch does. After an operation of PyTorch they look for work for a while, and the pool's would have to wait
 * for their processors. */
#define _GNU_SOURCE /* dlpi_adds */
#include "library.h"

#ifdef __linux__
#include <ctype.h>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Two functions of the runtime. What GCC makes of a parallel region calls the first. */
typedef void (*run_in_parallel)(void (*function)(void *), void *context, unsigned threads, unsigned flags);
static run_in_parallel parallel;
static int (*thread_number)(void);

/* 1 in a forked child, whether it loads this library or its parent has. It inherits OpenMP's bookkeeping but none of its
 * threads, and would wait for them for ever if anybody in the parent had started some. */
static int forked;

static void after_fork(void) { forked = 1; }

/* Whether this process is a forked child that has not begun another program. */
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
__attribute__((constructor)) static void prepare(void)
{
    static const char *const variables[] = {"OMP_STACKSIZE", "GOMP_STACKSIZE"};
    for (int i = 0; i < 2 && !stack_size; i++)
        if (getenv(variables[i]))
            stack_size = parse_stack_size(getenv(variables[i]));
    forked = was_forked();
    pthread_atfork(NULL, NULL, after_fork);
}

/* Counts the libraries that have been loaded. */
static int count_libraries(struct dl_phdr_info *info, size_t size, void *count)
{
    *(unsigned long long *)count = info->dlpi_adds;
    return size > 0;
}

/* Whether the process has OpenMP's threads. Looks for its runtime where a library has been loaded since the last time. */
static int has_openmp(void)
{
    static unsigned long long last;
    unsigned long long count = 0;
    if (forked)
        return 0;
    dl_iterate_phdr(count_libraries, &count);
    if (__atomic_exchange_n(&last, count, __ATOMIC_RELAXED) != count && !parallel) {
        void *runtime = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD); /* held: it stays */
        if (runtime) {
            thread_number = (int (*)(void))dlsym(runtime, "omp_get_thread_num");
            __atomic_store_n(&parallel, (run_in_parallel)dlsym(runtime, "GOMP_parallel"), __ATOMIC_RELEASE);
        }
    }
    return __atomic_load_n(&parallel, __ATOMIC_ACQUIRE) != NULL;
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
    pthread_attr_t attributes;
    int others = 0;
    if (wanted <= most || pthread_attr_init(&attributes))
        return wanted <= most ? wanted : most;
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
 * milliseconds. Where the caller has waited for longer than it worked, and for longer than it takes to wake a thread, the
 * pool has the next pieces of work: four times as many each time that the caller waits again, and slowly fewer where it
 * does not. */
#define LONG_WAIT 200e-6 /* seconds */
enum { FEWEST_LEFT = 16, MOST_LEFT = 4096, FORGETTING = 32 }; /* pieces of work */
static int left, next_left = FEWEST_LEFT;

/* Whether the pool has the next piece of work. */
static int is_left_to_pool(void)
{
    const int now_left = __atomic_load_n(&left, __ATOMIC_RELAXED);
    if (now_left > 0)
        __atomic_store_n(&left, now_left - 1, __ATOMIC_RELAXED);
    return now_left > 0;
}

static void learn_from(double worked, double waited)
{
    const int next = __atomic_load_n(&next_left, __ATOMIC_RELAXED), late = waited > LONG_WAIT && waited > worked;
    const int more = 4 * next < MOST_LEFT ? 4 * next : MOST_LEFT, fewer = next - 1 - next / FORGETTING;
    if (late)
        __atomic_store_n(&left, next, __ATOMIC_RELAXED);
    if (late || next > FEWEST_LEFT)
        __atomic_store_n(&next_left, late ? more : fewer, __ATOMIC_RELAXED);
}

/* Work for OpenMP's threads. */
typedef struct {
    void (*function)(void *context, int thread);
    void *context;
    double done; /* by the caller */
} openmp_work;

/* OpenMP's threads inherit the arithmetic of the thread that started them, so each sets its own. */
static void work_in_openmp(void *context)
{
    openmp_work *own = context;
    IN_IEEE_ARITHMETIC;
    own->function(own->context, thread_number());
    if (thread_number() == 0)
        own->done = now();
}

int run_in_openmp(void (*function)(void *context, int thread), void *context, int threads)
{
    openmp_work own = {function, context, 0};
    if (!has_openmp() || is_left_to_pool())
        return 0;
    if ((threads = available_threads(threads)) == 1) {
        function(context, 0);
        return 1;
    }
    const double begun = now();
    parallel(work_in_openmp, &own, (unsigned)threads, 0);
    learn_from(own.done - begun, now() - own.done);
    return 1;
}
#else
int run_in_openmp(void (*function)(void *context, int thread), void *context, int threads)
{
    (void)function;
    (void)context;
    (void)threads;
    return 0;
}
#endif
