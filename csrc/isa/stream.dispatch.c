/* The streams, compiled once for each instruction-set level. FASTOPT_ISA names the level. */
#include "compiler.h"
#include "level.h"

/* One loop for each number of arrays: the traffic of a rule with so many, and next to no arithmetic. */
#define STREAM(count, pointers, prefetches, body)                                                                     \
    static void stream_##count(int64_t n, float *const *a, int ahead)                                                 \
    {                                                                                                                 \
        float *restrict p = a[0];                                                                                     \
        const float *restrict g = a[1];                                                                               \
        pointers                                                                                                      \
        int64_t i = 0;                                                                                                \
        for (int64_t last = n - n % 64; i < last;) {                                                                  \
            if (ahead)                                                                                                \
                for (int64_t j = i + ahead; j < i + ahead + 64; j += 16) {                                            \
                    PREFETCH(p + j);                                                                                  \
                    PREFETCH(g + j);                                                                                  \
                    prefetches                                                                                        \
                }                                                                                                     \
            for (int64_t end = i + 64; i < end; i++) {                                                                \
                body                                                                                                  \
            }                                                                                                         \
        }                                                                                                             \
        for (; i < n; i++) {                                                                                          \
            body                                                                                                      \
        }                                                                                                             \
    }

#define S(k) float *restrict s##k = a[2 + k];
#define P(k) PREFETCH(s##k + j);
#define B(k) s##k[i] += g[i];
STREAM(2, , , p[i] += g[i];)
STREAM(3, S(0), P(0), p[i] += g[i]; B(0))
STREAM(4, S(0) S(1), P(0) P(1), p[i] += g[i]; B(0) B(1))
STREAM(5, S(0) S(1) S(2), P(0) P(1) P(2), p[i] += g[i]; B(0) B(1) B(2))
STREAM(6, S(0) S(1) S(2) S(3), P(0) P(1) P(2) P(3), p[i] += g[i]; B(0) B(1) B(2) B(3))

static void stream(int64_t n, int arrays, float *const *a, int ahead)
{
    void (*const streams[])(int64_t, float *const *, int) = {stream_2, stream_3, stream_4, stream_5,
                                                                     stream_6};
    streams[arrays - FIRST_STATE](n, a, ahead);
}

/* Reads arrays, and returns a sum without which the compiler would not. */
static float read_arrays(int64_t n, int arrays, float *const *a, int ahead)
{
    float lanes[64] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += 64)
        for (int j = 0; j < arrays; j++) {
            const float *from = a[j] + i;
            for (int k = 0; ahead && k < 64; k += 16)
                PREFETCH_NEAR(from + ahead + k);
            if (n - i >= 64)
                for (int k = 0; k < 64; k++)
                    lanes[k] += from[k];
            else
                for (int64_t k = 0; k < n - i; k++)
                    sum += from[k];
        }
    for (int k = 0; k < 64; k++)
        sum += lanes[k];
    return sum;
}

/* Adds each of a row's gradients to the row, and the first to the rows of its states. */
static void stream_rows(const fastopt_row_stream *s, int64_t begin, int64_t end)
{
    const int64_t width = s->width, last = s->starts[end];
    for (int64_t u = begin; u < end; u++)
        for (int64_t q = s->starts[u]; q < s->starts[u + 1]; q++) {
            const float *restrict g = s->addresses[GRADIENT] + s->places[q] * width;
            const float *next = s->addresses[GRADIENT] + s->places[q + 16 < last ? q + 16 : last - 1] * width;
            for (int64_t k = 0; k < width; k += 16)
                __builtin_prefetch(next + k, 0, 3);
            for (int j = 0; j < s->arrays; j++) {
                if (j == GRADIENT || (j >= FIRST_STATE && q > s->starts[u]))
                    continue;
                float *restrict p = s->addresses[j] + s->rows[u] * width;
                const float *soon = s->addresses[j] + s->rows[u + 8 < end ? u + 8 : end - 1] * width;
                for (int64_t k = 0; q == s->starts[u] && k < width; k += 16)
                    __builtin_prefetch(soon + k, 1, 3);
                for (int64_t k = 0; k < width; k++)
                    p[k] += g[k];
            }
        }
}

const fastopt_streams PASTE(fastopt_streams_, FASTOPT_ISA) = {stream, read_arrays, stream_rows};
