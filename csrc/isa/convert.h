/* Storage formats: conversions between memory and a chunk of float32, in which a rule's update is computed.
 *
 * A chunk has CHUNK elements in the order 0, 2, 4, ... 1, 3, 5, ... The two halves of a 32-bit word, which holds two
 * 16-bit elements, then lie in the same lane of two vectors, and splitting and joining take no shuffles. The order
 * does not matter to updates, which are elementwise.
 *
 * Each conversion is written once with the compiler's vector extensions, for every instruction set. Compilers round
 * and pack badly for AVX-512, so the hot conversions are written with its intrinsics too. Both give the same bits.
 */
#include "random.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "16-bit elements are split and joined as on little-endian machines"
#endif

enum { HALF = CHUNK / 2 };
#define FOR_PARTS(k) for (int k = 0; k < HALF; k += LANES)

/* The increments of dither, see there. */
#define BY_ELEMENT 0x6A09E667
#define BY_STEP 0x9E3779B9

/* Constants of the hot conversions. For AVX-512 they are in a variable that gcc must read: if it saw the values, it
 * would broadcast each from a general register at every use, and shuffles would wait for the same port. Operands in
 * memory are free. */
#define CONSTANTS(X)                                                                                                  \
    X(ONE, 1) X(NAN_TABLE, 0x22) X(BELOW_TIE, 0x7fff) X(LAST_PLACE, 0x10000) X(UPPER, 0xffff0000)                     \
    X(MAGNITUDE, 0x7fffffff) X(SIGN, 0x80000000) X(CODE, 0x0ff00000) X(SIGNED_CODE, 0x07f00000)                       \
    X(LEAST, 0x30000000) X(LEAST_SIGNED, 0x38000000) X(SECOND_CODE, 0xff00) X(SECOND_SIGN, 0x8000)                    \
    X(SIGNS, 0x8080) X(HALF_SIGNS, 0x80008000) X(NOT_FINITE, 0x40004000) X(BY_16, 0x00100010)                        \
    X(ODD_BY_16, 0x10001000) X(NEXT, BY_ELEMENT)
#ifdef __AVX512BW__
#define NAME(name, value) name,
#define VALUE(name, value) value,
enum { CONSTANTS(NAME) };
__attribute__((visibility("hidden"))) uint32_t fastopt_constants[] = {CONSTANTS(VALUE)};
#define K(name) SPLAT(fastopt_constants[name])
#undef NAME
#undef VALUE
#else
#define NAME(name, value) name = (int)value,
enum { CONSTANTS(NAME) };
#define K(name) SPLAT(name)
#undef NAME
#endif

INLINE words widen_halves(const void *from)
{
#ifdef __AVX512BW__
    return (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from));
#else
    shorts h;
    memcpy(&h, from, sizeof h);
    return __builtin_convertvector(h, words);
#endif
}

INLINE void store_lower_halves(void *to, words w)
{
    const shorts h = __builtin_convertvector(w, shorts);
    memcpy(to, &h, sizeof h);
}

INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* where ? x : y, for each lane: all bits of `where` are the same in a lane. */
INLINE words select_lanes(words where, words x, words y)
{
#if defined(__AVX2__) && !defined(__AVX512BW__)
    return (words)_mm256_blendv_epi8((__m256i)y, (__m256i)x, (__m256i)where);
#else
    return select_bits(where, x, y);
#endif
}

/* a > b ? x : y, for each lane. */
INLINE words select_greater(ints a, ints b, words x, words y)
{
#ifdef __AVX512BW__
    return (words)_mm512_mask_mov_epi32((__m512i)y, _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b), (__m512i)x);
#else
    return select_lanes((words)(a > b), x, y);
#endif
}

INLINE ints max_ints(ints a, ints b)
{
#ifdef __AVX512BW__
    return (ints)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ints)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return (ints)select_greater(a, b, (words)a, (words)b);
#endif
}

/* ---- float32 ---- */

