/* Threads: how many can be had, and the work that they share. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "library.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#endif

/* ---- how many ---- */

/* The CPUs that the calling thread may run on. */
static int cpus(void)
{
#ifdef __linux__
    cpu_set_t own;
    if (!sched_getaffinity(0, sizeof own, &own))
        return CPU_COUNT(&own);
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online < 1 ? 1 : online > FASTOPT_MAX_THREADS ? FASTOPT_MAX_THREADS : (int)online;
}

int32_t fastopt_default_threads(void)
{
    const char *text = getenv("OMP_NUM_THREADS");
    const int most = cpus() < FASTOPT_MAX_THREADS ? cpus() : FASTOPT_MAX_THREADS;
    const long allowed = text ? strtol(text, NULL, 10) : 0; /* of a list, the first: nothing here is nested */
    return allowed > 0 && allowed < most ? (int32_t)allowed : most;
}

/* ---- waits ---- */

/* So long a thread looks for what it waits for, before it sleeps: somewhat longer than it takes to wake one, and than a
 * program takes between two steps, when all its memory has left the caches. */
#define PATIENCE 80e-6 /* seconds */

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static inline void pause_briefly(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("isb");
#endif
}

#ifdef __linux__
static void sleep_while(const uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(uint32_t *word, int threads) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0); }
#else
static pthread_mutex_t sleepers = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;

static void sleep_while(const uint32_t *word, uint32_t value)
{
    pthread_mutex_lock(&sleepers);
    if (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value)
        pthread_cond_wait(&woken, &sleepers);
    pthread_mutex_unlock(&sleepers);
}

static void wake(uint32_t *word, int threads)
{
    (void)word;
    (void)threads;
    pthread_mutex_lock(&sleepers);
    pthread_cond_broadcast(&woken);
    pthread_mutex_unlock(&sleepers);
}
#endif

/* A word that threads wait for, and how many of them sleep. */
typedef struct {
    _Alignas(64) uint32_t value;
    uint32_t asleep;
} signal_word;

/* Waits until the word has another value, which it returns. */
static uint32_t wait_for_change(signal_word *word, uint32_t value)
{
    uint32_t found;
    if ((found = __atomic_load_n(&word->value, __ATOMIC_ACQUIRE)) != value)
        return found;
    for (const double end = now() + PATIENCE; now() < end; pause_briefly())
        if ((found = __atomic_load_n(&word->value, __ATOMIC_ACQUIRE)) != value)
            return found;
    __atomic_fetch_add(&word->asleep, 1, __ATOMIC_SEQ_CST);
    while ((found = __atomic_load_n(&word->value, __ATOMIC_SEQ_CST)) == value)
        sleep_while(&word->value, value);
    __atomic_fetch_sub(&word->asleep, 1, __ATOMIC_RELAXED);
    return found;
}

/* Wakes at most so many of those who sleep until the word changes. It has. */
static void wake_sleepers(signal_word *word, int threads)
{
    if (__atomic_load_n(&word->asleep, __ATOMIC_SEQ_CST))
        wake(&word->value, threads);
}

/* ---- teams ---- */

struct team {
    team_function function;
    void *context;
    struct {
        signal_word done; /* parts */
        int64_t next;
    } phases[MAX_PHASES];
};

