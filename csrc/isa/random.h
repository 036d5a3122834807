/* Random numbers that depend on nothing but a seed, a step and the number of an element: the words of Philox, and
 * normal deviates from them. fastopt/backends/convert.py and noise.py have the same, bit for bit.
 */
#ifndef FASTOPT_RANDOM_H
#define FASTOPT_RANDOM_H

#include "vectors.h"

/* ---- Philox4x32-7 (Salmon et al. 2011) ---- */

enum { ROUNDS = 7 };
#define FIRST_FACTOR 0xD2511F53
#define SECOND_FACTOR 0xCD9E8D57

/* What each round adds to the first and the third word: the keys, and what comes of the counter's three upper words.
 * These are the same for all counters of a stream, and half of the first two rounds is done with them. */
typedef struct {
    uint64_t keys[2][ROUNDS];
} philox_stream;

/* The stream of the counters that have the upper half of this one. */
INLINE philox_stream start_philox(uint64_t counter, uint64_t step, uint64_t seed)
{
    philox_stream s;
    for (uint32_t k = 0; k < ROUNDS; k++) {
        s.keys[0][k] = (uint32_t)((uint32_t)seed + k * 0x9E3779B9);
        s.keys[1][k] = (uint32_t)((uint32_t)(seed >> 32) + k * 0xBB67AE85);
    }
    const uint64_t b = (uint64_t)(uint32_t)step * SECOND_FACTOR;
    const uint64_t a = (uint64_t)(uint32_t)(b >> 32 ^ counter >> 32 ^ s.keys[0][0]) * FIRST_FACTOR;
    s.keys[1][0] ^= step >> 32;
    s.keys[0][1] ^= (uint32_t)b;
    s.keys[1][1] ^= a >> 32;
    s.keys[1][2] ^= (uint32_t)a;
    return s;
}

/* Writes the four words of LANES counters: of those given in even lanes, of as many that are `apart` from them in odd
 * ones. Both have vectors of their own, in the lower halves of 64-bit lanes, as multiplications take them; the upper
 * halves mean nothing. */
INLINE void philox(const philox_stream *s, longs even, uint64_t apart, words out[4])
{
    longs c[2][4];
    for (int odd = 0; odd < 2; odd++) {
        const longs a = multiply(odd ? even + apart : even, FIRST_FACTOR);
        const longs b = multiply(a >> 32 ^ s->keys[1][0], SECOND_FACTOR);
        c[odd][0] = b >> 32 ^ s->keys[0][1];
        c[odd][1] = b;
        c[odd][2] = a ^ s->keys[1][1];
        c[odd][3] = (longs){0};
    }
    for (int round = 2; round < ROUNDS; round++)
        for (int odd = 0; odd < 2; odd++) {
            longs *w = c[odd];
            const longs a = multiply(w[0], FIRST_FACTOR), b = multiply(w[2], SECOND_FACTOR);
            w[0] = b >> 32 ^ w[1] ^ s->keys[0][round];
            w[2] = a >> 32 ^ w[3] ^ s->keys[1][round];
            w[1] = b;
            w[3] = a;
        }
    for (int q = 0; q < 4; q++)
        out[q] = join_lower_halves(c[0][q], c[1][q]);
}

/* ---- normal deviates ---- */

/* -2 ln(1 + t)/t, and sqrt(2) sin(pi/4 v)/v and sqrt(2) cos(pi/4 v) by the powers of v^2. */
#define P0 -1.99999995f
#define P1 1.00001101f
#define P2 -0.666600387f
#define P3 0.499310444f
#define P4 -0.401941312f
#define P5 0.349355195f
#define P6 -0.286296434f
#define P7 0.134119785f
#define S0 1.11072072f
#define S1 -0.114191193f
#define S2 3.52121071e-3f
#define S3 -5.07381055e-5f
#define C0 1.41421352f
#define C1 -0.436177762f
#define C2 2.24151651e-2f
#define C3 -4.50965121e-4f

/* Splits a float's magnitude into m in [3/4, 3/2) and a power of two. */
INLINE void split(floats x, floats *m, floats *power)
{
#ifdef __AVX512BW__
    *m = (floats)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
    *power = (floats)_mm512_getexp_ps((__m512)(x * 1.33333337f)); /* next to 3/2 it is rounded rightly */
#else
    const words above = ((words)x & 0x7fffffff) - 0x3f400000; /* the bits of 3/4 */
    *m = (floats)((above & 0x7fffff) + 0x3f400000);
    *power = __builtin_convertvector((ints)above >> 23, floats);
#endif
}

