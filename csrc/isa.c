/* The choice of instruction set, by default the highest that the processor has. */
#include "library.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#include <string.h>
#include <unistd.h>

#define DECLARE(level)                                                                                                \
    extern const fastopt_loops fastopt_loops_##level##_f32, fastopt_loops_##level##_f64;                              \
    extern const fastopt_streams fastopt_streams_##level;
FASTOPT_LEVELS(DECLARE)

/* From the lowest to the highest. */
#define LEVEL(level) {#level, {&fastopt_loops_##level##_f32, &fastopt_loops_##level##_f64}, &fastopt_streams_##level},
static const fastopt_level levels[] = {FASTOPT_LEVELS(LEVEL)};
enum { LEVELS = sizeof levels / sizeof *levels };

const fastopt_level *active;

#if defined(__x86_64__) || defined(__i386__)
/* Of this feature gcc before 11 cannot be asked by name. */
static int has_f16c(void)
{
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

static int supported(const char *name)
{
#if defined(__x86_64__) || defined(__i386__)
    if (!strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (!strcmp(name, "avx512"))
        return supported("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return !strcmp(name, levels[0].name);
}

int fastopt_set_isa(const char *name)
{
    for (int i = LEVELS - 1; i >= 0; i--)
        if ((!name || !*name || !strcmp(name, levels[i].name)) && supported(levels[i].name)) {
            active = &levels[i];
            return FASTOPT_OK;
        }
    return FASTOPT_BAD_ISA;
}

static char compiled_names[64], supported_names[64];

static void append(char *names, const char *name)
{
    if (names[0])
        strcat(names, ",");
    strcat(names, name);
}

/* Runs when the library is loaded, before there are threads that could race. */
__attribute__((constructor)) static void prepare_levels(void)
{
    for (int i = 0; i < LEVELS; i++) {
        append(compiled_names, levels[i].name);
        if (supported(levels[i].name))
            append(supported_names, levels[i].name);
    }
    fastopt_set_isa(NULL);
}

const char *fastopt_isa(void) { return active->name; }
const char *fastopt_isa_compiled(void) { return compiled_names; }
const char *fastopt_isa_supported(void) { return supported_names; }

/* Bytes of arrays that are better read without prefetch: those of the last-level cache, 4 MB at least and 64 MB at most.
 * (A processor of a cloud may report a cache that many share.) */
static int64_t cached_bytes = 4 << 20;

__attribute__((constructor)) static void find_cache(void)
{
#ifdef _SC_LEVEL3_CACHE_SIZE
    const int64_t last = sysconf(_SC_LEVEL3_CACHE_SIZE), most = 64 << 20;
    if (last > cached_bytes)
        cached_bytes = last < most ? last : most;
#endif
}

/* 1 if software prefetch pays for so many bytes. It gains 10 % on arrays larger than the cache, and costs 5 % on
 * smaller ones. On AMD's processors the hardware does better alone: on Zen 4, Adam over 10^8 float32 elements is 27 %
 * slower with prefetch in one thread, and 3 % in two. */
int prefetch_pays(int64_t bytes)
{
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
    if (__builtin_cpu_is("amd"))
        return 0;
#endif
    return bytes > cached_bytes;
}
