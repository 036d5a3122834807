/* Blocks with AVX-512, beside a loop that updates their elements.
 *
 * The loop decodes and updates a batch of elements after the other, and looks for the largest meanwhile: division and
 * square root leave the processor time for that. Then a second loop encodes the block.
 *
 * A batch is 16 words with the codes of four vectors, one in each byte, which shifts take apart and put together. Two
 * shuffles bring the codes from their order in memory into that of the vectors. That is the one which costs the loop's
 * other arrays least: of memory, or of chunks.
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

/* The block of one state. */
typedef struct {
    int32_t dtype;
    int unusual;               /* 1 if it is decoded, or to be encoded, by load_block and store_block */
    uint32_t code, base, sign; /* see decode_batch */
    float scale, least;
    char *at;
    words most[2];             /* the largest magnitudes so far, as bits */
    _Alignas(64) float elements[FASTOPT_BLOCK];
} block_state;

typedef struct {
    const batch_order *order;
    int states;
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

INLINE words max_words(words a, words b)
{
    return (words)_mm512_max_epu32((__m512i)a, (__m512i)b);
}

/* x * y - z, rounded once. */
INLINE floats multiply_subtract(floats x, floats y, floats z)
{
    return (floats)_mm512_fmsub_ps((__m512)x, (__m512)y, (__m512)z);
}

INLINE words shift_halves(words w, int right)
{
    return (words)(right > 0 ? _mm512_srli_epi16((__m512i)w, right) : _mm512_slli_epi16((__m512i)w, -right));
}

/* ---- a batch ---- */

/* Decodes the batch from element `from` on. Both kinds of codes are one here, for which there is time: they differ in
 * the bits of the code, what these are put into, what is subtracted, and whether there is a sign. */
INLINE void decode_batch(block_state *s, const batch_order *order, int from)
{
    const floats scale = (floats)SPLAT(bits_of(s->scale)), least = (floats)SPLAT(bits_of(s->least));
    if (s->unusual)
        return;
    const words in = shuffle_words(order->words_in, load_words(s->at + sizeof s->scale + from));
    const words codes = shuffle_bytes(order->bytes_in, in);
    for (int k = 0; k < 4; k++) {
        const words code = k < 3 ? codes << (24 - 8 * k) : codes;
        const floats x = (floats)insert_bits(SPLAT(s->code), code >> 4, SPLAT(s->base));
        /* The same as (x - base) * scale: both differences are exact. */
        const words magnitude = (words)multiply_subtract(x, scale, least);
        store_words(s->elements + from + k * LANES, insert_bits(SPLAT(s->sign), code, magnitude));
    }
}

/* The upper halves of two vectors in one. */
INLINE words join_upper_halves(words a, words b) { return select_bits(K(UPPER), b, a >> 16); }

INLINE void store_codes(char *codes, const batch_order *order, words encoded)
{
    store_words(codes, shuffle_words(order->words_out, shuffle_bytes(order->bytes_out, encoded)));
}

INLINE void encode_positive(const float *elements, char *codes, const batch_order *order, float inverse,
                            const words *dithers)
{
    words a[4];
    for (int k = 0; k < 4; k++) {
        const floats x = load_floats(elements + k * LANES) * inverse;
        a[k] = (words)max_ints((ints)x, (ints)K(LEAST)) + dithers[k];
    }
    const words low = join_upper_halves(a[0], a[1]), high = join_upper_halves(a[2], a[3]);
    store_codes(codes, order, select_bits(K(LOW_BYTES), shift_halves(low, 4), shift_halves(high, -4)));
}

INLINE void encode_signed(const float *elements, char *codes, const batch_order *order, float inverse,
                          const words *dithers)
{
    words a[4];
    for (int k = 0; k < 4; k++) {
        const words x = (words)(load_floats(elements + k * LANES) * inverse);
        a[k] = (words)((floats)x + (floats)insert_bits(K(SIGN), x, K(LEAST_SIGNED))) + dithers[k];
    }
    const words low = join_upper_halves(a[0], a[1]), high = join_upper_halves(a[2], a[3]);
    const words lower = select_bits(K(LOW_SIGNS), shift_halves(low, 8), shift_halves(low, 4));
    const words upper = select_bits(K(HIGH_SIGNS), high, shift_halves(high, -4));
    store_codes(codes, order, select_bits(K(LOW_BYTES), lower, upper));
}

/* ---- blocks ---- */

/* Brings elements from the order of chunks to that of batches, or back. */
INLINE void reorder(const batch_order *order, float *to, const float *from, const int back)
{
    for (int k = 0; k < FASTOPT_BLOCK; k += CHUNK)
        if (order->step == 2)
            copy_chunk((char *)(to + k), (const char *)(from + k));
        else if (back)
            load_float32(to + k, (const char *)(from + k));
        else
            store_float32(from + k, (char *)(to + k));
}

NOINLINE void decode_unusual(block_state *s, const batch_order *order)
{
    float chunks[FASTOPT_BLOCK];
    load_block(s->dtype, chunks, s->at);
    reorder(order, s->elements, chunks, 0);
}

NOINLINE void encode_unusual(block_state *s, const batch_order *order, uint64_t element, uint64_t step)
{
    float chunks[FASTOPT_BLOCK];
    reorder(order, chunks, s->elements, 1);
    store_block(s->dtype, chunks, s->at, element, step);
}

INLINE void begin_pass(block_pass *b, const batch_order *order, int states, int64_t step)
{
    b->order = order;
    b->states = states;
    b->step = (uint64_t)step;
    for (int k = 0; k < 4; k++)
        b->offsets[k] = (EVEN / 2 * (uint32_t)order->step + (uint32_t)order->first[k]) * BY_ELEMENT;
}

/* Begins a block. One that has NaN, or whose smallest code may be subnormal, is decoded at once. */
INLINE void begin_block(block_state *s, int32_t dtype, char *at, const batch_order *order)
{
    const int positive = dtype == FASTOPT_BLOCKS_POSITIVE;
    s->dtype = dtype;
    s->code = positive ? 0x0ff00000 : 0x07f00000;
    s->base = positive ? 0x30000000 : 0x38000000;
    s->sign = positive ? 0 : 0x80000000;
    s->at = at;
    s->most[0] = s->most[1] = SPLAT(0);
    memcpy(&s->scale, at, sizeof s->scale);
    s->least = positive ? 0 : float_of(0x38000000) * s->scale;
    s->unusual = bits_of(s->scale) && !(s->scale >= 0x1p-110f && s->scale < INFINITY);
    if (s->unusual)
        decode_unusual(s, order);
}

/* Looks for the largest magnitude in a batch that is updated. */
INLINE void measure_batch(block_state *s, int from)
{
    words most[2] = {s->most[0], s->most[1]};
    for (int k = 0; k < BATCH / LANES; k++)
        most[k % 2] = max_words(most[k % 2], load_words(s->elements + from + k * LANES) & K(MAGNITUDE));
    s->most[0] = most[0];
    s->most[1] = most[1];
}

/* Ends blocks whose elements are updated; `element` is the number of the first. */
NOINLINE void end_blocks(block_pass *b, uint64_t element)
{
    float inverse[MAX_ARRAYS];
    for (int j = 0; j < b->states; j++) {
        block_state *s = &b->of[j];
        const words both = max_words(s->most[0], s->most[1]);
        uint32_t most = 0;
        for (int k = 0; k < LANES; k++)
            most = both[k] > most ? both[k] : most;
        const float scale = scale_of(s->dtype, float_of(most), &inverse[j]);
        memcpy(s->at, &scale, sizeof scale);
        s->unusual = most > 0x7f7fffff;
    }
    for (int at = 0; at < FASTOPT_BLOCK; at += BATCH) {
        const uint32_t first = dither_of(element + (uint64_t)at, b->step);
        words dithers[4];
        for (int k = 0; k < 4; k++)
            dithers[k] = (b->offsets[k] + first) >> 12;
        for (int j = 0; j < b->states; j++) {
            block_state *s = &b->of[j];
            char *const codes = s->at + sizeof s->scale + at;
            if (s->dtype == FASTOPT_BLOCKS_POSITIVE)
                encode_positive(s->elements + at, codes, b->order, inverse[j], dithers);
            else
                encode_signed(s->elements + at, codes, b->order, inverse[j], dithers);
        }
    }
    for (int j = 0; j < b->states; j++) /* not finite */
        if (b->of[j].unusual)
            encode_unusual(&b->of[j], b->order, element, b->step);
}
#endif
