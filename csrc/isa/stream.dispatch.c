/* The streams, compiled once for each instruction-set level. FASTOPT_ISA names the level. */
#include <string.h>

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

typedef float vector __attribute__((vector_size(__BIGGEST_ALIGNMENT__))); /* as wide as the instruction set's */
enum { LANES = sizeof(vector) / sizeof(float), VECTORS = 64 / LANES /* that stay in registers */ };

/* Prefetches later lookups and rows, which lie anywhere. 32 lookups ahead, and 16 rows, are measured best; 16 to 64
 * differ little. */
INLINE void prefetch_place(const fastopt_row_stream *s, int64_t q, int64_t end)
{
    const float *next = s->addresses[GRADIENT] + s->places[q + 32 < end ? q + 32 : end - 1] * s->width;
    for (int64_t k = 0; k < s->width; k += 16)
        PREFETCH_NEAR(next + k);
}
INLINE void prefetch_row(const fastopt_row_stream *s, int64_t u, int64_t end)
{
    for (int j = 0; j < s->arrays; j++) {
        const float *next = s->addresses[j] + s->rows[u + 16 < end ? u + 16 : end - 1] * s->width;
        for (int64_t k = 0; j != GRADIENT && k < s->width; k += 16)
            PREFETCH_NEAR(next + k);
    }
}

/* Adds the sum of a row's gradients to the row and to those of its states: some columns, whose sum stays in
 * registers. */
INLINE void stream_columns(const fastopt_row_stream *s, int64_t u, int64_t end, int64_t column)
{
    vector sums[VECTORS] = {{0}}, x;
    for (int64_t q = s->starts[u]; q < s->starts[u + 1]; q++) {
        const float *g = s->addresses[GRADIENT] + s->places[q] * s->width + column;
        if (column == 0)
            prefetch_place(s, q, s->starts[end]);
        for (int k = 0; k < VECTORS; k++) {
            memcpy(&x, g + k * LANES, sizeof x);
            sums[k] += x;
        }
    }
    for (int j = 0; j < s->arrays; j++) {
        float *p = s->addresses[j] + s->rows[u] * s->width + column;
        for (int k = 0; j != GRADIENT && k < VECTORS; k++) {
            memcpy(&x, p + k * LANES, sizeof x);
            x += sums[k];
            memcpy(p + k * LANES, &x, sizeof x);
        }
    }
}

/* The same for the columns that are left. */
INLINE void stream_rest(const fastopt_row_stream *s, int64_t u, int64_t end, int64_t column)
{
    float sums[VECTORS * LANES] = {0};
    for (int64_t q = s->starts[u]; q < s->starts[u + 1]; q++) {
        const float *g = s->addresses[GRADIENT] + s->places[q] * s->width;
        if (column == 0)
            prefetch_place(s, q, s->starts[end]);
        for (int64_t k = column; k < s->width; k++)
            sums[k - column] += g[k];
    }
    for (int j = 0; j < s->arrays; j++) {
        float *p = s->addresses[j] + s->rows[u] * s->width;
        for (int64_t k = column; j != GRADIENT && k < s->width; k++)
            p[k] += sums[k - column];
    }
}

static void stream_rows(const fastopt_row_stream *s, int64_t begin, int64_t end)
{
    for (int64_t u = begin; u < end; u++) {
        int64_t column = 0;
        prefetch_row(s, u, end);
        for (; column + VECTORS * LANES <= s->width; column += VECTORS * LANES)
            stream_columns(s, u, end, column);
        if (column < s->width)
            stream_rest(s, u, end, column);
    }
}

const fastopt_streams PASTE(fastopt_streams_, FASTOPT_ISA) = {stream, read_arrays, stream_rows};
