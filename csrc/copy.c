/* Copies of memory that travels: what is written is not kept in caches, where this processor can. */
#include "library.h"

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { LINE = 64 };  /* bytes that are written at once */

void fastopt_copy(void *to, const void *from, int64_t bytes)
{
    char *out = to;
    const char *in = from;
#ifdef __SSE2__
    int64_t head = -(int64_t)(uintptr_t)out & (LINE - 1);
    if (bytes >= head + LINE) {
        memcpy(out, in, head);
        for (out += head, in += head, bytes -= head; bytes >= LINE; out += LINE, in += LINE, bytes -= LINE)
            for (int k = 0; k < LINE; k += 16)
                _mm_stream_si128((__m128i *)(out + k), _mm_loadu_si128((const __m128i *)(in + k)));
        _mm_sfence();
    }
#endif
    memcpy(out, in, bytes);
}
