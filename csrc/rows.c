/* Steps of some rows. Lookups are sorted by row, each row's in their order, and cut into pieces of about equally many,
 * which threads take as they come free. A row that very many lookups name is added up by several threads. */
#include "library.h"

#include <stdlib.h>
#include <string.h>

enum {
    DIGIT = 11,         /* bits sorted by at a time: the counters fit the first-level cache */
    FEW = 8,            /* the same for few lookups, which are not worth many counters */
    MAX_PASSES = 32 / FEW,
    MAX_SORTERS = 16,   /* threads that sort */
    SHARED = 4 * PIECE, /* lookups of a row from which on several threads add them up */
    SHARES = 16,        /* that each thread is to have, to come out even at the end */
    MAX_KEPT = 1 << 26  /* bytes of work space that are kept from step to step */
};

/* ---- work space ---- */

struct row_space {
    int64_t bytes;
    fastopt_lookup memory[];
};

static row_space *kept;

row_space *take_space(int64_t bytes)
{
    row_space *space = __atomic_exchange_n(&kept, NULL, __ATOMIC_ACQUIRE);
    if (space && space->bytes >= bytes)
        return space;
    free(space);
    space = malloc(sizeof *space + (size_t)bytes);
    if (space)
        space->bytes = bytes;
    return space;
}

void leave_space(row_space *space)
{
    if (space)
        free(space->bytes > MAX_KEPT ? space : __atomic_exchange_n(&kept, space, __ATOMIC_ACQ_REL));
}

/* A row that several threads add up: its lookups, and where the sums of its whole pieces begin. */
typedef struct {
    int64_t first, last, sums;
} shared_row;

typedef struct {
    const fastopt_loops *loops;
    fastopt_kernel kernel;
    fastopt_row_fold fold;
    fastopt_segments segments;
    fastopt_lookup *lookups[2]; /* before and after they are sorted by another digit */
    uint32_t (*counts)[1 << DIGIT]; /* by sorter: its lookups with a digit, then the place of the next */
    shared_row *shared;
    char *sums; /* of pieces */
    int64_t sum_bytes, shared_rows, pieces;
    int passes, digit; /* of the sort: how many, and the bits of each */
    int threads, shares;
} row_context;

int64_t space_of(const fastopt_job *job)
{
    const int64_t n = job->rows->count;
    return 2 * n * (int64_t)sizeof(fastopt_lookup) + (n / SHARED + 1) * (int64_t)sizeof(shared_row)
         + MAX_SORTERS * (int64_t)sizeof(uint32_t[1 << DIGIT]);
}

/* ---- order ---- */

static int bits_of(int64_t n)
{
    int bits = 0;
    for (; n > 0; n >>= 1)
        bits++;
    return bits;
}

/* The lookups are sorted by one digit after the other, from the lowest. Each sorter has an equal part of them. */
typedef struct {
    const row_context *c;
    const fastopt_lookup *from; /* NULL: they are still indices */
    fastopt_lookup *to;
    int sorters, shift, bits;
} digit;

static inline uint32_t digit_of(const digit *d, uint32_t row) { return row >> d->shift & (((uint32_t)1 << d->bits) - 1); }

static void count_digits(void *context, int64_t sorter)
{
    const digit *d = context;
    const fastopt_rows *rows = d->c->segments.rows;
    const int64_t begin = rows->count * sorter / d->sorters, end = rows->count * (sorter + 1) / d->sorters;
    uint32_t *counts = d->c->counts[sorter];
    memset(counts, 0, sizeof *counts << d->bits);
    for (int64_t i = begin; i < end; i++) {
        if (i % 8 == 0) /* the list to be written is out of the cache since the step before */
            __builtin_prefetch(d->to + i, 1, 2);
        counts[digit_of(d, d->from ? d->from[i].row : (uint32_t)row_at(rows, i))]++;
    }
}

/* Makes of the counts of lookups by digit and sorter the place of each one's first. */
static void add_up_counts(void *context, int64_t part)
{
    const digit *d = context;
    uint32_t at = 0;
    for (int k = 0; k < 1 << d->bits; k++)
        for (int sorter = 0; sorter < d->sorters; sorter++) {
            const uint32_t own = d->c->counts[sorter][k];
            d->c->counts[sorter][k] = at;
            at += own;
        }
    (void)part;
}

