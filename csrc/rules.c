/* The table of rules: names, hyper-parameters with defaults and domains, folds. */
#include "library.h"

#include <math.h>
#include <string.h>

#define real double
#define FN(name) name##_f64
#define SQRT sqrt
#define ABS fabs
#define FASTOPT_FOLDS
#include "rules.h"

#define FOLD_ENTRY(rule, fold)                                                                                        \
    static void folded_##rule(double t, const double *hyper, double *scalars, double *coefficients)                   \
    {                                                                                                                 \
        fold_##fold(t, (const void *)hyper, scalars, (void *)coefficients);                                           \
    }
FASTOPT_KERNELS(FOLD_ENTRY)

#define STAGE_ENTRY(rule)                                                                                             \
    static void staged_##rule(const double *sums, double *singles, double *coefficients)                              \
    {                                                                                                                 \
        stage_##rule((const void *)sums, (void *)singles, (void *)coefficients);                                      \
    }
FASTOPT_STAGES(STAGE_ENTRY)

const rule_entry rules[] = {FASTOPT_RULES};
enum { RULES = sizeof rules / sizeof *rules };

int32_t fastopt_find_rule(const char *name)
{
    for (int32_t i = 0; name && i < RULES; i++)
        if (!strcmp(name, rules[i].rule.name))
            return i;
    return -1;
}

const fastopt_rule *fastopt_get_rule(int32_t rule) { return rule >= 0 && rule < RULES ? &rules[rule].rule : NULL; }

static int in_domain(const fastopt_hyper *hyper, double value)
{
    return (value >= hyper->low && value <= hyper->high && (!hyper->whole || value == floor(value)))
        || (hyper->optional && isnan(value));
}

int fastopt_defaults(int32_t rule, double *hyper, double *scalars)
{
    const fastopt_rule *found = fastopt_get_rule(rule);
    if (!found)
        return FASTOPT_BAD_RULE;
    if (!hyper || (!scalars && found->scalars))
        return FASTOPT_NULL_POINTER;
    for (int i = 0; i < found->hyper; i++)
        hyper[i] = found->hypers[i].value;
    for (int i = 0; i < found->scalars; i++)
        scalars[i] = rules[rule].scalars[i];
    return FASTOPT_OK;
}

int fastopt_set_hyper(int32_t rule, double *hyper, const char *name, double value)
{
    const fastopt_rule *found = fastopt_get_rule(rule);
    if (!found)
        return FASTOPT_BAD_RULE;
    if (!hyper || !name)
        return FASTOPT_NULL_POINTER;
    IN_IEEE_ARITHMETIC;
    for (int i = 0; i < found->hyper; i++)
        if (!strcmp(name, found->hypers[i].name)) {
            if (!in_domain(&found->hypers[i], value))
                return FASTOPT_BAD_VALUE;
            hyper[i] = value;
            return FASTOPT_OK;
        }
    return FASTOPT_BAD_HYPER;
}

/* Not inlined: the compiler may not move its operations out of the caller's IEEE arithmetic. */
__attribute__((noinline)) void fold_into(int rule, double t, double grad_scale, const double *hyper, double *scalars,
                                          double *c)
{
    const int kind = rules[rule].decay;
    const double lr = hyper[0], weight_decay = hyper[1], maximize = hyper[2];
    const double decoupled = kind == 0 ? hyper[rules[rule].rule.hyper - 1] : kind == 1 ? weight_decay : 0.0;
    c[0] = maximize ? -grad_scale : grad_scale;
    c[1] = kind == 0 ? weight_decay : 0.0;
    c[2] = decoupled ? 1.0 - lr * decoupled : 1.0;
    if (rules[rule].stage) /* whose coefficients come later */
        memset(c + OWN, 0, (size_t)(rules[rule].rule.coefficients - OWN) * sizeof *c);
    rules[rule].fold(t, hyper, scalars, c + OWN);
}

int fastopt_fold(int32_t rule, int64_t t, double grad_scale, const double *hyper, double *scalars,
                 double *coefficients)
{
    const fastopt_rule *found = fastopt_get_rule(rule);
    if (!found)
        return FASTOPT_BAD_RULE;
    if (!hyper || !coefficients || (!scalars && found->scalars))
        return FASTOPT_NULL_POINTER;
    if (t < 1)
        return FASTOPT_BAD_STEP;
    IN_IEEE_ARITHMETIC;
    for (int i = 0; i < found->hyper; i++)
        if (!in_domain(&found->hypers[i], hyper[i]))
            return FASTOPT_BAD_VALUE;
    if (!isfinite(grad_scale))
        return FASTOPT_BAD_VALUE;
    fold_into(rule, (double)t, grad_scale, hyper, scalars, coefficients);
    return FASTOPT_OK;
}