void do_phase(team *own, int phase, int64_t n, phase_part part, void *context)
{
    int64_t *next = &own->phases[phase].next;
    signal_word *done = &own->phases[phase].done;
    uint32_t found;
    for (int64_t k; (k = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < n;) {
        part(context, k);
        if (__atomic_add_fetch(&done->value, 1, __ATOMIC_SEQ_CST) == n)
            wake_sleepers(done, FASTOPT_MAX_THREADS);
    }
    while ((found = __atomic_load_n(&done->value, __ATOMIC_ACQUIRE)) < n)
        wait_for_change(done, found);
}

/* ---- the pool ---- */

/* The library's own threads wait here for a team that has a place for them. There is one team at a time. A caller that
 * finds one works alone. What a thread does not begin in time others do: nobody waits for a thread that waits for a
 * processor, which can take milliseconds beside others who compute. */
enum { INSIDE = 1, PLACE = 1 << 15, CLOSED = 1 << 30 };

static struct {
    uint32_t busy;      /* with a team */
    team *team;
    signal_word teams;  /* that have begun */
    signal_word state;  /* CLOSED or not, the places left, and the threads inside without the caller */
    int threads;        /* that have been started */
    pthread_t started[FASTOPT_MAX_THREADS];
    double last;        /* when work has ended that was or could have been a team's */
#ifdef __linux__
    int cpu;            /* of the caller, and those that it may use, when they were last looked at */
    cpu_set_t cpus;
#endif
} pool = {.state = {CLOSED, 0}};

/* Takes a place in the team of the moment. */
static int enter_team(void)
{
    uint32_t state = __atomic_load_n(&pool.state.value, __ATOMIC_RELAXED);
    while (state < CLOSED && state >= PLACE)
        if (__atomic_compare_exchange_n(&pool.state.value, &state, state - PLACE + INSIDE, 1, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED))
            return 1;
    return 0;
}

static void *serve(void *argument)
{
    const int number = (int)(intptr_t)argument;
    IN_IEEE_ARITHMETIC;
    for (uint32_t teams = 0;;) {
        teams = wait_for_change(&pool.teams, teams);
        if (!enter_team())
            continue;
        pool.team->function(pool.team, pool.team->context, number);
        if (__atomic_sub_fetch(&pool.state.value, INSIDE, __ATOMIC_SEQ_CST) >= CLOSED)
            wake_sleepers(&pool.state, 1);
    }
    return NULL;
}

/* Starts threads until there are so many, or no more are to be had. */
static void start_threads(int threads)
{
    for (int k = pool.threads; k < threads; k++) {
        if (pthread_create(&pool.started[k], NULL, serve, (void *)(intptr_t)(k + 1)))
            return;
        __atomic_store_n(&pool.threads, k + 1, __ATOMIC_RELAXED);
    }
}

#ifdef __linux__
/* Has the threads use the caller's processors, but for the one that it is on. Where the others are busy for a moment, the
 * system would put a thread there too, and leave it for a while. */
static void place_threads(int before)
{
    cpu_set_t cpus;
    const int cpu = sched_getcpu();
    if (cpu < 0 || sched_getaffinity(0, sizeof cpus, &cpus))
        return;
    if (cpu == pool.cpu && CPU_EQUAL(&cpus, &pool.cpus) && before == pool.threads)
        return;
    pool.cpu = cpu;
    pool.cpus = cpus;
    if (CPU_COUNT(&cpus) > 1)
        CPU_CLR(cpu, &cpus);
    for (int k = 0; k < pool.threads; k++)
        pthread_setaffinity_np(pool.started[k], sizeof cpus, &cpus);
}
#else
static void place_threads(int before) { (void)before; }
#endif

static void run_in_pool(team *own, int others)
{
    uint32_t state;
    const int before = pool.threads;
    start_threads(others);
    place_threads(before);
    pool.team = own;
    __atomic_store_n(&pool.state.value, (uint32_t)others * PLACE, __ATOMIC_RELEASE);
    __atomic_fetch_add(&pool.teams.value, 1, __ATOMIC_SEQ_CST);
    wake_sleepers(&pool.teams, others);
    own->function(own, own->context, 0);
    state = __atomic_or_fetch(&pool.state.value, CLOSED, __ATOMIC_ACQUIRE);
    while ((state & (PLACE - 1)) != 0)
        state = wait_for_change(&pool.state, state);
    __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
}

/* A forked child has no threads but the one that forked, and waits for no team of its parent's. */
static void after_fork(void)
{
#ifndef __linux__
    pthread_mutex_init(&sleepers, NULL);
#endif
    memset(&pool, 0, sizeof pool);
    pool.state.value = CLOSED;
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

/* ---- work ---- */

static void join_team(void *own, int thread) { ((team *)own)->function(own, ((team *)own)->context, thread); }

/* Whether none of the library's threads looks for work. To wake them takes longer than a small piece of work. But where
 * one comes right after another, more will come, which they would have found. */
static int are_asleep(void)
{
    const int asleep = (int)__atomic_load_n(&pool.teams.asleep, __ATOMIC_RELAXED);
    double last;
    __atomic_load(&pool.last, &last, __ATOMIC_RELAXED);
    return asleep >= __atomic_load_n(&pool.threads, __ATOMIC_RELAXED) && now() > last + PATIENCE;
}

void run_team(team_function function, void *context, int threads, int is_small)
{
    team own = {.function = function, .context = context};
    if (threads == 1) {
        function(&own, context, 0);
        return;
    }
    if (run_in_openmp(join_team, &own, threads))
        return;
    if ((is_small && are_asleep()) || __atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE))
        function(&own, context, 0);
    else
        run_in_pool(&own, threads - 1);
    const double last = now();
    __atomic_store(&pool.last, &last, __ATOMIC_RELAXED);
}

/* Work whose parts are taken by whichever thread is free. Each has a range of its own, which is in its caches if there was
 * such work before. Who is done with it helps others. Parts grow smaller towards a range's end, where all are to finish at
 * the same time. */
enum { MAX_RANGES = 64, PARTS_OF_GRAIN = 4 };

typedef struct {
    fastopt_part function;
    void *context;
    int64_t least, most; /* elements of a part */
    int ranges;
    struct {
        _Alignas(64) int64_t next;
        int64_t end;
    } range[MAX_RANGES];
} parts;

/* Takes parts of a range until there are none. */
static void take_parts(parts *own, int range)
{
    const int64_t end = own->range[range].end;
    int64_t *next = &own->range[range].next, begin = __atomic_load_n(next, __ATOMIC_RELAXED);
    while (begin < end) {
        const int64_t half = (end - begin) / 2 / own->least * own->least;
        const int64_t part = half < own->least ? own->least : half < own->most ? half : own->most;
        const int64_t stop = begin + part < end ? begin + part : end;
        if (__atomic_compare_exchange_n(next, &begin, stop, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            own->function(own->context, begin, stop);
            begin = __atomic_load_n(next, __ATOMIC_RELAXED);
        }
    }
}

static void take_all_parts(team *team, void *context, int thread)
{
    parts *own = context;
    for (int k = 0; k < own->ranges; k++)
        take_parts(own, (thread + k) % own->ranges);
    (void)team;
}

void parallel_for(fastopt_part function, void *context, int64_t n, int64_t grain, int64_t share, int64_t align,
                  int threads)
{
    const int members = threads < n / grain ? threads : (int)(n / grain);
    if (members <= 1) {
        function(context, 0, n);
        return;
    }
    const int64_t least = (grain / PARTS_OF_GRAIN + align) / align * align;
    parts own = {function, context, least, share < least ? least : share / least * least,
                 members < MAX_RANGES ? members : MAX_RANGES, {{0}}};
    for (int k = 0; k < own.ranges; k++) {
        const int64_t end = (n * (k + 1) / own.ranges + align - 1) / align * align;
        own.range[k].next = k ? own.range[k - 1].end : 0;
        own.range[k].end = end < n ? end : n;
    }
    run_team(take_all_parts, &own, members, n < SMALL * grain);
}

void fastopt_run_parts(fastopt_part part, void *context, int64_t n, int64_t grain, int64_t share, int64_t align,
                       int32_t threads)
{
    parallel_for(part, context, n, grain, share, align, threads);
}

uint64_t fastopt_enter_ieee(void) { return enter_ieee(); }
void fastopt_leave_ieee(uint64_t before) { leave_ieee(before); }