static void deal_lookups(void *context, int64_t sorter)
{
    const digit *d = context;
    const fastopt_rows *rows = d->c->segments.rows;
    const int64_t begin = rows->count * sorter / d->sorters, end = rows->count * (sorter + 1) / d->sorters;
    uint32_t *places = d->c->counts[sorter];
    if (d->from)
        for (int64_t i = begin; i < end; i++)
            d->to[places[digit_of(d, d->from[i].row)]++] = d->from[i];
    else
        for (int64_t i = begin; i < end; i++) {
            const uint32_t row = (uint32_t)row_at(rows, i);
            d->to[places[digit_of(d, row)]++] = (fastopt_lookup){row, (uint32_t)i};
        }
}

/* Sorts lookups by row in a team. The sort is stable. */
static void sort_lookups(team *own, const row_context *c)
{
    digit d = {.c = c, .to = c->lookups[0], .bits = c->digit};
    d.sorters = c->threads < MAX_SORTERS ? c->threads : MAX_SORTERS;
    for (int pass = 0; pass < c->passes; pass++) {
        do_phase(own, 3 * pass, d.sorters, count_digits, &d);
        do_phase(own, 3 * pass + 1, 1, add_up_counts, &d);
        do_phase(own, 3 * pass + 2, d.sorters, deal_lookups, &d);
        d.from = d.to;
        d.to = c->lookups[(pass + 1) % 2];
        d.shift += d.bits;
    }
}

/* The end of the segment that lookup q is in: looks twice as far each time, then between. */
static int64_t end_of_segment(const row_context *c, int64_t q)
{
    const fastopt_lookup *lookups = c->segments.lookups;
    const uint32_t row = lookups[q].row;
    int64_t last = q, end = q + 1;
    for (; end < c->segments.end && lookups[end].row == row; end = end + 2 * (end - q))
        last = end;
    end = end < c->segments.end ? end : c->segments.end;
    while (end - last > 1) {
        const int64_t middle = last + (end - last) / 2;
        *(lookups[middle].row == row ? &last : &end) = middle;
    }
    return end;
}

/* The first lookup from q on that begins a segment. */
static int64_t next_segment(const row_context *c, int64_t q)
{
    const fastopt_lookup *lookups = c->segments.lookups;
    return q > 0 && q < c->segments.end && lookups[q].row == lookups[q - 1].row ? end_of_segment(c, q) : q;
}

/* ---- rows that several threads add up ---- */

/* Finds the rows with SHARED lookups or more: the number of one of these is a multiple of SHARED. If there is no memory
 * for the sums of their pieces, there are none. */
static void find_shared_rows(void *context, int64_t part)
{
    row_context *c = context;
    const fastopt_lookup *lookups = c->segments.lookups;
    int64_t end = 0;
    for (int64_t q = 0; q < c->segments.end; q += SHARED) {
        if (q < end)
            continue;
        int64_t first = q, before = end - 1; /* the segment begins between */
        while (first - before > 1) {
            const int64_t middle = before + (first - before) / 2;
            *(lookups[middle].row == lookups[q].row ? &first : &before) = middle;
        }
        end = end_of_segment(c, q);
        if (end - first >= SHARED) {
            c->shared[c->shared_rows++] = (shared_row){first, end, c->pieces};
            c->pieces += (end - first) / PIECE;
        }
    }
    if (c->pieces && !(c->sums = malloc((size_t)(c->pieces * c->sum_bytes))))
        c->shared_rows = c->pieces = 0;
    (void)part;
}

/* Adds up piece k of the rows that several threads add up. */
static void add_up_piece(void *context, int64_t k)
{
    const row_context *c = context;
    int64_t low = 0, high = c->shared_rows - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (c->shared[middle].sums <= k)
            low = middle;
        else
            high = middle - 1;
    }
    const int64_t first = c->shared[low].first + (k - c->shared[low].sums) * PIECE;
    c->loops->sum_row(&c->segments, first, first + PIECE, c->sums + k * c->sum_bytes);
}

