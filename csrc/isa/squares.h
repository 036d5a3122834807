/* Sums of squares, for the norm and for the mean square of a row. */

/* Adds the squares of a tile's m elements to sixteen partial sums, which give one order of additions on every
 * level. Writes up to fifteen zeros after them. */
static void FN(add_squares)(real *tile, int64_t m, double *lanes)
{
    for (int64_t i = m; i % 16; i++)
        tile[i] = 0;
    for (int64_t i = 0; i < m; i += 16)
        for (int lane = 0; lane < 16; lane++)
            lanes[lane] += (double)tile[i + lane] * (double)tile[i + lane];
}

static double FN(sum_lanes)(const double *lanes)
{
    double sum = 0;
    for (int lane = 0; lane < 16; lane++)
        sum += lanes[lane];
    return sum;
}

/* The sum of squares of at most FASTOPT_NORM_BLOCK elements. */
static double FN(square_sum)(int32_t dtype, int64_t n, const char *from, int64_t stride)
{
    real tile[TILE];
    double lanes[16] = {0};
    for (int64_t i = 0; i < n; i += TILE) {
        int64_t m = n - i < TILE ? n - i : TILE;
        FN(read_floats)(dtype, tile, from + i * stride, stride, m);
        FN(add_squares)(tile, m, lanes);
    }
    return FN(sum_lanes)(lanes);
}
