/* What compilers are told, and the pasting of names. */
#ifndef FASTOPT_COMPILER_H
#define FASTOPT_COMPILER_H

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

/* To the second-level cache, for reading: measured faster than to the first, and than with intent to write. */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)

#define INLINE static inline __attribute__((always_inline))
/* Kept out of the loops, which would grow by what is seldom done. */
#define APART static __attribute__((noinline))

/* Said of a loop over arrays that do not overlap: in an inlined function gcc forgets what `restrict` told it. */
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

#endif
