/* fastopt: fused optimizer updates, in plain C types. It needs C99 or C++11, and no Python.
 *
 *     gcc train.c $(fastopt info --cflags --libs)
 *
 * A call of fastopt_update does one step of one rule on any number of tensors, in place. A complete program:
 *
 *     #include <fastopt.h>
 *     #include <stdio.h>
 *
 *     int main(void)
 *     {
 *         float p[3] = {1, 2, 3}, g[3], m[3] = {0}, v[3] = {0}; // parameter, gradient; the states begin at zero
 *         void *arrays[] = {p, g, m, v};                        // in this order, for each tensor
 *         int64_t sizes[] = {3};
 *         int32_t rule = fastopt_find_rule("adamw");
 *         double hyper[FASTOPT_MAX_HYPER], coefficients[FASTOPT_MAX_COEFFICIENTS];
 *         int error = fastopt_defaults(rule, hyper, NULL);
 *         if (!error)
 *             error = fastopt_set_hyper(rule, hyper, "lr", 0.1);
 *         for (int64_t t = 1; t <= 100 && !error; t++) {
 *             for (int i = 0; i < 3; i++)
 *                 g[i] = 2 * p[i]; // the gradient of p^2
 *             error = fastopt_fold(rule, t, 1.0, hyper, NULL, coefficients);
 *             if (!error)
 *                 error = fastopt_update(rule, FASTOPT_FLOAT32, 1, 1, sizes, arrays, coefficients, 1);
 *         }
 *         printf("%s: %g %g %g\n", fastopt_message(error), p[0], p[1], p[2]);
 *         return error;
 *     }
 *
 * Errors. Calls that return int return FASTOPT_OK, which is 0, or an error code; fastopt_message describes it. A call
 * writes nothing before it has checked all arguments.
 *
 * Bits. An update gives the same bits on every instruction set, with any number of threads, and in Python. Calls use
 * IEEE 754 arithmetic, even in a thread that is set to another rounding mode or flushes subnormal numbers to zero, and
 * leave that setting as it was.
 *
 * Threads. Calls from several threads at once are safe if no array that one writes is used by another. Call
 * fastopt_set_isa only while no update runs. The library has threads of its own, which sleep when there has been no work
 * for some tens of microseconds: where fewer can be started than a call asks for, it uses fewer. They work for one call
 * at a time, and another at the same time does its work alone. A forked child has others. Where GCC's runtime of OpenMP is
 * in the process (libgomp.so.1), as it is with PyTorch, its threads are used instead.
 *
 * Returned strings and tables belong to the library and last as long as it is loaded.
 *
 * The rules of this version follow. The formula is the update of an element p by its gradient g at step t. States
 * and hyper-parameters are laid out in the order given here; the values are the defaults, NaN if there is none.
 * Before each update come
 *
 *     g = grad_scale*g, its sign flipped by maximize
 *     g += weight_decay*p
 *     p *= 1 - lr*decoupled_weight_decay
 *
 * A formula that has a weight_decay of its own, like adamw's, uses it there; such a rule has no other decay.
 *
 * <rules>
 */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FASTOPT_API __attribute__((visibility("default")))
#else
#define FASTOPT_API
#endif

/* The version of this header: FASTOPT_VERSION, a string; FASTOPT_VERSION_MAJOR and FASTOPT_VERSION_MINOR. Rules
 * keep their names; their numbers may change with a minor version. */
/* <version> */

/* The version of the library: FASTOPT_VERSION of its header. */
FASTOPT_API const char *fastopt_version(void);

enum {
    FASTOPT_OK = 0,
    FASTOPT_BAD_RULE = 1,
    FASTOPT_BAD_DTYPE = 2,
    FASTOPT_BAD_ISA = 3,
    FASTOPT_BAD_COPIES = 4,
    FASTOPT_BAD_HYPER = 5,
    FASTOPT_BAD_VALUE = 6,
    FASTOPT_BAD_STEP = 7,
    FASTOPT_BAD_SIZE = 8,
    FASTOPT_BAD_THREADS = 9,
    FASTOPT_NULL_POINTER = 10,
    FASTOPT_NO_MEMORY = 11,
    FASTOPT_BAD_INDEX = 12,
    FASTOPT_ROW_RULE = 13,
    FASTOPT_BAD_STORAGE = 14,
    FASTOPT_TENSOR_RULE = 15
};
FASTOPT_API const char *fastopt_message(int code);

enum {
    FASTOPT_FLOAT32 = 0,
    FASTOPT_FLOAT64 = 1,
    FASTOPT_BFLOAT16 = 2,
    FASTOPT_FLOAT16 = 3,
    FASTOPT_BLOCKS_SIGNED = 4,  /* 8-bit floats in blocks, for states that may be negative */
    FASTOPT_BLOCKS_POSITIVE = 5 /* the same for states that are never negative */
};
/* An array of n elements takes (n + FASTOPT_BLOCK - 1) / FASTOPT_BLOCK blocks, each a float32 scale and FASTOPT_BLOCK
 * codes. Codes after the array's end mean nothing. Blocks of zero bytes hold zeros. */
