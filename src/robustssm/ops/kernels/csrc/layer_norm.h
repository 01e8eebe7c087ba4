/* Layer norm, forward and back: y = (x - mean) / deviation * gain + offset, row by row.
 *
 * VW divides the width. A work item is NORM_ROWS rows, for any number of threads.
 */
#define NORM_ROWS 64

typedef struct {
  const float *x, *gain, *offset, *g;
  float *y, *moments, *sums;
  int64_t rows, width;
  /* Gradients come in groups of `period` rows, as those of a mean over tokens are one row. */
  int64_t period, group_step, row_step;
  float epsilon;
} norm_task;

/* Mean and 1 / deviation of a row. */
INLINE void norm_measure(const float *x, int64_t width, float epsilon, float *moments) {
  vf sum = {0}, squares = {0};
  for (int64_t n = 0; n < width; n += VW) sum += load(x + n);
  float mean = sum_of(sum) / (float)width;
  for (int64_t n = 0; n < width; n += VW) {
    vf off = load(x + n) - mean;
    squares += off * off;
  }
  moments[0] = mean;
  moments[1] = 1.0f / __builtin_sqrtf(sum_of(squares) / (float)width + epsilon);
}

INLINE void norm_apply(const float *x, const float *gain, const float *offset, int64_t width,
                       const float *moments, float *out) {
  float mean = moments[0], rate = moments[1];
  for (int64_t n = 0; n < width; n += VW)
    store(out + n, (load(x + n) - mean) * rate * load(gain + n) + load(offset + n));
}

/* out = the gradient of x from g, that of the normalised row; plus `add` unless NULL. */
INLINE void norm_back(const float *x, const float *gain, int64_t width, const float *moments,
                      const float *g, const float *add, float *out) {
  vf total = {0}, along = {0};
  float mean = moments[0], rate = moments[1];
  for (int64_t n = 0; n < width; n += VW) {
    vf slope = load(g + n) * load(gain + n);
    total += slope;
    along += slope * (load(x + n) - mean) * rate;
  }
  float level = sum_of(total) / (float)width, tilt = sum_of(along) / (float)width;
  for (int64_t n = 0; n < width; n += VW) {
    vf unit = (load(x + n) - mean) * rate;
    vf dx = (load(g + n) * load(gain + n) - level - unit * tilt) * rate;
    if (add != NULL) dx += load(add + n);
    store(out + n, dx);
  }
}

static void norm_item(const void *task, int64_t item, float *scratch) {
  const norm_task *q = task;
  int64_t stop = smaller(q->rows, (item + 1) * NORM_ROWS);
  for (int64_t t = item * NORM_ROWS; t < stop; t++) {
    norm_measure(q->x + t * q->width, q->width, q->epsilon, q->moments + 2 * t);
    norm_apply(q->x + t * q->width, q->gain, q->offset, q->width, q->moments + 2 * t,
               q->y + t * q->width);
  }
}

static void norm_back_item(const void *task, int64_t item, float *scratch) {
  const norm_task *q = task;
  int64_t d = q->width, stop = smaller(q->rows, (item + 1) * NORM_ROWS);
  float *sums = q->sums == NULL ? NULL : q->sums + item * 2 * d;
  if (sums != NULL) memset(sums, 0, (size_t)(2 * d) * sizeof(float));
  for (int64_t t = item * NORM_ROWS; t < stop; t++) {
    const float *x = q->x + t * d, *moments = q->moments + 2 * t;
    const float *g = q->g + t / q->period * q->group_step + t % q->period * q->row_step;
    if (q->y != NULL) norm_back(x, q->gain, d, moments, g, NULL, q->y + t * d);
    for (int64_t n = 0; sums != NULL && n < d; n += VW) {
      vf slope = load(g + n);
      store(sums + n, load(sums + n) + slope * ((load(x + n) - moments[0]) * moments[1]));
      store(sums + d + n, load(sums + d + n) + slope);
    }
  }
}

/* `moments` (rows, 2) gets mean and 1 / deviation. */
EXPORT int layer_norm(const float *x, const float *gain, const float *offset, float *y,
                      float *moments, float epsilon, int64_t rows, int64_t width,
                      int64_t threads) {
  norm_task task = {.x = x, .gain = gain, .offset = offset, .y = y, .moments = moments,
                    .rows = rows, .width = width, .epsilon = epsilon};
  return for_each((rows + NORM_ROWS - 1) / NORM_ROWS, threads, 0, norm_item, &task);
}

/* dx is NULL if it is not wanted, and so is `sums`: each item's part of the gradients of gain and
 * offset, (items, 2, width). */
EXPORT int layer_norm_gradients(const float *x, const float *gain, const float *moments,
                                const float *g, float *dx, float *sums, int64_t rows,
                                int64_t width, int64_t period, int64_t group_step,
                                int64_t row_step, int64_t threads) {
  norm_task task = {.x = x, .gain = gain, .g = g, .y = dx, .moments = (float *)moments,
                    .sums = sums, .rows = rows, .width = width, .period = period,
                    .group_step = group_step, .row_step = row_step};
  return for_each((rows + NORM_ROWS - 1) / NORM_ROWS, threads, 0, norm_back_item, &task);
}
