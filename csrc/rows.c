/* Steps of some rows. Lookups are scattered into buckets by the highest bits of their rows. The thread that takes a
 * bucket sorts it and updates its rows. The sort is stable: a row's lookups stay in their order. */
#include "library.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKET_BITS = 12, DIGIT = 11 }; /* counters fit the first-level cache */

static int bits_of(int64_t n)
{
    int bits = 0;
    for (; n > 0; n >>= 1)
        bits++;
    return bits;
}

/* Sorts lookups by the lowest bits of their rows: by insertion if there are few, else by radix. */
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
    fastopt_segments segments; /* of the whole step; a part replaces `starts` and `end` */
    fastopt_lookup *lookups, *other;
    int64_t *starts;
    int shift, slices;         /* bits of a row below its bucket's; parts in which lookups are scattered */
    int64_t *counts;           /* [slices][buckets]: the slice's lookups in the bucket, then the place of the next */
    int64_t buckets[(1 << BUCKET_BITS) + 1]; /* the first lookup of each */
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

static void scatter_slices(void *context, int64_t begin, int64_t end)
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
    /* Disjoint from other parts': a bucket has at most as many segments as lookups, and one entry more. */
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

static void hogwild_part(void *context, int64_t begin, int64_t end)
{
    const row_context *c = context;
    c->run(c->kernel, c->fold, &c->segments, begin, end);
}

/* Allocates work space for n lookups: the lookups twice, the starts of segments, the counts of slices. */
enum { MAX_SLICES = 16 };
fastopt_lookup *lookup_space(int64_t n)
{
    const size_t starts = (size_t)n + (1 << BUCKET_BITS) + 1, counts = (size_t)MAX_SLICES << BUCKET_BITS;
    return malloc((size_t)n * 2 * sizeof(fastopt_lookup) + (starts + counts) * sizeof(int64_t));
}

void update_rows(const fastopt_job *job, fastopt_lookup *space, int threads)
{
    const fastopt_rows *rows = job->rows;
    const fastopt_rule *rule = &rules[job->rule].rule;
    const fastopt_loops *loops = active->loops[job->dtype];
    const int kernel = rules[job->rule].kernel;
    const int64_t n = rows->count, width = rows->width;
    fastopt_pass pass = pass_of(job, job->steps ? job->steps[job->parameter[0]] : 0);
    pass.element = job->elements ? job->elements[0] : 0;
    row_context c = {
        .kernel = (pass.storage ? loops->stored : loops->kernels)[kernel][job->copies - 1],
        .fold = loops->row_folds[kernel],
        .run = loops->run_rows,
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
        parallel_for(hogwild_part, &c, n, GRAIN / width + 1, ROW_SHARE / width + 1, 1, threads);
        return;
    }
    const int bits = bits_of(rows->rows - 1), most = bits_of(n / 16) < BUCKET_BITS ? bits_of(n / 16) : BUCKET_BITS;
    const int bucket_bits = bits < most ? bits : most;
    const int64_t buckets = (int64_t)1 << bucket_bits, each = n / buckets * width + 1;
    c.shift = bits - bucket_bits;
    c.slices = n < GRAIN || threads < 2 ? 1 : threads < MAX_SLICES ? threads : MAX_SLICES;
    c.counts = c.starts + n + (1 << BUCKET_BITS) + 1;
    parallel_for(count_slices, &c, c.slices, 1, 1, 1, threads);
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
    parallel_for(scatter_slices, &c, c.slices, 1, 1, 1, threads);
    parallel_for(bucket_part, &c, buckets, GRAIN / each + 1, ROW_SHARE / each + 1, 1, threads);
}
