/* Random numbers that depend on nothing but a seed, a step and the number of an element: the words of Philox, and
 * normal deviates from them. fastopt/backends/convert.py and noise.py have the same, bit for bit.
 */
#ifndef FASTOPT_RANDOM_H
#define FASTOPT_RANDOM_H

#include "vectors.h"

/* ---- Philox4x32-10 (Salmon et al. 2011) ---- */

enum { ROUNDS = 10 };
typedef struct {
    uint64_t step, keys[2][ROUNDS];
} philox_stream;

INLINE philox_stream start_philox(uint64_t step, uint64_t seed)
{
    philox_stream s = {.step = step};
    for (uint32_t k = 0; k < ROUNDS; k++) {
        s.keys[0][k] = (uint32_t)((uint32_t)seed + k * 0x9E3779B9);
        s.keys[1][k] = (uint32_t)((uint32_t)(seed >> 32) + k * 0xBB67AE85);
    }
    return s;
}

/* The even ones of LANES successive counters. */
INLINE longs even_counters(uint64_t first)
{
    uint64_t counters[LANES / 2];
    longs even;
    for (int k = 0; k < LANES / 2; k++)
        counters[k] = first + 2 * (uint64_t)k;
    memcpy(&even, counters, sizeof even);
    return even;
}

/* Writes the four words of LANES successive counters, whose even ones are given. Even and odd counters have vectors of
 * their own, in the lower halves of 64-bit lanes, as multiplications take them; the upper halves mean nothing. */
INLINE void philox(const philox_stream *s, longs even, words out[4])
{
    longs c[2][4];
    for (int odd = 0; odd < 2; odd++) {
        c[odd][0] = even + (uint64_t)odd;
        c[odd][1] = c[odd][0] >> 32;
        c[odd][2] = (longs){0} + s->step;
        c[odd][3] = (longs){0} + (s->step >> 32);
    }
    for (int round = 0; round < ROUNDS; round++)
        for (int odd = 0; odd < 2; odd++) {
            longs *w = c[odd];
            const longs a = multiply(w[0], 0xD2511F53), b = multiply(w[2], 0xCD9E8D57);
            w[0] = b >> 32 ^ w[1] ^ s->keys[0][round];
            w[2] = a >> 32 ^ w[3] ^ s->keys[1][round];
            w[1] = b;
            w[3] = a;
        }
    for (int q = 0; q < 4; q++)
        out[q] = (words)((c[0][q] & UINT32_MAX) | c[1][q] << 32);
}

/* ---- normal deviates ---- */

/* Two standard normal deviates from two words, by Box and Muller (1958): r cos(a) and r sin(a) with r = sqrt(-2 ln u).
 *
 * u has 31 bits of the first word and is in [2^-32, 1], so that r reaches 6.66; the last bit is r's sign. The second
 * word gives a in (-pi/4, pi/4); its last bit swaps cosine and sine. Sign and swap turn a by quarters of a circle. All
 * is float32 arithmetic; once u is rounded to it, deviates differ from exact ones by less than 5e-7 of r. */
INLINE void normal_pair(words first, words second, floats *x, floats *y)
{
    /* u = 2^-halvings m with m in [sqrt(1/2), sqrt(2)), and -2 ln m = t P(t) with t = m - 1 */
    const floats scaled = __builtin_convertvector((ints)(first >> 1), floats) + 0.5f;
    const words above = (words)scaled - 0x3f3504f3; /* the bits of sqrt(1/2) */
    const floats t = (floats)((above & 0x7fffff) + 0x3f3504f3) - 1.0f, t2 = t * t;
    const floats halvings = __builtin_convertvector(31 - ((ints)above >> 23), floats);
    const floats low = (t * 0.49939820f - 0.66670118f) * t2 + (t * 1.00000731f - 1.99999989f);
    const floats high = (t * 0.20213793f - 0.32445163f) * t2 + (t * 0.34501660f - 0.39800331f);
    const floats square = halvings * 1.38629436f + (high * (t2 * t2) + low) * t; /* 2 ln 2 */
    const floats r = (floats)((words)square_root(square) ^ first << 31);

    /* a = pi/4 v: its sine is v S(v^2), its cosine C(v^2) */
    const floats v = __builtin_convertvector((ints)(second | 1), floats) * 0x1p-31f, w = v * v;
    const floats sine = (((w * -3.59504522e-5f + 2.49000102e-3f) * w - 8.07454325e-2f) * w + 7.85398161e-1f) * v;
    const floats cosine = ((w * -3.18727838e-4f + 1.58496842e-2f) * w - 3.08424166e-1f) * w + 9.99999967e-1f;
    const words swap = (words)((ints)(second << 31) >> 31);
    *x = r * (floats)select_bits(swap, (words)sine, (words)cosine);
    *y = r * (floats)select_bits(swap, (words)cosine, (words)sine);
}

/* Writes the deviates of n elements, rounded up to a multiple of NORMALS, from a multiple of NORMALS on. Element e has
 * the number e % 4 of the counter 2^63 + e / 4. Stochastic rounding has counters below 2^63, so that both may have the
 * same seed. All words are drawn first: registers do not hold what both loops need. */
void normals(uint64_t element, int64_t n, uint64_t step, uint64_t seed, float *out)
{
    const philox_stream s = start_philox(step, seed);
    const ints lower = LOWER;
    longs even = even_counters((uint64_t)1 << 63 | element / 4);
    for (int64_t k = 0; k < n; k += 4 * LANES, even += LANES) {
        words w[4];
        philox(&s, even, w);
        for (int q = 0; q < 4; q++)
            store_words(out + k + q * LANES, w[q]);
    }
    for (int64_t k = 0; k < n; k += 4 * LANES) {
        words w[4];
        floats z[4];
        for (int q = 0; q < 4; q++)
            w[q] = load_words(out + k + q * LANES);
        normal_pair(w[0], w[1], &z[0], &z[1]);
        normal_pair(w[2], w[3], &z[2], &z[3]);
        for (int half = 0; half < 2; half++) {
            const ints which = lower + half * (LANES / 2);
            const floats x = __builtin_shuffle(z[0], z[2], which), y = __builtin_shuffle(z[1], z[3], which);
            store_floats(out + k + 2 * half * LANES, __builtin_shuffle(x, y, lower));
            store_floats(out + k + (2 * half + 1) * LANES, __builtin_shuffle(x, y, lower + LANES / 2));
        }
    }
}

#endif
