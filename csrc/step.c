/* Steps of jobs: advance step counts, fold hyper-parameters into coefficients, update elements. */
#include "library.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Advances every tensor and folds its coefficients, once for successive tensors with the same group, step, factor and
 * scalars. With a stage over tensors each has a row of its own, for the stage completes it. */
static void advance(const fastopt_job *job, double grad_scale)
{
    const fastopt_rule *rule = &rules[job->rule].rule;
    const int scalars = rule->scalars, copies = job->copies;
    const int row = copies * rule->coefficients, hyper = copies * rule->hyper;
    double before[FASTOPT_MAX_SCALARS] = {0}, last_factor = 1;
    int32_t rows = 0, last = -1;
    for (int64_t i = 0; i < job->tensors; i++) {
        const int32_t parameter = job->parameter[i];
        double *now = scalars ? job->scalars + (int64_t)parameter * scalars : NULL;
        const double factor = job->factors ? job->factors[parameter] : 1;
        int64_t t = ++job->steps[parameter];
        if (last >= 0 && !has_stage(job) && job->group[parameter] == job->group[last] && t == job->steps[last]
            && factor == last_factor
            && (!scalars || !memcmp(now, before, scalars * sizeof(double)))) {
            if (scalars)
                memcpy(now, job->scalars + (int64_t)last * scalars, scalars * sizeof(double));
        } else {
            if (scalars)
                memcpy(before, now, scalars * sizeof(double));
            for (int k = 0; k < copies; k++)
                fold_into(job->rule, (double)t, grad_scale * factor,
                          job->hyper + (int64_t)job->group[parameter] * hyper + k * rule->hyper, now,
                          job->coefficients + (int64_t)rows * row + k * rule->coefficients);
            rows++;
        }
        job->row_of[i] = rows - 1;
        last = parameter;
        last_factor = factor;
    }
}

/* 1 if any array is in blocks, which are updated whole. */
static int has_blocks(const fastopt_storage *storage, int arrays)
{
    for (int j = FIRST_STATE; storage && j < arrays; j++)
        if (in_blocks(storage->dtypes[j]))
            return 1;
    return 0;
}

/* Rounds n up to a multiple of a power of two. */
static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) & -to; }

/* 1 if all arrays are of the compute dtype, and of options only those are set that prepare gradients for kernels. */
static int is_plain(const fastopt_storage *storage, int32_t dtype, int arrays)
{
    if (storage->options & ~(FASTOPT_NOISE | FASTOPT_CLIP))
        return 0;
    for (int j = 0; j < arrays; j++)
        if (storage->dtypes[j] != dtype)
            return 0;
    return 1;
}

fastopt_pass pass_of(const fastopt_job *job, int64_t t)
{
    const fastopt_storage *storage = job->storage;
    fastopt_pass pass = {.sum = job->sum, .step = t, .limit = INFINITY, .deviation = -1,
                         .first_input = first_input_of(job->rule, job->copies),
                         .end_input = arrays_of(job->rule, job->copies)};
    if (!storage)
        return pass;
    if (storage->options & FASTOPT_NOISE) {
        pass.deviation = sqrt(storage->noise_eta / pow((double)t, storage->noise_gamma));
        pass.noise_seed = storage->noise_seed;
    }
    if (storage->options & FASTOPT_CLIP)
        pass.limit = storage->clip_value;
    if (!is_plain(storage, job->dtype, arrays_of(job->rule, job->copies)))
        pass.storage = storage;
    return pass;
}

/* Writes the sums of each sixteen lanes. */
static void add_lanes(const double (*lanes)[16], int count, double *sums)
{
    for (int k = 0; k < count; k++) {
        double sum = 0;
        for (int lane = 0; lane < 16; lane++)
            sum += lanes[k][lane];
        sums[k] = sum;
    }
}

/* Updates elements [begin, end) of a job, or of a run in blocks the blocks that begin there. With `sums` it measures
 * them instead, from the beginning of a block of the norm's on, and writes the sums of each of these. */
