/* Prints for each rule and each way of storing arrays a hash of all bits that some steps leave: to be compared between
 * machines and instruction sets, of which an argument chooses one. */
#include <fastopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COPIES = 3, STEPS = 5, THREADS = 2, ROWS = 40, WIDTH = 37, LOOKUPS = 64, ARRAYS = 2 + 3 * FASTOPT_MAX_COPIES + 2 };

static const struct {
    const char *name;
    int32_t dtype, param, grad, states, options;
} storages[] = {
    {"float32", FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_FLOAT32, 0},
    {"float64", FASTOPT_FLOAT64, FASTOPT_FLOAT64, FASTOPT_FLOAT64, FASTOPT_FLOAT64, 0},
    {"float16", FASTOPT_FLOAT32, FASTOPT_FLOAT16, FASTOPT_FLOAT16, FASTOPT_FLOAT32, FASTOPT_KAHAN},
    {"bfloat16", FASTOPT_FLOAT32, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_BFLOAT16, FASTOPT_STOCHASTIC | FASTOPT_DITHER},
    {"master", FASTOPT_FLOAT32, FASTOPT_BFLOAT16, FASTOPT_FLOAT32, FASTOPT_FLOAT16, FASTOPT_MASTER | FASTOPT_AVERAGE},
    {"blocks", FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_FLOAT32, FASTOPT_BLOCKS_SIGNED, FASTOPT_DITHER},
};
static const int64_t sizes[] = {1, 7, 31, 64, 255, 1003, 40000};

static uint64_t hash;
static uint32_t state;

static void add_bits(const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
}

static float random_number(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* The upper bits of a number: those of float16 for magnitudes from 2^-14 on. */
static uint16_t shortened(float x, int32_t dtype)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (dtype == FASTOPT_BFLOAT16)
        return (uint16_t)(u >> 16);
    const uint32_t magnitude = u & 0x7fffffff;
    return (uint16_t)((u >> 16 & 0x8000) | (magnitude < 0x38800000 ? 0 : (magnitude - 0x38000000) >> 13));
}

static void fill(void *array, int64_t n, int32_t dtype)
{
    for (int64_t i = 0; i < n; i++) {
        const float x = random_number();
        if (dtype == FASTOPT_FLOAT64)
            ((double *)array)[i] = x;
        else if (dtype == FASTOPT_FLOAT32)
            ((float *)array)[i] = x;
        else
            ((uint16_t *)array)[i] = shortened(x, dtype);
    }
}

static size_t bytes_of(int64_t n, int32_t dtype)
{
    if (dtype >= FASTOPT_BLOCKS_SIGNED)
        return (size_t)(n + FASTOPT_BLOCK - 1) / FASTOPT_BLOCK * FASTOPT_BLOCK_BYTES;
    return (size_t)n * (dtype == FASTOPT_FLOAT64 ? 8 : dtype == FASTOPT_FLOAT32 ? 4 : 2);
}

static void check(int error, const char *rule)
{
    if (error) {
        fprintf(stderr, "%s: %s\n", rule, fastopt_message(error));
        exit(1);
    }
}

/* Hyper-parameters of copy k: the defaults, a decay, something where there is no default. */
static void choose(int32_t number, int k, int copies, double *hyper, double *scalars)
{
    const fastopt_rule *rule = fastopt_get_rule(number);
    fastopt_defaults(number, hyper, scalars);
    for (int i = 0; i < rule->hyper; i++)
        if (isnan(hyper[i]) && !rule->hypers[i].optional)
            hyper[i] = 0.45 * k;
    fastopt_set_hyper(number, hyper, "lr", 0.01);
    fastopt_set_hyper(number, hyper, "weight_decay", 0.03);
    fastopt_set_hyper(number, hyper, "copies", copies);
}

