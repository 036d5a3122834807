/* Calls of the Python extension beside the library's. The build reads their declarations from here. */
#ifndef FASTOPT_EXTENSION_H
#define FASTOPT_EXTENSION_H

#include "internal.h"

enum { READ_ONLY = -1 };

/* Jobs, and the flags of the NumPy arrays that they write, which can become read-only. */
typedef struct {
    fastopt_job *jobs;
    int64_t n;
    uintptr_t *flags;
    int64_t arrays;
} writable_jobs;

/* Returns the digest of the sources that the library was built from. */
const char *built_from(void);

/* Does one step, unless an array is read-only: then it returns READ_ONLY, and nothing has been done. */
int step_writable(const writable_jobs *own, double grad_scale, int32_t threads);

/*
 * Writes the address of each array of a tuple (0 for None), then how each is laid out. Returns the number of words;
 * more than `most` if there is no room for them, 0 if there is something else than plain arrays. A tuple's items begin
 * `begin` bytes behind its address: versions of Python differ.
 */
int64_t read_arrays(uintptr_t arrays, uintptr_t begin, uintptr_t type, int64_t most, uint64_t *words);

#endif