static void update_runs(const fastopt_job *job, int64_t begin, int64_t end, double *sums)
{
    const fastopt_loops *loops = active->loops[job->dtype];
    const fastopt_storage *storage = job->storage;
    const int row = job->copies * rules[job->rule].rule.coefficients, kernel_of = rules[job->rule].kernel;
    const int arrays = arrays_of(job->rule, job->copies), all = all_arrays_of(job->rule, job->copies, storage);
    const int width = width_of(job->rule, job->copies, storage);
    const int64_t block = has_blocks(storage, arrays) ? FASTOPT_BLOCK : 1;
    int64_t bytes = 0;
    for (int j = 0; j < all; j++)
        bytes += storage ? in_blocks(storage->dtypes[j]) ? 1 : size_of(storage->dtypes[j]) : size_of(job->dtype);
    const int prefetch = prefetch_pays(job->offsets[job->runs] * bytes);
    void *addresses[MAX_STORED];
    for (int64_t r = find_run(job->offsets, job->runs, begin); r < job->runs && job->offsets[r] < end; r++) {
        const int64_t first = job->offsets[r], length = job->offsets[r + 1] - first;
        const int64_t start = round_up(begin > first ? begin - first : 0, block);
        const int64_t stop = round_up(end - first, block) < length ? round_up(end - first, block) : length;
        const int64_t *strides = job->strides ? job->strides + r * width : NULL;
        const int32_t tensor = job->tensor_of[r];
        const double *coefficients = job->coefficients + (int64_t)job->row_of[tensor] * row;
        fastopt_pass pass = pass_of(job, job->steps[job->parameter[tensor]]);
        const fastopt_kernel kernel =
            sums ? (pass.storage ? loops->stored_measures : loops->measures)[kernel_of]
                 : (pass.storage ? loops->stored : loops->kernels)[kernel_of][job->copies - 1];
        pass.prefetch = prefetch;
        for (int64_t at = start, n; at < stop; at += n) {
            double lanes[MAX_SUMS][16];
            n = stop - at;
            if (sums) {
                memset(lanes, 0, sizeof lanes);
                pass.lanes = *lanes;
                n = n < FASTOPT_NORM_BLOCK ? n : FASTOPT_NORM_BLOCK;
            }
            for (int j = 0; j < all; j++) {
                const int32_t dtype = storage ? storage->dtypes[j] : job->dtype;
                const int64_t beyond = in_blocks(dtype) ? at / FASTOPT_BLOCK * FASTOPT_BLOCK_BYTES
                                                        : at * (strides ? strides[j] : size_of(dtype));
                addresses[j] = (char *)job->addresses[r * width + j] + beyond;
            }
            pass.element = (job->elements ? job->elements[r] : first + (storage ? storage->first_element : 0)) + at;
            loops->run(kernel, n, all, addresses, strides, coefficients, row, &pass);
            if (sums) {
                const int count = rules[job->rule].sums;
                add_lanes(lanes, count, sums + (job->blocks[r] + at / FASTOPT_NORM_BLOCK) * count);
            }
        }
    }
}

typedef struct {
    const fastopt_job *job;
    int64_t begin;
} part_of_job;

static void update_share(void *context, int64_t begin, int64_t end)
{
    const part_of_job *part = context;
    update_runs(part->job, part->begin + begin, part->begin + end, NULL);
}

void update_elements(const fastopt_job *job, int64_t begin, int64_t end, int threads)
{
    part_of_job part = {job, begin};
    parallel_for(update_share, &part, end - begin, GRAIN, SHARE, ALIGN, threads);
}

/* ---- stages over tensors ---- */

/* The element at which a block of a job's runs begins; the end after the last. */
static int64_t first_of_block(const fastopt_job *job, int64_t block)
{
    const int64_t r = find_run(job->blocks, job->runs, block);
    const int64_t first = job->offsets[r] + (block - job->blocks[r]) * FASTOPT_NORM_BLOCK;
    return first < job->offsets[r + 1] ? first : job->offsets[r + 1];
}

/* Writes the sums of blocks [begin, end) of a job. */
static void measure_blocks(void *context, int64_t begin, int64_t end)
{
    const fastopt_job *job = context;
    update_runs(job, first_of_block(job, begin), first_of_block(job, end), job->sums);
}

