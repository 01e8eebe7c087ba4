/* A residual block around a convolutional layer, forward and back to its input, in one pass each.
 *
 *   y = k * norm(h)     s = act(S y + b) y [+ act(V y + c)]     a = gelu(s)     z = gelu(W a + w)
 *   out = norm(h + z)
 *
 * where every part but the convolution may be left out and the norm stands first or last. One work
 * item is one example: its sequences stay in the cache from part to part, and after the convolution
 * BLOCK_ROWS tokens at a time go through all that follows. Parameters get no gradient here.
 */
#define BLOCK_ROWS 48

enum { NORM_NONE, NORM_FIRST, NORM_LAST };
enum { ADS_NONE, ADS_RELU, ADS_SIGMOID, ADS_TANH };

typedef struct {
  int64_t batch, length, channels, n1, n2, norm, residual, ads, gelu, mixing, mixed_gelu;
  float epsilon;
  /* The kernel (length, channels), or its spectrum with the tables of a plan where n1 > 0. */
  const float *kernel, *twist, *turn, *phase;
  /* Matrices that multiply from the right, and in `_back` their transposes; NULL if left out. */
  const float *scale, *scale_bias, *shift, *shift_bias, *mix, *mix_bias;
  const float *gain, *offset; /* of the norm */
  const float *h, *g;
  float *out;
  /* What the gradient needs, (batch, length, channels) each, NULL if not wanted: y, S y + b,
   * V y + c, W a + w, h + z; and mean and 1 / deviation of what is normalised. */
  float *y, *scaled, *shifted, *mixed, *sum, *moments;
} block_task;

INLINE vf block_act(vf x, int64_t kind) {
  if (kind == ADS_RELU) return where(x <= splat(0), splat(0), x); /* NaN stays */
  if (kind == ADS_SIGMOID) return sigmoid(x);
  return 2.0f * sigmoid(2.0f * x) - 1.0f;
}

INLINE vf block_act_slope(vf x, int64_t kind) {
  if (kind == ADS_RELU) return where(x <= splat(0), splat(0), splat(1));
  vf v = block_act(x, kind);
  return kind == ADS_SIGMOID ? v * (1.0f - v) : 1.0f - v * v;
}

INLINE void measure(const block_task *q, const float *x, float *moments) {
  norm_measure(x, q->channels, q->epsilon, moments);
}

INLINE void normalise(const block_task *q, const float *x, float *out, const float *moments) {
  norm_apply(x, q->gain, q->offset, q->channels, moments, out);
}

INLINE void normalise_back(const block_task *q, const float *x, const float *moments,
                           const float *g, const float *add, float *out) {
  norm_back(x, q->gain, q->channels, moments, g, add, out);
}

INLINE fft_plan block_plan(const block_task *q) {
  return make_plan(1, q->length, q->channels, q->n1, q->n2, q->twist, q->turn, q->phase);
}

/* One example's sequence through the convolution or its adjoint, first normalised where `moments` is
 * not NULL; `to` may be `from`. */
static void block_convolve(const block_task *q, const float *from, const float *moments, float *to,
                           int64_t adjoint, float *scratch) {
  int64_t groups = (q->channels + VW - 1) / VW, d = q->channels;
  if (q->n1 > 0) {
    fft_task task = {.plan = block_plan(q), .u = from, .spectrum = q->kernel, .out = to,
                     .conjugate = adjoint, .norm = {moments, q->gain, q->offset}};
    for (int64_t group = 0; group < groups; group++) convolve_item(&task, group, scratch);
    return;
  }
  if (moments != NULL) {
    for (int64_t t = 0; t < q->length; t++)
      normalise(q, from + t * d, to + t * d, moments + 2 * t);
    from = to;
  }
  direct_task task = {from, q->kernel, to, 1, q->length, d, groups, adjoint};
  for (int64_t group = 0; group < groups; group++) direct_item(&task, group, scratch);
}

static size_t convolve_scratch(const block_task *q) {
  if (q->n1 == 0) return (size_t)(2 * (q->length + TILE) + TILE) * VW;
  fft_plan plan = block_plan(q);
  return fft_scratch(&plan);
}

/* Places of one example in an optional array. */
INLINE float *example(float *array, int64_t b, int64_t size) {
  return array == NULL ? NULL : array + b * size;
}

/* y = x w for some tokens. */
static void block_multiply(const block_task *q, const float *x, const float *w, float *y,
                           int64_t rows) {
  int64_t d = q->channels;
  multiply(&(product){.a = x, .b = w, .c = y, .a_row = d, .a_step = 1, .b_row = d, .c_row = d,
                      .rows = rows, .depth = d, .columns = d});
}

