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

/* A job's update by a function that others compiled, and what it reads of the step: this is written before it is run. */
typedef struct {
    fastopt_part function;
    void *context;
    int64_t n, grain, share, align; /* as fastopt_run_parts has them */
    int32_t own, width;             /* coefficients of each copy: those of all rules, and all */
    int32_t fused;                  /* 1 if copies stand together, and have those of all rules in common */
    void *coefficients;             /* [tensors][copies][width] of the job's dtype; fused [tensors][own + others] */
    int64_t *steps;                 /* [tensors]: the number of the step */
} compiled_update;

/* The same by functions that others compiled, with one for each job. */
int step_compiled(const writable_jobs *own, const compiled_update *updates, double grad_scale, int32_t threads);

/* What is known of torch's tensors: the types of plain ones, the function of DLPack's exchange API that describes one,
 * where in its Python object the C++ one is, and the function of torch's C interface that tells where its memory is. */
typedef struct {
    uintptr_t types[2], describe;
    int64_t offset;
    uintptr_t locate;
} tensor_kind;

void know_tensors(const tensor_kind *kind);

/* Puts read_arrays, read_tensors and read_places into a dict: functions of Python's own kind. `type` is NumPy's array. */
void put_functions(uintptr_t names, uintptr_t type);

#endif
