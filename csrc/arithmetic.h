/* IEEE 754 arithmetic in any thread: round to nearest, keep subnormal numbers, raise no traps. Other libraries
 * change the mode of a whole thread (torch.set_flush_denormal, code built with -ffast-math), and threads that it
 * starts inherit it. */
#ifndef FASTOPT_ARITHMETIC_H
#define FASTOPT_ARITHMETIC_H

#include <stdint.h>

/* The thread's mode. The clobbers keep reads and writes of memory after `set_mode`. */
#if defined(__x86_64__) || defined(__SSE__)
enum { IEEE_MODE = 0x1f80, FLAGS = 0x3f }; /* of MXCSR; operations set the flags */
static inline uint64_t get_mode(void)
{
    uint32_t mode;
    __asm__ volatile("stmxcsr %0" : "=m"(mode));
    return mode;
}
static inline void set_mode(uint64_t mode)
{
    const uint32_t word = (uint32_t)mode;
    __asm__ volatile("ldmxcsr %0" : : "m"(word) : "memory");
}
#elif defined(__aarch64__)
enum { IEEE_MODE = 0, FLAGS = 0 };
static inline uint64_t get_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static inline void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
enum { IEEE_MODE = 0, FLAGS = 0 };
static inline uint64_t get_mode(void) { return IEEE_MODE; }
static inline void set_mode(uint64_t mode) { (void)mode; }
#endif

/* Sets the thread's mode to IEEE 754's and returns the mode before. */
static inline uint64_t enter_ieee(void)
{
    const uint64_t before = get_mode();
    if ((before & ~(uint64_t)FLAGS) != IEEE_MODE)
        set_mode(IEEE_MODE);
    return before;
}

static inline void leave_ieee(uint64_t before)
{
    if ((before & ~(uint64_t)FLAGS) != IEEE_MODE)
        set_mode(before);
}

/* IEEE 754 arithmetic from here to the end of the block. */
static inline void leave_block(const uint64_t *before) { leave_ieee(*before); }
#define IN_IEEE_ARITHMETIC __attribute__((cleanup(leave_block), unused)) const uint64_t mode_before = enter_ieee()

#endif
