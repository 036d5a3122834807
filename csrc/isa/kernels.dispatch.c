/* The loops over elements, compiled once for each instruction-set level and compute type. FASTOPT_ISA names the level;
 * FASTOPT_BITS is 32 or 64. */
#include <math.h>
#include <string.h>

#include "compiler.h"
#include "level.h"
#include "limits.h"

#if FASTOPT_BITS == 32
#define real float
#define FN(name) PASTE(name, _f32)
#define SQRT sqrtf
#define ABS fabsf
#define FASTOPT_CONVERSIONS /* from and to 16 and 8 bits: these are computed in float32 only */
#else
#define real double
#define FN(name) PASTE(name, _f64)
#define SQRT sqrt
#define ABS fabs
#endif

/* Elements between two prefetches of an array. */
#define LINE (64 / (int)sizeof(real))
/* The dtype of the compute type. */
#define COMPUTE (sizeof(real) == sizeof(float) ? FASTOPT_FLOAT32 : FASTOPT_FLOAT64)

/* Normal deviates for both compute types, from the instance for float32: see random.h. */
#define normals PASTE(fastopt_normals_, FASTOPT_ISA)
void normals(uint64_t element, int64_t n, uint64_t step, uint64_t seed, const upcoming *next, float *out);

#include "../rules.h"
#include "dense.h"
#include "stored.h"
#include "tiles.h"
#include "squares.h"
#include "rows.h"

#define DENSE(rule, copies) [number_##rule][copies - 1] = FN(run_##rule##_##copies),
#define STORED(rule, copies) [number_##rule][copies - 1] = FN(stored_##rule##_##copies),
/* A rule with states by row updates its elements by another rule's kernel. */
#define ROW_DENSE(rule, update) [number_##rule][0] = FN(run_##update##_1),
#define ROW_STORED(rule, update) [number_##rule][0] = FN(stored_##update##_1),
#define MEASURES(rule) [number_##rule] = FN(run_measure_##rule),
#define STORED_MEASURES(rule) [number_##rule] = FN(stored_measure_##rule),
#define ROW_FOLD(rule, update) [number_##rule] = FN(fold_row_##rule),
#define LOOP(rule, ...) [number_##rule] = FN(update_rows_##rule),
const fastopt_loops FN(PASTE(fastopt_loops_, FASTOPT_ISA)) = {
    {FASTOPT_INSTANCES(DENSE) FASTOPT_ROW_RULES(ROW_DENSE)},
    {FASTOPT_INSTANCES(STORED) FASTOPT_ROW_RULES(ROW_STORED)},
    {FASTOPT_STAGES(MEASURES)},
    {FASTOPT_STAGES(STORED_MEASURES)},
    FN(run_strided),
    FN(run_rows),
    FN(sum_row),
    {FASTOPT_ROW_RULES(ROW_FOLD)},
    {FASTOPT_ROW_LOOPS(LOOP) FASTOPT_ROW_RULES(LOOP)},
    FN(square_sum),
};
