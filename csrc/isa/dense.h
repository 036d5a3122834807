/* Kernels for contiguous arrays of the compute type: one loop for each rule. */

/* Elements of one pass of the inner loop: whole vectors on every level, and few enough for prefetching to keep
 * pace. */
#define STRIP (4 * LINE)
/* Elements ahead to prefetch: 2 KB, measured best for Adam's traffic. */
#define AHEAD (2048 / (int)sizeof(real))

#define COEFFICIENTS(rule, copies)                                                                                    \
    const struct { FN(prologue_coefs) prologue; FN(rule##_coefs) rule; } *c = coefficients;                           \
    const FN(prologue_coefs) prologue = c->prologue;                                                                  \
    FN(rule##_coefs) coefs[copies];                                                                                   \
    for (int k = 0; k < copies; k++)                                                                                  \
        coefs[k] = c[k].rule;

/* Each array has a `restrict` pointer of its own. `last` is the end of the whole strips. */
#define KERNEL(rule, copies)                                                                                          \
    static void FN(run_##rule##_##copies)(int64_t n, void *const *arrays, const void *coefficients,                   \
                                          const fastopt_pass *pass)                                                   \
    {                                                                                                                 \
        COEFFICIENTS(rule, copies)                                                                                    \
        const int prefetch = pass->prefetch;                                                                          \
        real *restrict param = arrays[0];                                                                             \
        const real *restrict grad = arrays[GRADIENT];                                                                 \
        POINTERS_##rule##_##copies                                                                                    \
        int64_t i = 0, last = n - n % STRIP;                                                                          \
        while (i < last) {                                                                                            \
            for (int line = 0; prefetch && line < STRIP; line += LINE) {                                              \
                PREFETCH(param + i + line + AHEAD);                                                                   \
                PREFETCH(grad + i + line + AHEAD);                                                                    \
                PREFETCH_##rule##_##copies(i + line + AHEAD)                                                          \
            }                                                                                                         \
            for (int64_t end = i + STRIP; i < end; i++)                                                               \
                ELEMENT(UPDATE_##rule##_##copies)                                                                     \
        }                                                                                                             \
        for (; i < n; i++)                                                                                            \
            ELEMENT(UPDATE_##rule##_##copies)                                                                         \
    }

#define ELEMENT(update)                                                                                               \
    {                                                                                                                 \
        real p = param[i];                                                                                            \
        real g = FN(prologue)(&p, grad[i], &prologue);                                                                \
        update                                                                                                        \
        param[i] = p;                                                                                                 \
    }
/* The same behind the prologue. */
#define REST_OF_ELEMENT(update)                                                                                       \
    {                                                                                                                 \
        real p = param[i], g = grad[i];                                                                               \
        update                                                                                                        \
        param[i] = p;                                                                                                 \
    }

FASTOPT_INSTANCES(KERNEL)

/* ---- the reading pass of rules with a stage over tensors ---- */

#define MEASURE_ELEMENT(rule, lane)                                                                                   \
    {                                                                                                                 \
        real p = param[i + lane], f[SUMS_##rule][2];                                                                  \
        real g = FN(prologue)(&p, grad[i + lane], &prologue);                                                         \
        MEASURE_##rule(i + lane)                                                                                      \
        for (int k = 0; k < SUMS_##rule; k++)                                                                         \
            lanes[k][lane] += (double)f[k][0] * (double)f[k][1];                                                      \
    }

/* Adds the products of n elements to sixteen partial sums each, which give one order of additions on every level. */
#define MEASURE_KERNEL(rule)                                                                                          \
    static void FN(run_measure_##rule)(int64_t n, void *const *arrays, const void *coefficients,                      \
                                       const fastopt_pass *pass)                                                      \
    {                                                                                                                 \
        COEFFICIENTS(rule, 1)                                                                                         \
        const int prefetch = pass->prefetch;                                                                          \
        const real *restrict param = arrays[0];                                                                       \
        const real *restrict grad = arrays[GRADIENT];                                                                 \
        POINTERS_##rule##_1                                                                                           \
        double lanes[SUMS_##rule][16];                                                                                \
        memcpy(lanes, pass->lanes, sizeof lanes);                                                                     \
        int64_t i = 0;                                                                                                \
        for (; i <= n - 16; i += 16) {                                                                                \
            if (prefetch) {                                                                                           \
                PREFETCH_NEAR(param + i + AHEAD);                                                                     \
                PREFETCH_NEAR(grad + i + AHEAD);                                                                      \
                PREFETCH_MEASURED_##rule(i + AHEAD)                                                                   \
            }                                                                                                         \
            for (int lane = 0; lane < 16; lane++)                                                                     \
                MEASURE_ELEMENT(rule, lane)                                                                           \
        }                                                                                                             \
        for (int lane = 0; lane < n - i; lane++)                                                                      \
            MEASURE_ELEMENT(rule, lane)                                                                               \
        memcpy(pass->lanes, lanes, sizeof lanes);                                                                     \
    }
FASTOPT_STAGES(MEASURE_KERNEL)
