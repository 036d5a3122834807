/* Blocks with AVX-512, beside a loop that updates their elements.
 *
 * The loop decodes and updates a vector of elements after the other, and looks for the largest meanwhile: division and
 * square root leave the processor time for that. Then a second loop encodes the block.
 *
 * A batch is 16 words with the codes of four vectors, one in each byte, which multiplications take apart and put
 * together. Two shuffles bring the codes from their order in memory into that of the vectors. That is the one which
 * costs the loop's other arrays least: of memory, or of chunks.
 *
 * Intel's processors have two ports for vectors of 64 bytes. Divisions, square roots, shifts, and maxima of integers
 * all wait for the same one; multiplications and maxima of floats have both. So codes are shifted by multiplications,
 * and joined by shuffles, which have the other.
 */
#ifdef __AVX512BW__
enum { BATCH = 4 * LANES };

/* An order of the elements of a batch: lane l of vector k has element first[k] + step * l. */
typedef struct {
    int step, first[4];
    uint32_t words_in[LANES], words_out[LANES]; /* shuffles of whole vectors, of words that are decoded and encoded */
    uint8_t bytes_in[16], bytes_out[16];        /* shuffles of each 16 bytes */
} batch_order;

#define ACROSS {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15}
#define ACROSS_SWAPPED {0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15}
/* Words that are decoded have the codes of vectors 0, 1, 2, 3; those that were encoded of 0, 2, 1, 3. */
static const batch_order
    in_memory = {1, {0, 16, 32, 48}, ACROSS, ACROSS, ACROSS, ACROSS_SWAPPED},
    in_chunks = {2, {0, 1, 32, 33},
                 {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15},
                 {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15},
                 {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15},
                 {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15}};

/* The block of one state. NaN is not among the largest magnitudes. */
typedef struct {
    int32_t dtype;
    float scale, least; /* the scale times the smallest power of signed codes */
    char *at;
    floats most; /* the largest magnitudes */
    _Alignas(64) float elements[FASTOPT_BLOCK];
} block_state;

typedef struct {
    const batch_order *order;
    uint64_t step;
    words offsets[4]; /* of a batch's dithers from its first */
    block_state of[MAX_ARRAYS];
} block_pass;

/* base with those bits of x, where it has none. */
INLINE words insert_bits(words mask, words x, words base)
{
    return (words)_mm512_ternarylogic_epi32((__m512i)base, (__m512i)x, (__m512i)mask, 0xf8);
}

INLINE words shuffle_words(const uint32_t *order, words w)
{
    return (words)_mm512_permutexvar_epi32((__m512i)load_words(order), (__m512i)w);
}

INLINE words shuffle_bytes(const uint8_t *order, words w)
{
    const __m128i each = _mm_loadu_si128((const void *)order);
    return (words)_mm512_shuffle_epi8((__m512i)w, _mm512_broadcast_i32x4(each));
}

/* The larger magnitude; the other one if either is NaN. */
INLINE floats max_magnitudes(floats a, floats b) { return (floats)_mm512_range_ps((__m512)a, (__m512)b, 0xb); }

/* The larger number; b if either is NaN. */
INLINE floats max_floats(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }

/* x * y - z, rounded once. */
INLINE floats multiply_subtract(floats x, floats y, floats z)
{
    return (floats)_mm512_fmsub_ps((__m512)x, (__m512)y, (__m512)z);
}

/* What the prologue makes of gradients. */
INLINE floats scale_and_decay(floats g, floats p, float scale, float decay)
{
    g = scale * g;
    return decay == 0 ? g : g + decay * p;
}

/* ---- a batch ---- */

/* Takes the codes of the batch from element `from` on apart: vectors 0 and 2 have theirs in split[0], in the lower and
 * the upper halves, 1 and 3 in split[1]. Each is times 16, and has its sign, if it has one, in the upper bits. */
INLINE void split_codes(const block_state *s, const batch_order *order, int from, const int positive, words split[2])
{
    const words in = shuffle_words(order->words_in, load_words(s->at + sizeof s->scale + from));
    const __m512i codes = (__m512i)shuffle_bytes(order->bytes_in, in);
    for (int odd = 0; odd < 2; odd++) { /* bytes */
        const __m512i by = (__m512i)(odd ? K(ODD_BY_16) : K(BY_16));
        split[odd] = (words)(positive ? _mm512_maddubs_epi16(codes, by) : _mm512_maddubs_epi16(by, codes));
    }
}

/* Decodes vector k of a batch, in a block with a usual scale. */
INLINE floats decode_vector(const block_state *s, const words split[2], int k, const int positive)
{
    const floats scale = (floats)SPLAT(bits_of(s->scale)), least = (floats)SPLAT(bits_of(s->least));
    const words code = k < 2 ? split[k % 2] << 16 : split[k % 2];
    if (positive)
        return (floats)insert_bits(K(CODE), code, K(LEAST)) * scale;
    const floats x = (floats)insert_bits(K(SIGNED_CODE), code, K(LEAST_SIGNED));
    /* The same as (x - base) * scale: both differences are exact. */
    return (floats)insert_bits(K(SIGN), code, (words)multiply_subtract(x, scale, least));
}