/* Tokens of one example: so many, from y (the convolution's) to what is added to the residual. */
static float *block_forward_rows(const block_task *q, const float *y, float *scaled,
                                 float *shifted, float *mixed, int64_t rows, float *one,
                                 float *two) {
  int64_t d = q->channels, size = rows * d;
  float *value = (float *)y;
  if (q->ads != ADS_NONE) {
    block_multiply(q, y, q->scale, scaled, rows);
    if (q->shift != NULL) block_multiply(q, y, q->shift, shifted, rows);
    for (int64_t k = 0, n = 0; k < size; k += VW, n = n + VW < d ? n + VW : 0) {
      vf m = load(scaled + k);
      if (q->scale_bias != NULL) m += load(q->scale_bias + n);
      store(scaled + k, m);
      vf s = block_act(m, q->ads) * load(y + k);
      if (q->shift != NULL) {
        vf v = load(shifted + k);
        if (q->shift_bias != NULL) v += load(q->shift_bias + n);
        store(shifted + k, v);
        s += block_act(v, q->ads);
      }
      store(one + k, s);
    }
    value = one;
  }
  if (q->gelu) {
    for (int64_t k = 0; k < size; k += VW) store(one + k, gelu(load(value + k)));
    value = one;
  }
  if (!q->mixing) return value;
  block_multiply(q, value, q->mix, mixed, rows);
  for (int64_t k = 0, n = 0; k < size; k += VW, n = n + VW < d ? n + VW : 0) {
    vf z = load(mixed + k) + load(q->mix_bias + n);
    store(mixed + k, z);
    if (q->mixed_gelu) store(two + k, gelu(z));
  }
  return q->mixed_gelu ? two : mixed;
}

static void block_item(const void *task, int64_t b, float *scratch) {
  const block_task *q = task;
  int64_t L = q->length, d = q->channels, all = L * d, rows_size = BLOCK_ROWS * d;
  const float *h = q->h + b * all;
  float *out = q->out + b * all, *y = example(q->y, b, all), *places = scratch;
  float *moments = example(q->moments, b, 2 * L);
  if (moments == NULL) moments = places, places += (2 * L + VW - 1) / VW * VW;
  if (y == NULL) y = places, places += all;
  float *spare[5];
  for (int k = 0; k < 5; k++) spare[k] = places, places += rows_size;
  for (int64_t t = 0; q->norm == NORM_FIRST && t < L; t++) measure(q, h + t * d, moments + 2 * t);
  block_convolve(q, h, q->norm == NORM_FIRST ? moments : NULL, y, 0, places);
  for (int64_t t = 0; t < L; t += BLOCK_ROWS) {
    int64_t rows = smaller(BLOCK_ROWS, L - t), at = b * all + t * d;
    float *scaled = q->scaled == NULL ? spare[0] : q->scaled + at;
    float *shifted = q->shifted == NULL ? spare[1] : q->shifted + at;
    float *mixed = q->mixed == NULL ? spare[2] : q->mixed + at;
    float *sum = q->sum == NULL ? spare[0] : q->sum + at;
    float *value = block_forward_rows(q, y + t * d, scaled, shifted, mixed, rows, spare[3],
                                      spare[4]);
    float *to = q->norm == NORM_LAST ? sum : out + t * d;
    for (int64_t k = 0; k < rows * d; k += VW) {
      vf v = load(value + k);
      if (q->residual) v += load(h + t * d + k);
      store(to + k, v);
    }
    if (q->norm != NORM_LAST) continue;
    for (int64_t r = 0; r < rows; r++) {
      measure(q, sum + r * d, moments + 2 * (t + r));
      normalise(q, sum + r * d, out + (t + r) * d, moments + 2 * (t + r));
    }
  }
}

/* From the gradient of what is added to the residual to that of y, for some tokens at `at`. */
static void block_back_rows(const block_task *q, const float *g, float *dy, int64_t at,
                            int64_t rows, float *one, float *two) {
  int64_t d = q->channels, size = rows * d;
  const float *slope = g;
  if (q->mixing) {
    if (q->mixed_gelu) {
      for (int64_t k = 0; k < size; k += VW)
        store(one + k, load(g + k) * gelu_slope(load(q->mixed + at + k)));
      slope = one;
    }
    block_multiply(q, slope, q->mix, two, rows);
    slope = two;
  }
  const float *y = q->y + at;
  if (q->ads == ADS_NONE) {
    for (int64_t k = 0; k < size; k += VW) {
      vf v = load(slope + k);
      if (q->gelu) v *= gelu_slope(load(y + k));
      store(dy + k, v);
    }
    return;
  }
  float *by_scale = one, *by_shift = one + size; /* `one` has room for both */
  for (int64_t k = 0; k < size; k += VW) {
    vf v = load(slope + k), m = load(q->scaled + at + k), act = block_act(m, q->ads);
    vf n = {0}, value = load(y + k);
    if (q->shift != NULL) n = load(q->shifted + at + k);
    if (q->gelu) {
      vf s = act * value;
      if (q->shift != NULL) s += block_act(n, q->ads);
      v *= gelu_slope(s);
    }
    store(two + k, v * act);
    store(by_scale + k, v * value * block_act_slope(m, q->ads));
    if (q->shift != NULL) store(by_shift + k, v * block_act_slope(n, q->ads));
  }
  block_multiply(q, by_scale, q->scale, dy, rows);
  for (int64_t k = 0; k < size; k += VW) store(dy + k, load(dy + k) + load(two + k));
  if (q->shift == NULL) return;
  block_multiply(q, by_shift, q->shift, two, rows);
  for (int64_t k = 0; k < size; k += VW) store(dy + k, load(dy + k) + load(two + k));
}

