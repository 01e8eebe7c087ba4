/* Products of matrices whose rows lie in memory one after the other, for some hundred columns.
 *
 * Tiles of TILE_ROWS rows and up to TILE_VECTORS vectors of columns stay in registers while the inner
 * index runs; each sum is taken in the order of that index, so a row's result depends on nothing
 * but the row. For sizes at which the right factor fits the cache: no packing, no blocking.
 */
#define TILE_ROWS 6
#define TILE_VECTORS (VW == 16 ? 4 : 2)

/* TILE_ROWS rows; those beyond `rows` repeat the last one and are not stored. */
#define MATRIX_TILE(VECTORS)                                                                   \
  do {                                                                                          \
    vf sum_[TILE_ROWS][VECTORS];                                                                \
    UNROLL for (int r = 0; r < TILE_ROWS; r++)                                                  \
      UNROLL for (int c = 0; c < (VECTORS); c++) sum_[r][c] = (vf){0};                          \
    for (int64_t k = 0; k < inner; k++) {                                                       \
      vf b_[VECTORS];                                                                           \
      UNROLL for (int c = 0; c < (VECTORS); c++) b_[c] = load(w + k * columns + n + c * VW);    \
      UNROLL for (int r = 0; r < TILE_ROWS; r++) {                                              \
        vf a_ = splat(row[r][k]);                                                               \
        UNROLL for (int c = 0; c < (VECTORS); c++) sum_[r][c] += a_ * b_[c];                    \
      }                                                                                         \
    }                                                                                           \
    for (int r = 0; r < TILE_ROWS && m + r < rows; r++)                                         \
      UNROLL for (int c = 0; c < (VECTORS); c++)                                                \
        store(y + (m + r) * columns + n + c * VW, sum_[r][c]);                                  \
    n += (VECTORS) * VW;                                                                        \
  } while (0)

/* y (rows, columns) = x (rows, inner) w (inner, columns); VW divides `columns`. */
static void multiply_rows(const float *x, const float *w, float *y, int64_t rows, int64_t inner,
                    int64_t columns) {
  /* All rows of a column stripe after each other: the stripe of w stays in the L1 cache. */
  for (int64_t n0 = 0; n0 < columns; n0 += TILE_VECTORS * VW)
    for (int64_t m = 0; m < rows; m += TILE_ROWS) {
      const float *row[TILE_ROWS];
      UNROLL for (int r = 0; r < TILE_ROWS; r++) row[r] = x + smaller(m + r, rows - 1) * inner;
      int64_t n = n0, left = (columns - n0) / VW;
      if (left >= TILE_VECTORS) {
        MATRIX_TILE(TILE_VECTORS);
        continue;
      }
#if VW == 16
      if (left & 2) MATRIX_TILE(2);
#endif
      if (left & 1) MATRIX_TILE(1);
    }
}

#define MATRIX_ROWS 96 /* rows that one work item takes */

typedef struct {
  const float *x, *w, *bias;
  float *y;
  int64_t rows, inner, columns;
} matrix_task;

static void matrix_item(const void *task, int64_t item, float *scratch) {
  (void)scratch;
  const matrix_task *q = task;
  int64_t first = item * MATRIX_ROWS, rows = smaller(MATRIX_ROWS, q->rows - first);
  float *y = q->y + first * q->columns;
  multiply_rows(q->x + first * q->inner, q->w, y, rows, q->inner, q->columns);
  if (q->bias == NULL) return;
  for (int64_t m = 0; m < rows; m++, y += q->columns)
    for (int64_t n = 0; n < q->columns; n += VW) store(y + n, load(y + n) + load(q->bias + n));
}

/* y = x w + bias (unless NULL). */
EXPORT int matrix_product(const float *x, const float *w, const float *bias, float *y,
                          int64_t rows, int64_t inner, int64_t columns, int64_t threads) {
  matrix_task task = {x, w, bias, y, rows, inner, columns};
  int64_t items = (rows + MATRIX_ROWS - 1) / MATRIX_ROWS;
  return for_each(items, threads, 0, matrix_item, &task);
}
