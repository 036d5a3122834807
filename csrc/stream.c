/* Streams, which benchmarks take for the ceiling: the memory traffic of updates without their arithmetic. */
#include "library.h"

typedef struct {
    int arrays, ahead, writes;
    float *const *addresses;
} stream_context;

static void stream_part(void *context, int64_t begin, int64_t end)
{
    const stream_context *c = context;
    float *addresses[MAX_STREAM];
    for (int j = 0; j < c->arrays; j++)
        addresses[j] = c->addresses[j] + begin;
    if (c->writes) {
        active->streams->stream(end - begin, c->arrays, addresses, c->ahead);
    } else {
        volatile float read = active->streams->read(end - begin, c->arrays, addresses, c->ahead);
        (void)read;
    }
}

static int run_stream(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads, int writes)
{
    if (n < 0 || exceeds_memory(n, sizeof **addresses) || arrays < FIRST_STATE || arrays > MAX_STREAM)
        return FASTOPT_BAD_SIZE;
    for (int j = 0; j < arrays; j++)
        if (!addresses || (n && !addresses[j]))
            return FASTOPT_NULL_POINTER;
    int error = check_threads(threads);
    if (error)
        return error;
    stream_context context = {arrays, ahead, writes, addresses};
    parallel_for(stream_part, &context, n, GRAIN, SHARE, ALIGN, threads);
    return FASTOPT_OK;
}

int fastopt_stream(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads)
{
    return run_stream(n, arrays, addresses, ahead, threads, 1);
}

int fastopt_stream_reads(int64_t n, int32_t arrays, float *const *addresses, int32_t ahead, int32_t threads)
{
    return run_stream(n, arrays, addresses, ahead, threads, 0);
}

static void row_stream_part(void *context, int64_t begin, int64_t end)
{
    active->streams->stream_rows(context, begin, end);
}

int fastopt_stream_rows(int64_t segments, const int64_t *rows, const int64_t *starts, const int64_t *places,
                        int64_t width, int32_t arrays, float *const *addresses, int32_t threads)
{
    if (segments < 0 || exceeds_memory(segments, sizeof *rows) || width < 1 || exceeds_memory(width, sizeof **addresses)
        || arrays < FIRST_STATE || arrays > MAX_STREAM)
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
    parallel_for(row_stream_part, &stream, segments, GRAIN / width + 1, ROW_SHARE / width + 1, 1, threads);
    return FASTOPT_OK;
}
