/* Causal convolution of every channel with a few taps of its own, then SiLU.
 *
 * p[t] = bias + sum over j of weight[j] x[t - taps + 1 + j], y[t] = p[t] sigmoid(p[t]). An item is
 * SHORT_STEPS steps of an example, all channels, read and written row by row. Backward computes p
 * again, and the last taps - 1 slopes that belong to the next item as well.
 */
#include "elementary.h"

#define SHORT_STEPS 128
#define SHORT_TAPS 16 /* the most */

typedef struct {
  const float *x, *weight, *bias, *dy;
  float *y, *dx, *parts;
  int64_t length, channels, taps, row, segments;
} short_task;

/* The memory of an item: rows of `wide` floats, taps of them in each of the first and the last. */
typedef struct {
  float *weight, *slope, *bias, *zero;
  int64_t wide, first, last;
  const float *x[SHORT_TAPS];
} short_memory;

static size_t short_floats(int64_t channels, int64_t taps) {
  return (size_t)((channels + VW - 1) / VW * VW * (2 * taps + 2));
}

static void short_begin(const short_task *q, int64_t item, float *scratch, short_memory *m) {
  int64_t H = q->channels, taps = q->taps;
  m->wide = (H + VW - 1) / VW * VW;
  m->weight = scratch, m->slope = scratch + taps * m->wide;
  m->bias = m->slope + taps * m->wide, m->zero = m->bias + m->wide;
  memset(scratch, 0, short_floats(H, taps) * sizeof(float));
  for (int64_t c = 0; c < H; c++) {
    for (int64_t j = 0; j < taps; j++) m->weight[j * m->wide + c] = q->weight[c * taps + j];
    m->bias[c] = q->bias[c];
  }
  m->first = item % q->segments * SHORT_STEPS;
  m->last = smaller(m->first + SHORT_STEPS, q->length);
}

/* The rows that the taps see at step t, zeros before the first. */
INLINE void short_rows(const short_task *q, short_memory *m, const float *x, int64_t t,
                       const int64_t taps) {
  for (int64_t j = 0; j < taps; j++) {
    int64_t at = t - taps + 1 + j;
    m->x[j] = at < 0 ? m->zero : x + at * q->row;
  }
}

INLINE vf short_sum(const short_memory *m, int64_t c, int64_t n, const int64_t taps) {
  vf p = load(m->bias + c);
  UNROLL for (int64_t j = 0; j < taps; j++) p += load(m->weight + j * m->wide + c) *
                                                 load_some(m->x[j] + c, n);
  return p;
}

INLINE void short_forward(const short_task *q, int64_t item, float *scratch, const int64_t taps) {
  short_memory m;
  int64_t H = q->channels, b = item / q->segments;
  short_begin(q, item, scratch, &m);
  const float *x = q->x + b * q->length * q->row;
  for (int64_t t = m.first; t < m.last; t++) {
    short_rows(q, &m, x, t, taps);
    float *y = q->y + (b * q->length + t) * H;
    for (int64_t c = 0; c < H; c += VW) {
      vf p = short_sum(&m, c, H - c, taps);
      store_some(y + c, p * sigmoid(p), H - c);
    }
  }
}

INLINE void short_backward(const short_task *q, int64_t item, float *scratch, const int64_t taps) {
  short_memory m;
  int64_t H = q->channels, L = q->length, b = item / q->segments;
  short_begin(q, item, scratch, &m);
  const float *x = q->x + b * L * q->row;
  float *part = q->parts ? q->parts + item * (taps + 1) * H : NULL;
  if (part) memset(part, 0, (size_t)((taps + 1) * H) * sizeof(float));
  for (int64_t t = m.first; t < m.last + taps - 1; t++) {
    float *slopes[SHORT_TAPS]; /* of p, at t, t - 1, ... */
    for (int64_t j = 0; j < taps; j++) slopes[j] = m.slope + (t + taps - j) % taps * m.wide;
    if (t < L) short_rows(q, &m, x, t, taps);
    for (int64_t c = 0; c < H; c += VW) {
      vf slope = {0};
      if (t < L) {
        vf p = short_sum(&m, c, H - c, taps);
        slope = load_some(q->dy + (b * L + t) * H + c, H - c) * silu_slope(p, sigmoid(p));
      }
      store(slopes[0] + c, slope);
      if (part && t < m.last) {
        for (int64_t j = 0; j < taps; j++) {
          vf sum = load_some(part + j * H + c, H - c) + slope * load_some(m.x[j] + c, H - c);
          store_some(part + j * H + c, sum, H - c);
        }
        store_some(part + taps * H + c, load_some(part + taps * H + c, H - c) + slope, H - c);
      }
      if (t - taps + 1 < m.first) continue;
      vf dx = {0};
      UNROLL for (int64_t j = 0; j < taps; j++) dx += load(m.weight + j * m.wide + c) *
                                                      load(slopes[j] + c);
      store_some(q->dx + (b * L + t - taps + 1) * H + c, dx, H - c);
    }
  }
}

static void short_item(const void *task, int64_t item, float *scratch) {
  const short_task *q = task;
  if (q->taps == 4)
    short_forward(q, item, scratch, 4);
  else
    short_forward(q, item, scratch, q->taps);
}

static void short_back_item(const void *task, int64_t item, float *scratch) {
  const short_task *q = task;
  if (q->taps == 4)
    short_backward(q, item, scratch, 4);
  else
    short_backward(q, item, scratch, q->taps);
}

/* x may be columns of wider rows, `row` floats apart; weight is (channels, taps), taps <= 16. */
EXPORT int short_convolution(const float *x, const float *weight, const float *bias, float *y,
                             int64_t batch, int64_t length, int64_t channels, int64_t taps,
                             int64_t row, int64_t threads) {
  short_task task = {.x = x, .weight = weight, .bias = bias, .y = y};
  task.length = length, task.channels = channels, task.taps = taps, task.row = row;
  task.segments = (length + SHORT_STEPS - 1) / SHORT_STEPS;
  size_t floats = short_floats(channels, taps);
  return for_each(batch * task.segments, threads, floats, short_item, &task);
}

/* parts (batch * segments, taps + 1, channels), to be summed over the first axis, are the gradients
 * of the weights and in the last row of the bias; NULL if they are not wanted. */
EXPORT int short_convolution_back(const float *x, const float *weight, const float *bias,
                                  const float *dy, float *dx, float *parts, int64_t batch,
                                  int64_t length, int64_t channels, int64_t taps, int64_t row,
                                  int64_t threads) {
  short_task task = {.x = x, .weight = weight, .bias = bias, .dy = dy, .dx = dx, .parts = parts};
  task.length = length, task.channels = channels, task.taps = taps, task.row = row;
  task.segments = (length + SHORT_STEPS - 1) / SHORT_STEPS;
  size_t floats = short_floats(channels, taps);
  return for_each(batch * task.segments, threads, floats, short_back_item, &task);
}