/* Two standard normal deviates from two words, by Box and Muller (1958): r cos(a) and r sin(a) with r = sqrt(-2 ln u).
 *
 * u is the magnitude of the first word over 2^31, made odd, and in [2^-31, 1], so that r reaches 6.55; the word's sign
 * is r's. The second word gives a in [-pi/2, pi/2), by the sine and cosine of its half. All is float32 arithmetic; once
 * u is rounded to it, deviates differ from exact ones by less than 5e-7 of r. */
INLINE void normal_pair(words first, words second, floats *x, floats *y)
{
    /* u = 2^(power - 31) m, and -2 ln m = t P(t) with t = m - 1 */
    const floats odd = __builtin_convertvector((ints)(first | 1), floats);
    floats m, power;
    split(odd, &m, &power);
    const floats t = m - 1.0f, t2 = t * t;
    const floats p1 = ((t2 * P7 + P5) * t2 + P3) * t2 + P1, p0 = ((t2 * P6 + P4) * t2 + P2) * t2 + P0;
    const floats square = (p1 * t + p0) * t + (31.0f - power) * 1.38629436f; /* 2 ln 2 */
    const floats r = (floats)(((words)odd & 0x80000000) | (words)square_root(square));

    /* a = pi/2 v: sqrt(2) times the sine of its half is v S(v^2), and its cosine C(v^2) */
    const floats v = __builtin_convertvector((ints)second, floats) * 0x1p-31f, w = v * v;
    const floats sine = (((w * S3 + S2) * w + S1) * w + S0) * v;
    const floats cosine = ((w * C3 + C2) * w + C1) * w + C0;
    const floats part = r * sine;
    *x = r - part * sine;
    *y = part * cosine;
}

/* Prefetches half of the lines of NORMALS elements of arrays. */
INLINE void fetch_half(const upcoming *next, int64_t from, int half)
{
    for (int j = 0; j < next->arrays; j++)
        for (int line = half; line < next->sizes[j]; line += 2) /* of 64 bytes, for as many elements */
            PREFETCH(next->at[j] + from * next->sizes[j] + line * 64);
}

/* Writes the deviates of n elements, rounded up to a multiple of NORMALS, from a multiple of NORMALS on. Element e has
 * the number e % 4 of the counter 2^63 + e / 4. Stochastic rounding has counters below 2^63, so that both may have the
 * same seed. All words are drawn first: registers do not hold what both loops need. Meanwhile as many elements of the
 * `next` arrays come from memory. */
void normals(uint64_t element, int64_t n, uint64_t step, uint64_t seed, const upcoming *next, float *out)
{
    const uint64_t counter = (uint64_t)1 << 63 | element / 4;
    const int64_t left = 4 * (((int64_t)1 << 32) - (uint32_t)counter);
    if (n > left) {
        normals(element + (uint64_t)left, n - left, step, seed, next, out + left);
        n = left;
    }
    const philox_stream s = start_philox(counter, step, seed);
    longs even; /* counters of lanes that the transpose brings into their order */
    for (int k = 0; k < LANES / 2; k++)
        even[k] = (uint64_t)(k / 2 + k % 2 * (LANES / 2));
    even += counter;
    for (int64_t k = 0; k < n; k += 4 * LANES, even += LANES) {
        words w[4];
        if (k % NORMALS == 0)
            fetch_half(next, k, 0);
        philox(&s, even, LANES / 4, w);
        for (int q = 0; q < 4; q++)
            store_words(out + k + q * LANES, w[q]);
    }
    for (int64_t k = 0; k < n; k += 4 * LANES) {
        words w[4];
        floats z[4], columns[4];
        if (k % NORMALS == 0)
            fetch_half(next, k, 1);
        for (int q = 0; q < 4; q++)
            w[q] = load_words(out + k + q * LANES);
        normal_pair(w[0], w[1], &z[0], &z[1]);
        normal_pair(w[2], w[3], &z[2], &z[3]);
        transpose(z, columns);
        for (int q = 0; q < 4; q++)
            store_floats(out + k + q * LANES, columns[q]);
    }
}

#endif