static void tensors(int32_t number, int which)
{
    const fastopt_rule *rule = fastopt_get_rule(number);
    const int copies = rule->max_copies > 1 ? COPIES : 1, own = 2 + copies * rule->states, options = storages[which].options;
    const int32_t dtype = storages[which].dtype, param = storages[which].param;
    double hyper[COPIES][FASTOPT_MAX_HYPER], scalars[COPIES][FASTOPT_MAX_SCALARS];
    double coefficients[COPIES * FASTOPT_MAX_COEFFICIENTS];
    int32_t dtypes[ARRAYS] = {param, storages[which].grad};
    int all = 2;
    while (all < own)
        dtypes[all++] = storages[which].states;
    if (options & (FASTOPT_KAHAN | FASTOPT_MASTER))
        dtypes[all++] = options & FASTOPT_MASTER ? dtype : param;
    if (options & FASTOPT_AVERAGE)
        dtypes[all++] = dtype;
    const int whole = all;
    for (int k = 0; k < rule->singles; k++)
        dtypes[all++] = dtype;
    const fastopt_storage storage = {dtypes, options, 0.9, 42, 0, 0, 0, 0, 0};
    hash = 14695981039346656037u;
    for (size_t z = 0; z < sizeof sizes / sizeof *sizes; z++) {
        const int64_t n = sizes[z];
        void *arrays[ARRAYS];
        state = (uint32_t)(number * 7 + (int)z);
        for (int j = 0; j < all; j++)
            arrays[j] = calloc(bytes_of(j < whole ? n : 1, dtypes[j]), 1);
        fill(arrays[0], n, param);
        if (options & FASTOPT_MASTER)
            fill(arrays[own], n, dtype);
        for (int k = 0; k < rule->singles; k++) { /* Prodigy's estimates do not begin at zero */
            const char *name = rule->state_names[rule->states + k];
            if (!strcmp(name, "d") || !strcmp(name, "d_max"))
                dtype == FASTOPT_FLOAT64 ? (*(double *)arrays[whole + k] = 0.01) : (*(float *)arrays[whole + k] = 0.01f);
        }
        for (int k = 0; k < copies; k++)
            choose(number, k, copies, hyper[k], scalars[k]);
        for (int64_t t = 1; t <= STEPS; t++) {
            fill(arrays[1], n, dtypes[1]);
            for (int k = 0; k < copies; k++)
                check(fastopt_fold(number, t, 0.7, hyper[k], scalars[k], coefficients + k * rule->coefficients), rule->name);
            if (which < 2)
                check(fastopt_update(number, dtype, copies, 1, &n, arrays, coefficients, THREADS), rule->name);
            else
                check(fastopt_update_stored(number, dtype, copies, 1, &n, arrays, coefficients, &storage, t, THREADS),
                      rule->name);
        }
        for (int j = 0; j < all; j++) {
            if (j != 1)
                add_bits(arrays[j], bytes_of(j < whole ? n : 1, dtypes[j]));
            free(arrays[j]);
        }
    }
    printf("%s %s %016llx\n", rule->name, storages[which].name, (unsigned long long)hash);
}

static void rows(int32_t number, int32_t duplicates)
{
    const fastopt_rule *rule = fastopt_get_rule(number);
    double hyper[FASTOPT_MAX_HYPER], scalars[FASTOPT_MAX_SCALARS], coefficients[FASTOPT_MAX_COEFFICIENTS];
    static float arrays[ARRAYS][LOOKUPS * WIDTH];
    void *addresses[ARRAYS];
    int64_t strides[ARRAYS];
    int32_t indices[LOOKUPS];
    const fastopt_rows given = {ROWS, WIDTH, LOOKUPS, indices, 4, duplicates, NULL, NULL};
    state = (uint32_t)number;
    for (int j = 0; j < 2 + rule->states; j++) {
        strides[j] = (int64_t)sizeof(float) * (rule->by_row && j > 1 ? 1 : WIDTH);
        addresses[j] = memset(arrays[j], 0, sizeof arrays[j]);
    }
    fill(arrays[0], ROWS * WIDTH, FASTOPT_FLOAT32);
    choose(number, 0, 1, hyper, scalars);
    for (int64_t t = 1; t <= STEPS; t++) {
        fill(arrays[1], LOOKUPS * WIDTH, FASTOPT_FLOAT32);
        for (int i = 0; i < LOOKUPS; i++)
            indices[i] = (int32_t)((random_number() + 1) * ROWS / 2);
        check(fastopt_fold(number, t, 0.7, hyper, scalars, coefficients), rule->name);
        check(fastopt_update_rows(number, FASTOPT_FLOAT32, 1, &given, addresses, strides, coefficients, THREADS), rule->name);
    }
    hash = 14695981039346656037u;
    for (int j = 0; j < 2 + rule->states; j++)
        if (j != 1)
            add_bits(arrays[j], sizeof arrays[j]);
    printf("%s rows %d %016llx\n", rule->name, duplicates, (unsigned long long)hash);
}

int main(int count, char **arguments)
{
    if (count > 1)
        check(fastopt_set_isa(arguments[1]), arguments[1]);
    for (int32_t number = 0; fastopt_get_rule(number); number++) {
        for (size_t which = 0; !fastopt_get_rule(number)->by_row && which < sizeof storages / sizeof *storages; which++)
            tensors(number, (int)which);
        if (fastopt_get_rule(number)->by_tensor)
            continue;
        rows(number, FASTOPT_SUM);
        rows(number, FASTOPT_SEQUENTIAL);
    }
    return 0;
}