enum { FASTOPT_BLOCK = 256, FASTOPT_BLOCK_BYTES = FASTOPT_BLOCK + 4 };

/* Lengths that are enough for any rule of any minor version, and the most threads. */
enum {
    FASTOPT_MAX_HYPER = 24,
    FASTOPT_MAX_COEFFICIENTS = 24,
    FASTOPT_MAX_SCALARS = 4,
    FASTOPT_MAX_COPIES = 8,
    FASTOPT_MAX_THREADS = 1024
};

/* ---- the rules ---- */

typedef struct {
    const char *name;
    double value;     /* the default; NaN if there is none */
    double low, high; /* the domain: low <= value <= high */
    int32_t whole;    /* 1: whole numbers only; an option is 0 or 1 */
    int32_t optional; /* 1: NaN is in the domain too, for "not given" */
} fastopt_hyper;

typedef struct {
    const char *name;
    int32_t states;       /* arrays of state, for each copy */
    int32_t hyper;        /* hyper-parameters: the length of their row */
    int32_t coefficients; /* the length of a row of coefficients */
    int32_t scalars;      /* numbers kept from step to step beside the arrays: one for nadam, none for most */
    int32_t max_copies;   /* of the states: 1, and FASTOPT_MAX_COPIES for aggmo */
    int32_t by_row;       /* 1: states have one element for each row of the parameter; for fastopt_update_rows only */
    int32_t by_tensor;    /* 1: an element's update depends on all of its tensor; not for fastopt_update_rows;
                           * 2: on all of all tensors of the call */
    int32_t singles;      /* further states, of one number each for the whole tensor, in arrays of one element; where
                           * all tensors are measured together, the numbers of the first are those of all */
    int32_t inputs;       /* arrays that are only read, beside the gradient: 0 for most */
    const char *const *state_names; /* [states + singles] */
    const char *const *input_names;
    const fastopt_hyper *hypers;
} fastopt_rule;

/* The number of the rule of that name, or -1. */
FASTOPT_API int32_t fastopt_find_rule(const char *name);

/* The description of a rule. Rules are numbered from 0; NULL if there is none of that number. */
FASTOPT_API const fastopt_rule *fastopt_get_rule(int32_t rule);

/* ---- one step ---- */

/* Writes a rule's default hyper-parameters to hyper[rule's hyper], NaN if there is none, and its scalars before the
 * first step to scalars[rule's scalars]. `scalars` may be NULL for a rule without them. */
FASTOPT_API int fastopt_defaults(int32_t rule, double *hyper, double *scalars);

/* Sets a hyper-parameter by name. Returns FASTOPT_BAD_HYPER if the rule has none of that name, FASTOPT_BAD_VALUE if
 * the value is outside the domain. */
FASTOPT_API int fastopt_set_hyper(int32_t rule, double *hyper, const char *name, double value);

/* Folds hyper-parameters into the coefficients of step t (from 1) and advances the scalars. Call it once for each
 * step, before any number of updates. grad_scale multiplies gradients (1/loss scale, clipping). Returns
 * FASTOPT_BAD_VALUE if a hyper-parameter is outside its domain, or has no default and was not set.
 *
 * AggMo has 1 to FASTOPT_MAX_COPIES copies of its state and as many rows of coefficients. Fold them one by one,
 * each with that copy's beta in `betas` and the number of betas in `copies`:
 *
 *     fastopt_set_hyper(rule, hyper, "copies", 3);
 *     for (int k = 0; k < 3; k++) {
 *         fastopt_set_hyper(rule, hyper, "betas", betas[k]);
 *         fastopt_fold(rule, t, 1.0, hyper, NULL, coefficients + k * fastopt_get_rule(rule)->coefficients);
 *     }
 *     fastopt_update(rule, dtype, 3, ...); // arrays: parameter, gradient, three velocities
 */
FASTOPT_API int fastopt_fold(int32_t rule, int64_t t, double grad_scale, const double *hyper, double *scalars,
                             double *coefficients);

/* Does one step of `tensors` tensors, in place. Tensor i has sizes[i] elements and the arrays arrays[i * (2 +
 * copies*states + inputs + singles)...]: parameter, gradient, the states of the first copy, of the second, ..., inputs,
 * single states (which are of the dtype, have one element, and stay where the tensor has none). Each array is
 * contiguous, of any alignment. All but gradient and inputs are written. No array that is written may overlap another.
 * An array without elements may be NULL; without tensors nothing is done.
 *
 * dtype        of every array: FASTOPT_FLOAT32 or FASTOPT_FLOAT64; for others see fastopt_update_stored
 * copies       1, or AggMo's number of betas
 * coefficients [copies][rule's coefficients], from fastopt_fold; FASTOPT_BAD_VALUE if the dtype cannot hold them
 * threads      the most threads, from 1 to FASTOPT_MAX_THREADS; small updates use fewer
 *
 * A rule that measures whole tensors (lamb) reads all arrays once more before it updates them. One that measures all
 * together (prodigy) takes them in one call; tensors may share its single states.
 */
