/* Vectors of 32-bit numbers, as the compiler's vector extensions have them, for every instruction set. Where gcc finds no
 * instruction for them, it is told which; clang finds it. */
#ifndef FASTOPT_VECTORS_H
#define FASTOPT_VECTORS_H

#ifdef __AVX2__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

/* LANES are those of the instruction set's vectors: compilers split wider ones badly. */
#if defined(__AVX512BW__)
#define LANES 16
#define EVENS {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}
#define LOWER {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}
#define FIRST_OF_FOUR {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29}
#define FIRST_OF_TWO {0, 8, 2, 10, 4, 12, 6, 14}
#elif defined(__AVX2__)
#define LANES 8
#define EVENS {0, 2, 4, 6, 8, 10, 12, 14}
#define LOWER {0, 8, 1, 9, 2, 10, 3, 11}
#define FIRST_OF_FOUR {0, 8, 1, 9, 4, 12, 5, 13}
#define FIRST_OF_TWO {0, 4, 2, 6}
#else
#define LANES 4
#define EVENS {0, 2, 4, 6}
#define LOWER {0, 4, 1, 5}
#define FIRST_OF_FOUR {0, 4, 1, 5}
#define FIRST_OF_TWO {0, 2}
#endif

typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint16_t shorts __attribute__((vector_size(LANES * 2)));
typedef uint64_t longs __attribute__((vector_size(LANES * 4)));

#define SPLAT(x) ((words){0} + (uint32_t)(x))

static const words EVEN = EVENS;

INLINE words load_words(const void *from)
{
    words w;
    memcpy(&w, from, sizeof w);
    return w;
}

INLINE floats load_floats(const void *from)
{
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store_words(void *to, words w) { memcpy(to, &w, sizeof w); }
INLINE void store_floats(void *to, floats x) { memcpy(to, &x, sizeof x); }

/* where ? a : b, for each bit. */
INLINE words select_bits(words where, words a, words b)
{
#ifdef __AVX512BW__
    return (words)_mm512_ternarylogic_epi32((__m512i)where, (__m512i)a, (__m512i)b, 0xca);
#else
    return (a & where) | (b & ~where);
#endif
}

/* The lower halves of even and odd lanes, in their order. */
INLINE words join_lower_halves(longs even, longs odd)
{
#ifdef __AVX512BW__
    return (words)_mm512_mask_shuffle_epi32((__m512i)even, 0xaaaa, (__m512i)odd, _MM_PERM_CCAA);
#else
    return (words)((even & UINT32_MAX) | odd << 32);
#endif
}

/* Transposes the four by four numbers that four vectors have in each 16 bytes. */
INLINE void transpose(floats rows[4], floats columns[4])
{
    const ints half = FIRST_OF_FOUR;
    const longs pair = FIRST_OF_TWO;
    for (int k = 0; k < 4; k += 2) {
        const floats a = rows[k], b = rows[k + 1];
        rows[k] = __builtin_shuffle(a, b, half);
        rows[k + 1] = __builtin_shuffle(a, b, half + 2);
    }
    for (int k = 0; k < 2; k++) {
        const longs a = (longs)rows[k], b = (longs)rows[k + 2];
        columns[2 * k] = (floats)__builtin_shuffle(a, b, pair);
        columns[2 * k + 1] = (floats)__builtin_shuffle(a, b, pair + 1);
    }
}

/* Products of the lower halves of 64-bit lanes with a number. */
INLINE longs multiply(longs a, uint32_t by)
{
#if defined(__AVX512BW__)
    return (longs)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(by));
#elif defined(__AVX2__) && !defined(__clang__)
    return (longs)__builtin_ia32_pmuludq256((ints)a, (ints)((longs){0} + by));
#elif defined(__SSE2__) && !defined(__clang__)
    return (longs)__builtin_ia32_pmuludq128((ints)a, (ints)((longs){0} + by));
#else
    return (a & UINT32_MAX) * by;
#endif
}

INLINE floats square_root(floats x)
{
#if defined(__AVX512BW__)
    return (floats)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__) && !defined(__clang__)
    return __builtin_ia32_sqrtps256(x);
#elif defined(__SSE2__) && !defined(__clang__)
    return __builtin_ia32_sqrtps(x);
#else
    for (int k = 0; k < LANES; k++)
        x[k] = sqrtf(x[k]);
    return x;
#endif
}

#endif