/* The sum of sum k of n blocks: 256 partial sums of every 256th, then their sum. */
static double add_blocks(const double *sums, int64_t n, int width, int k)
{
    enum { PARTS = 256 };
    double parts[PARTS] = {0}, total = 0;
    for (int64_t i = 0; i < n; i++)
        parts[i % PARTS] += sums[i * width + k];
    for (int part = 0; part < PARTS && part < n; part++)
        total += parts[part];
    return total;
}

/* Reads or writes a number of the compute type, wherever it lies. */
static double read_single(const void *at, int32_t dtype)
{
    double wide;
    float narrow;
    memcpy(dtype == FASTOPT_FLOAT32 ? (void *)&narrow : &wide, at, (size_t)size_of(dtype));
    return dtype == FASTOPT_FLOAT32 ? narrow : wide;
}
static void write_single(void *at, int32_t dtype, double value)
{
    const float narrow = (float)value;
    memcpy(at, dtype == FASTOPT_FLOAT32 ? (const void *)&narrow : &value, (size_t)size_of(dtype));
}

/* The addresses of the single states of the tensor that run r is of. */
static void *const *singles_of(const fastopt_job *job, int64_t r)
{
    const int width = width_of(job->rule, job->copies, job->storage);
    return job->addresses + (r + 1) * width - rules[job->rule].rule.singles;
}

/* The coefficients of the tensor that run r is of. */
static double *row_of(const fastopt_job *job, int64_t r)
{
    return job->coefficients + (int64_t)job->row_of[job->tensor_of[r]] * rules[job->rule].rule.coefficients;
}

/* The first run of the next tensor; the end after the last. */
static int64_t next_tensor(const fastopt_job *job, int64_t r)
{
    int64_t next = r;
    while (next < job->runs && job->tensor_of[next] == job->tensor_of[r])
        next++;
    return next;
}

/* Writes the sums of each block of a job's tensors. */
static void measure_job(const fastopt_job *job, int threads)
{
    const rule_entry *entry = &rules[job->rule];
    for (int64_t r = 0; entry->reads && r < job->runs; r++)
        for (int k = 0; job->offsets[r] < job->offsets[r + 1] && k < entry->reads; k++)
            row_of(job, r)[OWN + entry->folds + k] = read_single(singles_of(job, r)[entry->read_at[k]], job->dtype);
    if (job->runs)
        parallel_for(measure_blocks, (void *)job, job->blocks[job->runs], GRAIN / FASTOPT_NORM_BLOCK,
                     SHARE / FASTOPT_NORM_BLOCK, 1, threads);
}

/* Makes further coefficients, and new single states, of what was measured of the tensors whose runs are [begin, end) of
 * all jobs of the first one's rule. The first of these that has elements has the single states of all. */
static void fold_sums(const fastopt_job *jobs, int64_t n, int64_t begin, int64_t end)
{
    const rule_entry *entry = &rules[jobs->rule];
    const int singles = entry->rule.singles;
    double sums[MAX_SUMS] = {0}, before[MAX_SINGLES] = {0}, after[MAX_SINGLES] = {0};
    for (int pass = 0, tensors = 0; pass < 3; pass++, tensors = 0) /* to add up, to fold, to write single states */
        for (const fastopt_job *job = jobs; job < jobs + n; job++) {
            const int64_t stop = end < job->runs ? end : job->runs;
            if (job->rule != jobs->rule)
                continue;
            for (int64_t r = begin, next; r < stop; r = next) {
                next = next_tensor(job, r);
                if (job->offsets[next] == job->offsets[r])
                    continue; /* without elements it keeps its single states */
                void *const *at = singles_of(job, r);
                double *own = row_of(job, r), one[MAX_SINGLES];
                for (int k = 0; pass == 0 && k < entry->sums; k++)
                    sums[k] += add_blocks(job->sums + job->blocks[r] * entry->sums, job->blocks[next] - job->blocks[r],
                                          entry->sums, k);
                for (int k = 0; pass == 0 && !tensors && k < singles; k++)
                    before[k] = read_single(at[k], job->dtype);
                if (pass == 1) {
                    for (int j = OWN; job->dtype == FASTOPT_FLOAT32 && j < entry->rule.coefficients; j++)
                        own[j] = (float)own[j]; /* as the kernels have them */
                    memcpy(one, before, sizeof one);
                    entry->stage(sums, one, own + OWN);
                    if (!tensors)
                        memcpy(after, one, sizeof one);
                }
                for (int k = 0; pass == 2 && k < singles; k++)
                    write_single(at[k], job->dtype, after[k]);
                tensors++;
            }
        }
}

