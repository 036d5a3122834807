/* Hints for the compiler, and a macro to paste names. */
#ifndef FASTOPT_COMPILER_H
#define FASTOPT_COMPILER_H

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

/* Prefetches to the second-level cache, for reading: measured faster than to the first, and than for writing. */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)
/* To the first-level cache: measured faster where arrays are only read, or converted. */
#define PREFETCH_NEAR(address) __builtin_prefetch(address, 0, 3)

#define INLINE static inline __attribute__((always_inline))
/* For seldom-used code, which would make the loops larger. */
#define NOINLINE static __attribute__((noinline))

/* Unrolls the next loop so many times. */
#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define UNROLL(times) PRAGMA(clang loop unroll_count(times))
#else
#define UNROLL(times) PRAGMA(GCC unroll times)
#endif

/* Marks a loop over arrays that do not overlap: in an inlined function gcc forgets `restrict`. */
#ifdef __clang__
#define IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define IVDEP _Pragma("GCC ivdep")
#endif

#endif