/* The upper bytes of two vectors' halves in one, a's below b's. */
INLINE words join_upper_bytes(words a, words b)
{
    static const uint8_t down[16] = {1, 0, 3, 0, 5, 0, 7, 0, 9, 0, 11, 0, 13, 0, 15};
    const __m512i order = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)down));
    return (words)_mm512_mask_shuffle_epi8((__m512i)b, 0x5555555555555555, (__m512i)a, order);
}

/* Each half times 16. */
INLINE words shift_codes(words w) { return (words)_mm512_mullo_epi16((__m512i)w, (__m512i)K(BY_16)); }

/* Encodes a batch. What is not finite leaves a bit of NOT_FINITE in `bad`: all else is below 2 before it is rounded. */
INLINE void encode_batch(const float *elements, char *codes, const batch_order *order, const int positive,
                         float inverse, const words *dithers, words *bad)
{
    words a[4];
    for (int k = 0; k < 4; k++) {
        const floats x = load_floats(elements + k * LANES) * inverse;
        const floats least = (floats)insert_bits(K(SIGN), (words)x, K(LEAST_SIGNED));
        a[k] = (words)(positive ? max_floats((floats)K(LEAST), x) : x + least) + dithers[k];
    }
    words low = join_upper_halves(a[0], a[1]), high = join_upper_halves(a[2], a[3]);
    *bad |= low | high;
    low = positive ? shift_codes(low) : select_bits(K(HALF_SIGNS), low, shift_codes(low));
    high = positive ? shift_codes(high) : select_bits(K(HALF_SIGNS), high, shift_codes(high));
    store_words(codes, shuffle_words(order->words_out, shuffle_bytes(order->bytes_out, join_upper_bytes(low, high))));
}

/* ---- blocks ---- */

/* Encodes a block with elements that are not finite. */
NOINLINE void encode_unusual(block_state *s, const batch_order *order, uint64_t element, uint64_t step)
{
    float chunks[FASTOPT_BLOCK];
    for (int k = 0; k < FASTOPT_BLOCK; k += CHUNK)
        if (order->step == 1)
            load_float32(chunks + k, (const char *)(s->elements + k));
        else
            copy_chunk((char *)(chunks + k), (const char *)(s->elements + k));
    store_block(s->dtype, chunks, s->at, element, step);
}

INLINE void begin_pass(block_pass *b, const batch_order *order, int64_t step)
{
    b->order = order;
    b->step = (uint64_t)step;
    for (int k = 0; k < 4; k++)
        b->offsets[k] = (EVEN / 2 * (uint32_t)order->step + (uint32_t)order->first[k]) * BY_ELEMENT;
}

/* Begins a block. Returns 0 if it has NaN, or if its smallest code may be subnormal: decode_batch is not for it. */
INLINE int begin_block(block_state *s, int32_t dtype, char *at)
{
    s->dtype = dtype;
    s->at = at;
    memcpy(&s->scale, at, sizeof s->scale);
    s->least = float_of(0x38000000) * s->scale;
    return !bits_of(s->scale) || (s->scale >= 0x1p-110f && s->scale < INFINITY);
}

/* Ends blocks whose elements are updated: of so many states, of which those of `positive`, a bit for each array, are
 * never negative. `element` is the number of the first. */
INLINE void end_blocks(block_pass *b, uint64_t element, const int states, const int positive)
{
    float inverse[MAX_ARRAYS];
    words bad[MAX_ARRAYS];
    for (int j = 0; j < states; j++) {
        block_state *s = &b->of[j];
        const float scale = scale_of(s->dtype, _mm512_reduce_max_ps((__m512)s->most), &inverse[j]);
        memcpy(s->at, &scale, sizeof scale);
        bad[j] = SPLAT(0);
    }
    for (int at = 0; at < FASTOPT_BLOCK; at += BATCH) {
        const uint32_t first = dither_of(element + (uint64_t)at, b->step);
        words dithers[4];
        for (int k = 0; k < 4; k++)
            dithers[k] = (b->offsets[k] + first) >> 12;
        for (int j = 0; j < states; j++) {
            block_state *s = &b->of[j];
            encode_batch(s->elements + at, s->at + sizeof s->scale + at, b->order, positive >> (FIRST_STATE + j) & 1,
                         inverse[j], dithers, &bad[j]);
        }
    }
    for (int j = 0; j < states; j++)
        if (_mm512_test_epi32_mask((__m512i)bad[j], (__m512i)K(NOT_FINITE)))
            encode_unusual(&b->of[j], b->order, element, b->step);
}

/* One for each combination that a rule has. */
#define END_BLOCKS(states, positive)                                                                                  \
    NOINLINE void end_blocks_##states##_##positive(block_pass *b, uint64_t element)                                   \
    {                                                                                                                 \
        end_blocks(b, element, states, positive);                                                                     \
    }
FASTOPT_BLOCK_KINDS(END_BLOCKS)
#endif
