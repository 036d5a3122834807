/* Threads: how many there are to be had, and what they share out. */
#include "library.h"

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
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
/* A forked child inherits OpenMP's books but none of its threads, and would wait for them for ever: where the parent
 * had started them, the child works with one thread. */
static int pool_started, pool_lost;
static void after_fork(void) { pool_lost = pool_started; }
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }
#endif

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

/* Those of OpenMP do arithmetic in the mode of whoever started them. */
void share_out(part_function function, void *context, int64_t n, int64_t share, int64_t align, int threads)
{
#ifdef _OPENMP
    if (!pool_lost && (threads = threads_to_be_had(threads)) > 1) {
        pool_started = 1;
        int64_t each = (n + threads - 1) / threads, next = 0;
        if (each < share)
            share = each;
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
    (void)share, (void)align, (void)threads;
#endif
    function(context, 0, n);
}

uint64_t fastopt_enter_ieee(void) { return enter_ieee(); }
void fastopt_leave_ieee(uint64_t before) { leave_ieee(before); }