static void update_shared_row(void *context, int64_t k)
{
    const row_context *c = context;
    const shared_row *row = &c->shared[k];
    fastopt_segments own = c->segments;
    own.sums = c->sums + row->sums * c->sum_bytes;
    c->loops->run_rows(c->kernel, c->fold, &own, row->first, row->last);
}

/* ---- updates ---- */

/* Updates the rows of an equal share of the lookups, which are whole segments, but those that several threads add up. */
static void update_share(void *context, int64_t share)
{
    const row_context *c = context;
    const int64_t n = c->segments.end, end = next_segment(c, n * (share + 1) / c->shares);
    int64_t begin = next_segment(c, n * share / c->shares);
    for (int64_t k = 0; k < c->shared_rows && c->shared[k].first < end; k++)
        if (c->shared[k].first >= begin) {
            c->loops->run_rows(c->kernel, c->fold, &c->segments, begin, c->shared[k].first);
            begin = c->shared[k].last;
        }
    c->loops->run_rows(c->kernel, c->fold, &c->segments, begin, end);
}

static void update_team(team *own, void *context, int thread)
{
    row_context *c = context;
    enum { SORTED = 3 * MAX_PASSES };
    sort_lookups(own, c);
    do_phase(own, SORTED, c->threads > 1 && c->segments.rows->duplicates == FASTOPT_SUM, find_shared_rows, c);
    do_phase(own, SORTED + 1, c->pieces, add_up_piece, c);
    do_phase(own, SORTED + 2, c->shares, update_share, c);
    do_phase(own, SORTED + 3, c->shared_rows, update_shared_row, c);
    (void)thread;
}

static void hogwild_part(void *context, int64_t begin, int64_t end)
{
    const row_context *c = context;
    c->loops->run_rows(c->kernel, c->fold, &c->segments, begin, end);
}

void update_rows(const fastopt_job *job, row_space *space, int threads)
{
    const fastopt_rows *rows = job->rows;
    const fastopt_rule *rule = &rules[job->rule].rule;
    const fastopt_loops *loops = active->loops[job->dtype];
    const int kernel = rules[job->rule].kernel;
    const int64_t n = rows->count, width = rows->width, grain = GRAIN / width + 1;
    const int most = n < 1 << DIGIT ? FEW : DIGIT, bits = bits_of(rows->rows - 1);
    const int passes = bits ? (bits + most - 1) / most : 1;
    fastopt_pass pass = pass_of(job, job->steps ? job->steps[job->parameter[0]] : 0);
    pass.element = job->elements ? job->elements[0] : 0;
    fastopt_lookup *lookups = space->memory, *sorted = lookups + (passes - 1) % 2 * n;
    row_context c = {
        .loops = loops,
        .kernel = (pass.storage ? loops->stored : loops->kernels)[kernel][job->copies - 1],
        .fold = loops->row_folds[kernel],
        .segments = {rows, sorted, n, NULL, all_arrays_of(job->rule, job->copies, job->storage), rule->states,
                     job->copies * rule->coefficients, job->addresses, job->strides, job->coefficients, pass,
                     job->copies == 1 ? loops->row_loops[kernel] : NULL},
        .lookups = {lookups, lookups + n},
        .shared = (shared_row *)(lookups + 2 * n),
        .sum_bytes = width * size_of(job->dtype),
        .passes = passes,
        .digit = (bits + passes - 1) / passes,
        .threads = threads < n / grain ? threads : n / grain > 1 ? (int)(n / grain) : 1,
    };
    c.shares = c.threads > 1 ? c.threads * SHARES : 1;
    c.counts = (uint32_t (*)[1 << DIGIT])(c.shared + n / SHARED + 1);
    if (rows->duplicates == FASTOPT_HOGWILD) {
        for (int64_t i = 0; i < n; i++)
            sorted[i] = (fastopt_lookup){(uint32_t)row_at(rows, i), (uint32_t)i};
        parallel_for(hogwild_part, &c, n, grain, ROW_SHARE / width + 1, 1, threads);
        return;
    }
    run_team(update_team, &c, c.threads, n < SMALL * grain);
    free(c.sums);
}