/* Puts two vectors of successive elements into a chunk, at its k-th even and odd ones. */
INLINE void split_pairs(float *chunk, int k, floats a, floats b)
{
    store_floats(chunk + k, __builtin_shuffle(a, b, (ints)EVEN));
    store_floats(chunk + HALF + k, __builtin_shuffle(a, b, (ints)EVEN + 1));
}

/* The first and the second vector of successive elements of even and odd ones. */
INLINE floats first_of(floats even, floats odd) { return __builtin_shuffle(even, odd, (ints)LOWER); }
INLINE floats second_of(floats even, floats odd) { return __builtin_shuffle(even, odd, (ints)LOWER + LANES / 2); }

INLINE void load_float32(float *chunk, const char *from)
{
    FOR_PARTS(k)
    split_pairs(chunk, k, load_floats(from + 8 * k), load_floats(from + 8 * k + sizeof(floats)));
}

INLINE void store_float32(const float *chunk, char *to)
{
    FOR_PARTS(k)
    {
        const floats a = load_floats(chunk + k), b = load_floats(chunk + HALF + k);
        store_floats(to + 8 * k, first_of(a, b));
        store_floats(to + 8 * k + sizeof a, second_of(a, b));
    }
}

INLINE void copy_chunk(char *to, const char *from)
{
    for (int k = 0; k < CHUNK; k += LANES)
        store_words(to + 4 * k, load_words(from + 4 * k));
}

/* ---- bfloat16: the upper half of a float32 ---- */

INLINE void load_bfloat16(float *chunk, const char *from)
{
    FOR_PARTS(k)
    {
        const words w = load_words(from + 4 * k);
        store_words(chunk + k, w << 16);
        store_words(chunk + HALF + k, w & K(UPPER));
    }
}

/* `rounded`, or a quiet NaN if u is NaN. */
INLINE words keep_nan(words u, words rounded)
{
#ifdef __AVX512BW__
    /* The table makes both kinds of NaN quiet and keeps `rounded` for all others. */
    return (words)_mm512_fixupimm_ps((__m512)rounded, (__m512)u, (__m512i)K(NAN_TABLE), 0);
#else
    return select_lanes((words)((floats)u != (floats)u), u | 0x400000, rounded);
#endif
}

/* Rounds to nearest, ties to even, into the upper half. The lower half is undefined. */
INLINE words round_bfloat16(words u)
{
#ifdef __AVX512BW__
    const __m512i r = _mm512_add_epi32((__m512i)u, (__m512i)K(BELOW_TIE));
    const __mmask16 odd = _mm512_test_epi32_mask((__m512i)u, (__m512i)K(LAST_PLACE));
    return keep_nan(u, (words)_mm512_mask_add_epi32(r, odd, r, (__m512i)K(ONE)));
#else
    return keep_nan(u, u + 0x7fff + (u >> 16 & 1));
#endif
}

/* Rounds into the upper half: up with the probability lower half/2^16, if `random` is uniform over 16 bits. */
INLINE words dither_bfloat16(words u, words random) { return keep_nan(u, u + random); }

/* The upper halves of two vectors in one, the even elements below the odd ones. */
INLINE words join_upper_halves(words even, words odd)
{
#if defined(__AVX512BW__)
    /* One shuffle: a shift would wait for divisions and square roots. */
    static const uint8_t down[16] = {2, 3, 0, 0, 6, 7, 0, 0, 10, 11, 0, 0, 14, 15};
    const __m512i order = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)down));
    return (words)_mm512_mask_shuffle_epi8((__m512i)odd, 0x3333333333333333, (__m512i)even, order);
#elif defined(__AVX2__)
    return (words)_mm256_blend_epi16((__m256i)(even >> 16), (__m256i)odd, 0xaa);
#else
    return select_bits(K(UPPER), odd, even >> 16);
#endif
}

INLINE void store_bfloat16(const float *chunk, char *to)
{
    FOR_PARTS(k)
    store_words(to + 4 * k, join_upper_halves(round_bfloat16(load_words(chunk + k)),
                                              round_bfloat16(load_words(chunk + HALF + k))));
}