void measure_tensors(const fastopt_job *jobs, int64_t n, int threads)
{
    for (int64_t i = 0; i < n; i++)
        if (has_stage(&jobs[i]))
            measure_job(&jobs[i], threads);
    for (int64_t i = 0, k; i < n; i++) {
        if (!has_stage(&jobs[i]))
            continue;
        for (int64_t r = 0, next; !is_over_all(&jobs[i]) && r < jobs[i].runs; r = next) {
            next = next_tensor(&jobs[i], r);
            fold_sums(&jobs[i], 1, r, next);
        }
        for (k = 0; k < i && jobs[k].rule != jobs[i].rule;)
            k++;
        if (is_over_all(&jobs[i]) && k == i)
            fold_sums(&jobs[i], n - i, 0, INT64_MAX);
    }
}

/* ---- the calls ---- */

static int check_steps(const fastopt_job *job)
{
    for (int64_t i = 0; i < job->tensors; i++)
        if (job->steps[job->parameter[i]] < 0 || job->steps[job->parameter[i]] == INT64_MAX)
            return FASTOPT_BAD_STEP;
    return FASTOPT_OK;
}

static int check_jobs(const fastopt_job *jobs, int64_t n, int threads)
{
    if (n < 0 || exceeds_memory(n, sizeof *jobs))
        return FASTOPT_BAD_SIZE;
    if (n && !jobs)
        return FASTOPT_NULL_POINTER;
    for (int64_t i = 0; i < n; i++) {
        int error = check_job(&jobs[i], threads);
        if (!error)
            error = check_steps(&jobs[i]);
        if (error)
            return error;
    }
    return FASTOPT_OK;
}

/* 1 if a job updates rows that have elements. */
static int has_rows(const fastopt_job *job) { return job->rows && job->rows->width && job->rows->count; }

int fastopt_step(fastopt_job *jobs, int64_t n, double grad_scale, int32_t threads)
{
    int error = check_jobs(jobs, n, threads);
    if (error)
        return error;
    int64_t bytes = 0;
    for (int64_t i = 0; i < n; i++)
        if (has_rows(&jobs[i]) && space_of(&jobs[i]) > bytes)
            bytes = space_of(&jobs[i]);
    row_space *space = bytes ? take_space(bytes) : NULL;
    if (bytes && !space)
        return FASTOPT_NO_MEMORY;
    IN_IEEE_ARITHMETIC;
    for (int64_t i = 0; i < n; i++)
        advance(&jobs[i], grad_scale);
    measure_tensors(jobs, n, threads);
    for (int64_t i = 0; i < n; i++) {
        if (has_rows(&jobs[i]))
            update_rows(&jobs[i], space, threads);
        else if (!jobs[i].rows)
            update_elements(&jobs[i], 0, jobs[i].offsets[jobs[i].runs], threads);
    }
    leave_space(space);
    return FASTOPT_OK;
}

int fastopt_advance(fastopt_job *jobs, int64_t n, double grad_scale)
{
    int error = check_jobs(jobs, n, 1);
    if (error)
        return error;
    IN_IEEE_ARITHMETIC;
    for (int64_t i = 0; i < n; i++)
        advance(&jobs[i], grad_scale);
    return FASTOPT_OK;
}

int fastopt_update_part(const fastopt_job *job, int64_t begin, int64_t end, int32_t threads)
{
    int error = check_job(job, threads);
    if (error)
        return error;
    if (begin < 0 || end < begin || end > job->offsets[job->runs]
        || (has_stage(job) && begin < end && end - begin < job->offsets[job->runs]))
        return FASTOPT_BAD_SIZE;
    row_space *space = has_rows(job) ? take_space(space_of(job)) : NULL;
    if (has_rows(job) && !space)
        return FASTOPT_NO_MEMORY;
    IN_IEEE_ARITHMETIC;
    if (has_stage(job) && begin < end)
        measure_tensors(job, 1, threads);
    if (space)
        update_rows(job, space, threads);
    else if (!job->rows)
        update_elements(job, begin, end, threads);
    leave_space(space);
    return FASTOPT_OK;
}
