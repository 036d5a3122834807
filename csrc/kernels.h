/* What one instruction-set level offers: the same table of functions from each instance of kernels.c. */
#ifndef FASTOPT_KERNELS_H
#define FASTOPT_KERNELS_H

#include <stdint.h>

#include "fastopt.h"
#include "rule_table.h"

enum {
#define NUMBER(kernel, fold) number_##kernel,
    FASTOPT_KERNELS(NUMBER)
#undef NUMBER
    KERNELS
};

typedef void (*fastopt_kernel)(int64_t n, void *const *arrays, const void *coefficients, int prefetch);
typedef void (*fastopt_runner)(fastopt_kernel kernel, int64_t n, int arrays, void *const *addresses,
                               const int64_t *strides, const double *coefficients, int row, int prefetch);

typedef struct {
    const char *name;
    fastopt_kernel kernels[KERNELS][FASTOPT_MAX_COPIES][2]; /* by kernel, copies - 1 and dtype */
    fastopt_runner run[2];
    double (*square_sum[2])(int64_t n, const char *from, int64_t stride);
    void (*stream)(int64_t n, int arrays, float *const *addresses, int ahead);
} fastopt_level;

#endif