/* ---- float16 ---- */

#ifdef __F16C__
/* Successive elements, by the processor's own conversions: NaNs keep what they have beside. */
INLINE floats widen_float16(const void *from)
{
#ifdef __AVX512BW__
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)from));
#else
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const void *)from));
#endif
}

INLINE void round_float16(void *to, floats x, const int rounding)
{
#ifdef __AVX512BW__
    _mm256_storeu_si256(to, _mm512_cvtps_ph((__m512)x, rounding | _MM_FROUND_NO_EXC));
#else
    _mm_storeu_si128(to, _mm256_cvtps_ph((__m256)x, rounding));
#endif
}

/* Rounds to nearest, ties to even. */
INLINE void narrow_float16(void *to, floats x) { round_float16(to, x, _MM_FROUND_TO_NEAREST_INT); }

/* Stores a chunk's k-th even and odd elements. */
INLINE void round_pairs(char *to, floats even, floats odd, const int rounding)
{
    round_float16(to, first_of(even, odd), rounding);
    round_float16(to + sizeof even / 2, second_of(even, odd), rounding);
}
#else
/* Converts the lower halves of words. */
INLINE words from_float16(words h)
{
    const words magnitude = (h & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const words normal = magnitude + 0x38000000, infinite = normal + 0x38000000;
    const words subnormal = (words)((floats)(magnitude + 0x38800000) - 0x1p-14f);
    const words others = select_bits((words)(exponent == 0x0f800000), infinite, normal);
    return select_bits((words)(exponent == 0), subnormal, others) | (h & 0x8000) << 16;
}

INLINE words finish_float16(words u, words a, words subnormal, words normal)
{
    words found = select_bits((words)((ints)a < 0x38800000), subnormal, normal);
    found = select_bits((words)((ints)a < 0x47800000), found,
                        select_bits((words)((ints)a > 0x7f800000), SPLAT(0x7e00), SPLAT(0x7c00)));
    return found | (u >> 16 & 0x8000);
}

/* Rounds to nearest, ties to even, into the lower half. */
INLINE words to_float16(words u)
{
    const words a = u & 0x7fffffff;
    /* Subnormal results are rounded by an addition: the sum's last place is the last place of float16. */
    return finish_float16(u, a, (words)((floats)a + 0.5f) - 0x3f000000, (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
}

INLINE floats widen_float16(const void *from) { return (floats)from_float16(widen_halves(from)); }
INLINE void narrow_float16(void *to, floats x) { store_lower_halves(to, to_float16((words)x)); }
#endif

INLINE void load_float16(float *chunk, const char *from)
{
    FOR_PARTS(k)
    {
#ifdef __F16C__
        split_pairs(chunk, k, widen_float16(from + 4 * k), widen_float16(from + 4 * k + sizeof(floats) / 2));
#else
        const words w = load_words(from + 4 * k);
        store_words(chunk + k, from_float16(w & 0xffff));
        store_words(chunk + HALF + k, from_float16(w >> 16));
#endif
    }
}

INLINE void store_float16(const float *chunk, char *to)
{
    FOR_PARTS(k)
    {
#ifdef __F16C__
        round_pairs(to + 4 * k, load_floats(chunk + k), load_floats(chunk + HALF + k), _MM_FROUND_TO_NEAREST_INT);
#else
        store_words(to + 4 * k, to_float16(load_words(chunk + k)) | to_float16(load_words(chunk + HALF + k)) << 16);
#endif
    }
}

/* ---- stochastic rounding ---- */

/* Random numbers of 16 bits for the elements of a tensor. A group of 128 elements has 16 counters: elements 2l and
 * 2l + 1 of its q-th chunk have the halves of word q of counter l. Numbers are then in the order of a chunk. */
enum { GROUP = 4 * CHUNK };
typedef struct {
    uint64_t seed, step;
    uint64_t group[2];          /* those in `bits`, counted from 1 */
    uint32_t bits[2][4][HALF];
} randoms;

/* Draws the numbers of a group. */
NOINLINE void draw_group(randoms *r, uint64_t group)
{
    const uint64_t counter = group * HALF;
    const philox_stream stream = start_philox(counter, r->step, r->seed);
    longs even;
    for (int k = 0; k < LANES / 2; k++)
        even[k] = counter + 2 * (uint64_t)k;
    FOR_PARTS(k)
    {
        words w[4];
        philox(&stream, even + (uint64_t)k, 1, w);
        for (int q = 0; q < 4; q++)
            store_words(r->bits[group & 1][q] + k, w[q]);
    }
}

/* The numbers of the chunk with that number, two in each word. */
INLINE const uint32_t *numbers_of(randoms *r, uint64_t chunk)
{
    const uint64_t group = chunk * CHUNK / GROUP;
    if (r->group[group & 1] != group + 1) {
        draw_group(r, group);
        r->group[group & 1] = group + 1;
    }
    return r->bits[group & 1][chunk % (GROUP / CHUNK)];
}

/* The numbers of CHUNK elements from one on, which are copied to `space` where they are of two chunks. */
INLINE const uint32_t *random_chunk(randoms *r, uint64_t element, uint32_t *space)
{
    const uint64_t chunk = element / CHUNK, beyond = element % CHUNK;
    const uint32_t *numbers = numbers_of(r, chunk);
    if (!beyond)
        return numbers;
    uint16_t both[2 * CHUNK];
    memcpy(both, numbers, sizeof both / 2);
    memcpy(both + CHUNK, numbers_of(r, chunk + 1), sizeof both / 2);
    memcpy(space, both + beyond, sizeof both / 2);
    return space;
}

#ifdef __F16C__
/* The numbers that are to be rounded towards zero. */
INLINE floats dither_float16(words u, words random)
{
    const words a = u & K(MAGNITUDE);
    const words subnormal = (words)((floats)a + __builtin_convertvector((ints)random, floats) * 0x1p-40f);
    words x = select_greater((ints)SPLAT(0x38800000), (ints)a, subnormal, a + (random >> 3));
    x = select_greater((ints)x, (ints)SPLAT(0x477fffff), SPLAT(0x7f800000), x);
    x = select_greater((ints)a, (ints)SPLAT(0x7f800000), a, x);
    return (floats)(x | (u & K(SIGN)));
}

INLINE void store_dithered_float16(char *to, words a, words b, words even, words odd)
{
    round_pairs(to, dither_float16(a, even), dither_float16(b, odd), _MM_FROUND_TO_ZERO);
}
#else
INLINE words dither_float16(words u, words random)
{
    const words a = u & 0x7fffffff;
    const floats units = (floats)select_bits((words)((ints)a < 0x38800000), a, SPLAT(0)) * 0x1p24f;
    const words subnormal = __builtin_convertvector(
        units + __builtin_convertvector(random, floats) * 0x1p-16f, words);
    return finish_float16(u, a, subnormal, (a - 0x38000000 + (random >> 3)) >> 13);
}

INLINE void store_dithered_float16(char *to, words a, words b, words even, words odd)
{
    store_words(to, dither_float16(a, even) | dither_float16(b, odd) << 16);
}
#endif

/* Stores 16-bit elements. A 16-bit number is added to each before its lower bits are dropped. */
INLINE void store_dithered_words(int32_t dtype, words a, words b, char *to, words even, words odd)
{
    if (dtype == FASTOPT_BFLOAT16)
        store_words(to, join_upper_halves(dither_bfloat16(a, even), dither_bfloat16(b, odd)));
    else
        store_dithered_float16(to, a, b, even, odd);
}

NOINLINE void store_stochastic(int32_t dtype, const float *chunk, char *to, randoms *randoms, uint64_t element)
{
    uint32_t space[HALF];
    const uint32_t *random = random_chunk(randoms, element, space);
    FOR_PARTS(k)
    {
        const words r = load_words(random + k);
        store_dithered_words(dtype, load_words(chunk + k), load_words(chunk + HALF + k), to + 4 * k, r & 0xffff,
                             r >> 16);
    }
}

/* ---- dither ----
 *
 * States of fewer bits are rounded up or down by an additive recurrence over elements (the square root of 2) and steps
 * (the golden ratio), whose values are spread evenly over time for each element. Rounded to nearest, an average that
 * changes by a thousandth in a step would never move.
 */

/* The dither of an element, in the upper bits. */
INLINE uint32_t dither_of(uint64_t element, uint64_t step)
{
    return (uint32_t)element * BY_ELEMENT + (uint32_t)step * BY_STEP;
}

/* The dither of a chunk's even elements from 2k on, from its first element's. Odd elements have NEXT more. */
INLINE words dithers(uint32_t first, int k) { return EVEN * BY_ELEMENT + (first + 2 * (uint32_t)k * BY_ELEMENT); }

INLINE void store_dithered(int32_t dtype, const float *chunk, char *to, uint32_t first)
{
    FOR_PARTS(k)
    {
        const words d = dithers(first, k);
        store_dithered_words(dtype, load_words(chunk + k), load_words(chunk + HALF + k), to + 4 * k, d >> 16,
                             (d + K(NEXT)) >> 16);
    }
}

/* ---- 8 bits ----
 *
 * 8-bit floats in blocks of FASTOPT_BLOCK, which share a scale set by the largest. A state that is never negative has
 * 5 bits of exponent and 3 of mantissa, no sign and no zero: a second moment that became 0 would be a division by 0.
 * Other states have a sign, 4 bits of exponent and 3 of mantissa; subtracting the smallest power gives them a zero.
 * All are rounded with dither.
 *
 * If elements of a block are not finite, its scale is negative, and one code stands for NaN.
 */
#define TOP_POSITIVE 1.875f
#define TOP_SIGNED (1.875f - 0x1p-15f)
#define BELOW_TOP 0x1p-20f /* the margin below the largest code, which rounding must not exceed */
#define SMALLEST 0x1p-100f /* a block of smaller elements becomes zero */

INLINE void load_positive(float *chunk, const char *codes, float scale)
{
    FOR_PARTS(k)
    {
        const words w = widen_halves(codes + 2 * k);
        store_floats(chunk + k, (floats)((w << 20 & K(CODE)) | K(LEAST)) * scale);
        store_floats(chunk + HALF + k, (floats)((w << 12 & K(CODE)) | K(LEAST)) * scale);
    }
}

INLINE void load_signed(float *chunk, const char *codes, float scale)
{
    const floats least = (floats)K(LEAST_SIGNED);
    FOR_PARTS(k)
    {
        const words w = widen_halves(codes + 2 * k);
        const floats a = ((floats)((w << 20 & K(SIGNED_CODE)) | K(LEAST_SIGNED)) - least) * scale;
        const floats b = ((floats)((w << 12 & K(SIGNED_CODE)) | K(LEAST_SIGNED)) - least) * scale;
        store_words(chunk + k, (words)a | (w << 24 & K(SIGN)));
        store_words(chunk + HALF + k, (words)b | (w << 16 & K(SIGN)));
    }
}

INLINE void store_positive(const float *chunk, char *codes, float inverse, uint32_t first)
{
    const ints least = (ints)K(LEAST);
    FOR_PARTS(k)
    {
        const words d = dithers(first, k);
        const words a = (words)max_ints((ints)(load_floats(chunk + k) * inverse), least) + (d >> 12);
        const words b = (words)max_ints((ints)(load_floats(chunk + HALF + k) * inverse), least) + ((d + K(NEXT)) >> 12);
        store_lower_halves(codes + 2 * k, select_bits(K(SECOND_CODE), b >> 12, a >> 20));
    }
}

INLINE void store_signed(const float *chunk, char *codes, float inverse, uint32_t first)
{
    const floats least = (floats)K(LEAST_SIGNED);
    FOR_PARTS(k)
    {
        const words d = dithers(first, k);
        const words x = (words)(load_floats(chunk + k) * inverse), y = (words)(load_floats(chunk + HALF + k) * inverse);
        const words a = (words)((floats)(x & K(MAGNITUDE)) + least) + (d >> 12);
        const words b = (words)((floats)(y & K(MAGNITUDE)) + least) + ((d + K(NEXT)) >> 12);
        const words signs = select_bits(K(SECOND_SIGN), y >> 16, x >> 24);
        store_lower_halves(codes + 2 * k, select_bits(K(SIGNS), signs, select_bits(K(SECOND_CODE), b >> 12, a >> 20)));
    }
}

/* The bits of the largest magnitude up to `limit`. */
INLINE int32_t max_magnitude(const float *elements, int32_t limit)
{
    ints most = {0};
    for (int k = 0; k < FASTOPT_BLOCK; k += LANES) {
        const ints a = (ints)(load_words(elements + k) & K(MAGNITUDE));
        most = max_ints(most, a & (a <= limit));
    }
    int32_t found = 0;
    for (int k = 0; k < LANES; k++)
        found = most[k] > found ? most[k] : found;
    return found;
}

/* The code of NaN in a block with a negative scale. */
INLINE uint8_t nan_code(int32_t dtype) { return dtype == FASTOPT_BLOCKS_POSITIVE ? 0 : 0x80; }

/* The index in chunk order of element k of a block. */
INLINE int chunk_index(int k) { return k / CHUNK * CHUNK + (k & 1) * HALF + k % CHUNK / 2; }

NOINLINE void load_block(int32_t dtype, float *elements, const char *block)
{
    float scale;
    memcpy(&scale, block, sizeof scale);
    const char *codes = block + sizeof scale;
    for (int k = 0; k < FASTOPT_BLOCK; k += CHUNK)
        if (dtype == FASTOPT_BLOCKS_POSITIVE)
            load_positive(elements + k, codes + k, fabsf(scale));
        else
            load_signed(elements + k, codes + k, fabsf(scale));
    for (int k = 0; bits_of(scale) >> 31 && k < FASTOPT_BLOCK; k++)
        if ((uint8_t)codes[k] == nan_code(dtype))
            elements[chunk_index(k)] = NAN;
}

/* The scale of a block with this largest magnitude, and what its elements are multiplied by. */
INLINE float scale_of(int32_t dtype, float largest, float *inverse)
{
    const float top = dtype == FASTOPT_BLOCKS_POSITIVE ? TOP_POSITIVE : TOP_SIGNED;
    *inverse = largest < SMALLEST ? 0 : (top - BELOW_TOP) / largest;
    return largest < SMALLEST ? 0 : largest / top;
}

/* `element` is the number of the block's first element. */
NOINLINE void store_block(int32_t dtype, const float *elements, char *block, uint64_t element, uint64_t step)
{
    const int32_t finite = 0x7f7fffff, all = max_magnitude(elements, INT32_MAX);
    const float largest = float_of((uint32_t)(all <= finite ? all : max_magnitude(elements, finite)));
    float inverse, scale = scale_of(dtype, largest, &inverse);
    char *codes = block + sizeof scale;
    for (int k = 0; k < FASTOPT_BLOCK; k += CHUNK) {
        const uint32_t first = dither_of(element + (uint64_t)k, step);
        if (dtype == FASTOPT_BLOCKS_POSITIVE)
            store_positive(elements + k, codes + k, inverse, first);
        else
            store_signed(elements + k, codes + k, inverse, first);
    }
    if (all > finite) {
        scale = -scale;
        for (int k = 0; k < FASTOPT_BLOCK; k++)
            if (!isfinite(elements[chunk_index(k)]))
                codes[k] = (char)nan_code(dtype);
            else if ((uint8_t)codes[k] == nan_code(dtype)) /* becomes the next larger code, or zero for minus zero */
                codes[k] = dtype == FASTOPT_BLOCKS_POSITIVE;
    }
    memcpy(block, &scale, sizeof scale);
}
