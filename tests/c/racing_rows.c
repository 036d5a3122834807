/* Threads update rows of one table: of their own, or with the argument "racing" the same ones. Compiled together with the
 * library by tests/test_c_interface.py, under ThreadSanitizer. */
#include <fastopt.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 64, WIDTH = 32, THREADS = 4, STEPS = 20 };

static float table[ROWS][WIDTH], sums[ROWS][WIDTH];
static int racing;
static pthread_barrier_t begun;

static void *work(void *argument)
{
    const int own = (int)(size_t)argument;
    int32_t indices[ROWS];
    float gradient[ROWS][WIDTH];
    double hyper[FASTOPT_MAX_HYPER], coefficients[FASTOPT_MAX_COEFFICIENTS];
    const int32_t rule = fastopt_find_rule("adagrad");
    int64_t count = 0;
    for (int i = 0; i < ROWS; i++)
        if (racing || i % THREADS == own)
            indices[count++] = i;
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < WIDTH; k++)
            gradient[i][k] = (float)(i - k);
    const fastopt_rows rows = {ROWS, WIDTH, count, indices, 4, racing ? FASTOPT_HOGWILD : FASTOPT_SUM, NULL, NULL};
    void *const addresses[] = {table, gradient, sums};
    const int64_t strides[] = {sizeof *table, sizeof *gradient, sizeof *sums};
    fastopt_defaults(rule, hyper, NULL);
    for (int t = 1; t <= STEPS; t++) {
        pthread_barrier_wait(&begun); /* all at once: of a thread that has ended the detector may know nothing more */
        fastopt_fold(rule, t, 1.0, hyper, NULL, coefficients);
        if (fastopt_update_rows(rule, FASTOPT_FLOAT32, 1, &rows, addresses, strides, coefficients, 1))
            abort();
    }
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    racing = count > 1 && !strcmp(arguments[1], "racing");
    pthread_barrier_init(&begun, NULL, THREADS);
    for (size_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
