/* Trains logistic regression by a rule, with hyper-parameters given as name=value, and prints the weights exactly.
 * `betas` may be given several times, once for each copy. Compiled as C and as C++, with REAL and DTYPE defined;
 * tests/test_c_interface.py does the same in Python. */
#include <fastopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 64, FEATURES = 5, STEPS = 30, STATES = 3 * FASTOPT_MAX_COPIES };

static double samples[SAMPLES][FEATURES], labels[SAMPLES];

static void make_samples(void)
{
    uint32_t state = 1;
    for (int i = 0; i < SAMPLES; i++) {
        double sum = 0;
        for (int j = 0; j < FEATURES; j++) {
            state = state * 1664525u + 1013904223u;
            samples[i][j] = (double)(state >> 8) / 8388608.0 - 1.0;
            sum += samples[i][j];
        }
        labels[i] = sum > 0.25;
    }
}

static void gradient(const REAL *weights, const REAL *bias, REAL *weights_grad, REAL *bias_grad)
{
    double sums[FEATURES + 1] = {0};
    for (int i = 0; i < SAMPLES; i++) {
        double z = *bias;
        for (int j = 0; j < FEATURES; j++)
            z += weights[j] * samples[i][j];
        double error = 1.0 / (1.0 + exp(-z)) - labels[i];
        for (int j = 0; j < FEATURES; j++)
            sums[j] += error * samples[i][j];
        sums[FEATURES] += error;
    }
    for (int j = 0; j < FEATURES; j++)
        weights_grad[j] = (REAL)(sums[j] / SAMPLES);
    *bias_grad = (REAL)(sums[FEATURES] / SAMPLES);
}

static void check(int error)
{
    if (error) {
        fprintf(stderr, "%s\n", fastopt_message(error));
        exit(1);
    }
}

int main(int count, char **arguments)
{
    if (strcmp(fastopt_version(), FASTOPT_VERSION))
        return 2;
    int32_t number = fastopt_find_rule(count > 1 ? arguments[1] : NULL), copies = 0;
    double hyper[FASTOPT_MAX_COPIES][FASTOPT_MAX_HYPER], scalars[FASTOPT_MAX_SCALARS];
    double coefficients[FASTOPT_MAX_COPIES * FASTOPT_MAX_COEFFICIENTS];
    for (int k = 0; k < FASTOPT_MAX_COPIES; k++)
        check(fastopt_defaults(number, hyper[k], scalars));
    for (int i = 2; i < count; i++) {
        char *value = strchr(arguments[i], '=');
        if (!value)
            return 2;
        *value++ = 0;
        if (!strcmp(arguments[i], "betas"))
            check(fastopt_set_hyper(number, hyper[copies++], arguments[i], atof(value)));
        else
            for (int k = 0; k < FASTOPT_MAX_COPIES; k++)
                check(fastopt_set_hyper(number, hyper[k], arguments[i], atof(value)));
    }
    for (int k = 0; k < copies; k++)
        check(fastopt_set_hyper(number, hyper[k], "copies", copies));
    if (!copies)
        copies = 1;

    make_samples();
    const fastopt_rule *rule = fastopt_get_rule(number);
    REAL weights[FEATURES] = {0}, bias[1] = {0}, weights_grad[FEATURES], bias_grad[1];
    REAL weights_states[STATES][FEATURES] = {{0}}, bias_states[STATES][1] = {{0}};
    int64_t sizes[] = {FEATURES, 1};
    void *arrays[2 * (2 + STATES)];
    int width = 0;
    arrays[width++] = weights;
    arrays[width++] = weights_grad;
    for (int k = 0; k < copies * rule->states + rule->singles; k++)
        arrays[width++] = weights_states[k];
    arrays[width++] = bias;
    arrays[width++] = bias_grad;
    for (int k = 0; k < copies * rule->states + rule->singles; k++)
        arrays[width++] = bias_states[k];
    for (int64_t t = 1; t <= STEPS; t++) {
        gradient(weights, bias, weights_grad, bias_grad);
        for (int k = 0; k < copies; k++)
            check(fastopt_fold(number, t, 1.0, hyper[k], scalars, coefficients + k * rule->coefficients));
        check(fastopt_update(number, DTYPE, copies, 2, sizes, arrays, coefficients, fastopt_default_threads()));
    }
    for (int j = 0; j < FEATURES; j++)
        printf("%a\n", (double)weights[j]);
    printf("%a\n", (double)bias[0]);
    return 0;
}