static void block_back_item(const void *task, int64_t b, float *scratch) {
  const block_task *q = task;
  int64_t L = q->length, d = q->channels, all = L * d, rows_size = BLOCK_ROWS * d;
  const float *g = q->g + b * all, *moments = example(q->moments, b, 2 * L);
  float *out = q->out + b * all, *dy = scratch, *one = dy + all, *two = one + 2 * rows_size;
  float *slope = two + rows_size, *places = slope + rows_size;
  for (int64_t t = 0; t < L; t += BLOCK_ROWS) {
    int64_t rows = smaller(BLOCK_ROWS, L - t), at = b * all + t * d;
    const float *from = g + t * d;
    if (q->norm == NORM_LAST) {
      for (int64_t r = 0; r < rows; r++)
        normalise_back(q, q->sum + at + r * d, moments + 2 * (t + r), from + r * d, NULL,
                       slope + r * d);
      from = slope;
    }
    if (q->residual) memcpy(out + t * d, from, (size_t)(rows * d) * sizeof(float));
    block_back_rows(q, from, dy + t * d, at, rows, one, two);
  }
  block_convolve(q, dy, NULL, dy, 1, places);
  for (int64_t t = 0; t < L; t++) {
    float *to = out + t * d;
    const float *add = q->residual ? to : NULL;
    if (q->norm == NORM_FIRST) {
      normalise_back(q, q->h + b * all + t * d, moments + 2 * t, dy + t * d, add, to);
      continue;
    }
    for (int64_t n = 0; n < d; n += VW) {
      vf dx = load(dy + t * d + n);
      if (add != NULL) dx += load(add + n);
      store(to + n, dx);
    }
  }
}

static block_task make_block(const int64_t *sizes, const float *const *inputs,
                             float *const *outputs, float epsilon) {
  block_task q = {.epsilon = epsilon};
  q.batch = sizes[0], q.length = sizes[1], q.channels = sizes[2], q.n1 = sizes[3];
  q.n2 = sizes[4], q.norm = sizes[5], q.residual = sizes[6], q.ads = sizes[7];
  q.gelu = sizes[8], q.mixing = sizes[9], q.mixed_gelu = sizes[10];
  q.kernel = inputs[0], q.twist = inputs[1], q.turn = inputs[2];
  q.phase = inputs[3], q.scale = inputs[4], q.scale_bias = inputs[5], q.shift = inputs[6];
  q.shift_bias = inputs[7], q.mix = inputs[8], q.mix_bias = inputs[9], q.gain = inputs[10];
  q.offset = inputs[11], q.h = inputs[12], q.g = inputs[13];
  q.out = outputs[0], q.y = outputs[1], q.scaled = outputs[2], q.shifted = outputs[3];
  q.mixed = outputs[4], q.sum = outputs[5], q.moments = outputs[6];
  return q;
}

/* The arrays are in the order of block_task: 11 sizes and choices, 14 inputs, 7 outputs. */
EXPORT int block_forward(const int64_t *sizes, const float *const *inputs, float *const *outputs,
                         float epsilon, int64_t threads) {
  block_task task = make_block(sizes, inputs, outputs, epsilon);
  size_t scratch = (size_t)(task.channels * (task.length + 5 * BLOCK_ROWS) + 2 * task.length + VW);
  return for_each(task.batch, threads, scratch + convolve_scratch(&task), block_item, &task);
}

/* As block_forward, with transposed matrices and with g; `out` is the gradient of h. */
EXPORT int block_backward(const int64_t *sizes, const float *const *inputs, float *const *outputs,
                          float epsilon, int64_t threads) {
  block_task task = make_block(sizes, inputs, outputs, epsilon);
  size_t scratch = (size_t)(task.channels * (task.length + 4 * BLOCK_ROWS));
  return for_each(task.batch, threads, scratch + convolve_scratch(&task), block_back_item, &task);
}