FASTOPT_API int fastopt_update(int32_t rule, int32_t dtype, int32_t copies, int64_t tensors, const int64_t *sizes,
                               void *const *arrays, const double *coefficients, int32_t threads);

/* Storage formats. With the dtype FASTOPT_FLOAT32 updates are computed in float32, while the parameter, the
 * gradient and each state or input may be stored in float32, bfloat16 or float16, and states also in blocks. With
 * FASTOPT_FLOAT64 all are float64. Of the first three options at most one is set. */
enum {
    FASTOPT_STOCHASTIC = 1,  /* a 16-bit parameter is rounded up or down at random, in proportion */
    FASTOPT_KAHAN = 2,       /* the part of a 16-bit parameter lost to rounding is kept in an array of its dtype */
    FASTOPT_MASTER = 4,      /* a 16-bit parameter is a rounded copy of an array of the compute type */
    FASTOPT_AVERAGE = 8,     /* an average of the parameter is kept: average = decay*average + (1 - decay)*parameter */
    FASTOPT_ZERO_GRADS = 16, /* gradients are set to zero once read */
    FASTOPT_DITHER = 32,     /* 16-bit states are rounded up or down in turns, so that slow averages move;
                              * states in blocks always are */
    FASTOPT_NOISE = 64,      /* normal noise of the variance noise_eta/t^noise_gamma is added to grad_scale*g */
    FASTOPT_CLIP = 128       /* grad_scale*g is clipped to [-clip_value, clip_value], before noise; NaN stays */
};
typedef struct {
    const int32_t *dtypes;   /* of each array: those of fastopt_update but for single states, then the lost part or
                              * the master if there is one, then the average if there is one; these are arrays of the
                              * tensor too, before its single states */
    int32_t options;         /* a sum of the above */
    double average_decay;
    uint64_t seed;           /* of stochastic rounding, by Philox4x32-7 of seed, step and element's number */
    int64_t first_element;   /* the number of the first tensor's first element; the others follow */
    double noise_eta, noise_gamma;
    uint64_t noise_seed;     /* of noise, by Philox4x32-7 of seed, step and element's number */
    double clip_value;       /* at least 0 */
} fastopt_storage;

/* Does the same as fastopt_update, at step t (from 1), for arrays in the formats that `storage` gives. */
FASTOPT_API int fastopt_update_stored(int32_t rule, int32_t dtype, int32_t copies, int64_t tensors,
                                      const int64_t *sizes, void *const *arrays, const double *coefficients,
                                      const fastopt_storage *storage, int64_t t, int32_t threads);

/* The gradient of some rows of a parameter. Lookup i is of the row indices[i]. */
enum { FASTOPT_SUM = 0, FASTOPT_SEQUENTIAL = 1, FASTOPT_HOGWILD = 2 };
typedef struct {
    int64_t rows;               /* of the parameter, below 2^32 */
    int64_t width;              /* elements of a row */
    int64_t count;              /* lookups, below 2^32 */
    const void *indices;        /* [count], in [0, rows) */
    int32_t index_size;         /* 4 or 8 bytes */
    int32_t duplicates;         /* the meaning of several lookups of a row: FASTOPT_SUM, one step of their sum, which is
                                 * added up in groups of 32 lookups in order, then of 32 groups, and so on;
                                 * FASTOPT_SEQUENTIAL, a step each, in order; FASTOPT_HOGWILD, a step each as threads
                                 * come to them, without locks */
    const int64_t *source;      /* [count]: the gradient's row for each lookup; NULL: row i for lookup i */
    const void *weights;        /* [count], of the dtype: factors of the lookups' gradients; NULL: 1 */
} fastopt_rows;

/* Does one step of some rows of one parameter, in place. Other rows and their states are not touched.
 *
 * addresses    [2 + copies*states + inputs]: the first rows of parameter, gradient, states and inputs
 * strides      [2 + copies*states + inputs]: bytes from a row to the next; each row is contiguous, and rows may overlap
 *              in the gradient only
 */
FASTOPT_API int fastopt_update_rows(int32_t rule, int32_t dtype, int32_t copies, const fastopt_rows *rows,
                                    void *const *addresses, const int64_t *strides, const double *coefficients,
                                    int32_t threads);

/* ---- the machine ---- */

/* A good number of threads: that of the CPUs of the process, or OMP_NUM_THREADS if that is less. Quotas of
 * control groups are not looked at. */
FASTOPT_API int32_t fastopt_default_threads(void);

/* The instruction set in use, by default the highest that the processor has; the levels compiled; and those of them
 * that this processor has. Lists are comma-separated names, from the lowest. */
FASTOPT_API const char *fastopt_isa(void);
FASTOPT_API const char *fastopt_isa_compiled(void);
FASTOPT_API const char *fastopt_isa_supported(void);
/* Sets the level by name; NULL or "" is the highest that the processor has. */
FASTOPT_API int fastopt_set_isa(const char *name);

/* The compiler that built the library. */
FASTOPT_API const char *fastopt_compiler(void);

#ifdef __cplusplus
}
#endif
#endif
