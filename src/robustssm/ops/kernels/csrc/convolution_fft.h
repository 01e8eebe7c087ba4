/* Causal convolution by Fourier transforms of `size` = N1 N2 >= length complex points per channel.
 *
 * A product of polynomials modulo z^size = i puts what wraps around into the imaginary part: with
 * w = exp(-i pi / (2 size)) the transform of u[t] w^t times that of k[t] w^t is the transform of
 * (y[t] + i wrapped[t]) w^t for real u and k. So nothing is padded to twice the length, and no
 * symmetry of spectra is needed; conjugate spectra give the adjoint.
 *
 * Transforms take the four-step form, t = N2 n1 + n2 and frequency = k1 + N1 k2: columns of N1
 * points, a turn by exp(-2 pi i n2 k1 / size), rows of N2 points. Spectra stay in the order in which
 * rows leave them, frequency k1 + N1 k2 at k1 N2 + k2: (groups, size, 2, VW), scaled by 1 / size.
 */
#include "fft.h"

typedef struct {
  int64_t batch, length, channels, groups, n1, n2, pitch;
  const float *twist, *turn; /* cos and sin: (size, 2) of w^t, (n1, n2, 2) of the turns */
  const float *phase;        /* NULL, or of transforms along time: convolution_long.h */
} fft_plan;

/* Rows are one vector longer than needed: at multiples of 4 KiB they would share cache lines. */
#define PITCH(n2) ((n2) + 1)

#define LOAD_COLUMN(n) column_in(plan, from, n2, n)
#define STORE_COLUMN(k, value)                                                                  \
  T[(int64_t)(k) * pitch + n2] =                                                                \
      vc_turn(value, turn[2 * ((k) * N2 + n2)], turn[2 * ((k) * N2 + n2) + 1], 0)

INLINE vc column_in(const fft_plan *plan, const vf *from, int64_t n2, int64_t n) {
  int64_t t = plan->n2 * n + n2;
  if (t >= plan->length) return (vc){(vf){0}, (vf){0}};
  vf v = from[t];
  return (vc){v * plan->twist[2 * t], v * plan->twist[2 * t + 1]};
}

#define LOAD_BACK(k) T[(int64_t)(k) * pitch + n2]
#define STORE_BACK(n, value) column_out(plan, to, n2, n, value)

INLINE void column_out(const fft_plan *plan, vf *to, int64_t n2, int64_t n, vc value) {
  int64_t t = plan->n2 * n + n2;
  if (t >= plan->length) return;
  to[t] = value.r * plan->twist[2 * t] + value.i * plan->twist[2 * t + 1];
}

#define LOAD_ROW(n) row[n]
#define STORE_ROW(k, value) row[k] = (value)
#define STORE_TURNED(n, value)                                                                  \
  row[n] = vc_turn(value, row_turn[2 * (n)], row_turn[2 * (n) + 1], 1)

/* Calls CASE(N, A, B) for the N = A B that equals `points`. */
#define FOR_POINTS(points, CASE)                                                                \
  switch (points) {                                                                             \
    case 16: CASE(4, 4); break;                                                                 \
    case 32: CASE(8, 4); break;                                                                 \
    case 64: CASE(8, 8); break;                                                                 \
    default: CASE(8, 16); break;                                                                \
  }

static void columns_forward(const fft_plan *plan, const vf *from, vc *T) {
  const int64_t N2 = plan->n2, pitch = plan->pitch;
  const float *turn = plan->turn;
#define CASE(A, B)                                                                              \
  for (int64_t n2 = 0; n2 < N2; n2++) FFT(A, B, 0, LOAD_COLUMN, STORE_COLUMN)
  FOR_POINTS(plan->n1, CASE)
#undef CASE
}

static void columns_inverse(const fft_plan *plan, const vc *T, vf *to) {
  const int64_t N2 = plan->n2, pitch = plan->pitch;
#define CASE(A, B)                                                                              \
  for (int64_t n2 = 0; n2 < N2; n2++) FFT(A, B, 1, LOAD_BACK, STORE_BACK)
  FOR_POINTS(plan->n1, CASE)
#undef CASE
}

static void row_forward(const fft_plan *plan, vc *row) {
#define CASE(A, B) FFT(A, B, 0, LOAD_ROW, STORE_ROW)
  FOR_POINTS(plan->n2, CASE)
#undef CASE
}

static void row_inverse(const fft_plan *plan, vc *row, int64_t k1) {
  const float *row_turn = plan->turn + 2 * k1 * plan->n2;
#define CASE(A, B) FFT(A, B, 1, LOAD_ROW, STORE_TURNED)
  FOR_POINTS(plan->n2, CASE)
#undef CASE
}

/* row times a spectrum, or times its conjugate. */
INLINE void times_spectrum(vc *row, const float *spectrum, int64_t points, int64_t conjugate) {
  for (int64_t k = 0; k < points; k++, spectrum += 2 * VW) {
    vf i = load(spectrum + VW);
    row[k] = vc_mul(row[k], load(spectrum), conjugate ? -i : i);
  }
}

/* (x - mean) rate gain + offset with mean and rate of every token, where `moments` is not NULL. */
typedef struct {
  const float *moments, *gain, *offset;
} norming;

INLINE norming norm_of(const norming *all, int64_t example, int64_t channel) {
  if (all->moments == NULL) return *all;
  return (norming){all->moments + 2 * example, all->gain + channel, all->offset + channel};
}

INLINE vf normed(const norming *norm, vf x, int64_t t, vf gain, vf offset) {
  return (x - norm->moments[2 * t]) * norm->moments[2 * t + 1] * gain + offset;
}

typedef struct {
  fft_plan plan;
  const float *u, *g, *spectrum;
  float *out, *dk;
  int64_t conjugate, parts;
  norming norm; /* of what a convolution reads */
} fft_task;

INLINE int64_t lanes(const fft_plan *plan, int64_t group) {
  return smaller(VW, plan->channels - group * VW);
}

/* Channels lie side by side while they are transformed: columns step through a sequence by N2 tokens,
 * and between all channels of every token such steps are slow. Measured on 64 channels: 3.2 to 2.2 ns
 * per entry at length 16,384, and 1.6 to 1.2 at length 1,024, batch 32. */
INLINE void read_sequence(const fft_plan *plan, const float *from, vf *to, int64_t width,
                          const norming *norm) {
  gather(from, to, plan->length, plan->length, plan->channels, width, 0);
  if (norm->moments == NULL) return;
  vf gain = load_some(norm->gain, width), offset = load_some(norm->offset, width);
  for (int64_t t = 0; t < plan->length; t++) to[t] = normed(norm, to[t], t, gain, offset);
}

INLINE void write_sequence(const fft_plan *plan, const vf *from, float *to, int64_t width) {
  for (int64_t t = 0; t < plan->length; t++) store_some(to + t * plan->channels, from[t], width);
}

#include "convolution_long.h"

static void convolve_item(const void *task, int64_t item, float *scratch) {
  const fft_task *q = task;
  const fft_plan *plan = &q->plan;
  /* All examples of a group one after the other: its spectrum stays in the cache. */
  int64_t group = item / plan->batch, b = item % plan->batch, width = lanes(plan, group);
  if (plan->phase != NULL) {
    convolve_long_item(q, group, b, scratch);
    return;
  }
  int64_t offset = b * plan->length * plan->channels + group * VW;
  const float *spectrum = q->spectrum + group * plan->n1 * plan->n2 * 2 * VW;
  vc *T = (vc *)scratch;
  vf *sequence = (vf *)(T + plan->n1 * plan->pitch);
  norming norm = norm_of(&q->norm, b * plan->length, group * VW);
  read_sequence(plan, q->u + offset, sequence, width, &norm);
  columns_forward(plan, sequence, T);
  for (int64_t k1 = 0; k1 < plan->n1; k1++) {
    vc *row = T + k1 * plan->pitch;
    row_forward(plan, row);
    times_spectrum(row, spectrum + k1 * plan->n2 * 2 * VW, plan->n2, q->conjugate);
    row_inverse(plan, row, k1);
  }
  columns_inverse(plan, T, sequence);
  write_sequence(plan, sequence, q->out + offset, width);
}

static void spectrum_item(const void *task, int64_t group, float *scratch) {
  const fft_task *q = task;
  const fft_plan *plan = &q->plan;
  if (plan->phase != NULL) {
    spectrum_long_item(q, group, scratch);
    return;
  }
  vc *T = (vc *)scratch;
  float *out = q->out + group * plan->n1 * plan->n2 * 2 * VW;
  vf scale = splat(1.0f / (float)(plan->n1 * plan->n2));
  vf *sequence = (vf *)(T + plan->n1 * plan->pitch);
  read_sequence(plan, q->u + group * VW, sequence, lanes(plan, group), &q->norm);
  columns_forward(plan, sequence, T);
  for (int64_t k1 = 0; k1 < plan->n1; k1++) {
    vc *row = T + k1 * plan->pitch;
    row_forward(plan, row);
    for (int64_t k2 = 0; k2 < plan->n2; k2++, out += 2 * VW) {
      store(out, row[k2].r * scale);
      store(out + VW, row[k2].i * scale);
    }
  }
}

/* du for some examples of a group, and what they add to dk: one transform of g serves both. */
static void gradients_item(const void *task, int64_t item, float *scratch) {
  const fft_task *q = task;
  const fft_plan *plan = &q->plan;
  int64_t group = item / q->parts, part = item % q->parts, width = lanes(plan, group);
  if (plan->phase != NULL) {
    gradients_long_item(q, group, part, scratch);
    return;
  }
  int64_t size = plan->n1 * plan->pitch, all = plan->length * plan->channels;
  vc *G = (vc *)scratch, *U = G + size, *sum = U + size;
  vf *sequence = (vf *)(sum + size);
  const float *spectrum = q->spectrum + group * plan->n1 * plan->n2 * 2 * VW;
  for (int64_t k = 0; k < size; k++) sum[k] = (vc){(vf){0}, (vf){0}};
  int64_t first = part * plan->batch / q->parts, last = (part + 1) * plan->batch / q->parts;
  for (int64_t b = first; b < last; b++) {
    int64_t offset = b * all + group * VW;
    read_sequence(plan, q->g + offset, sequence, width, &q->norm);
    columns_forward(plan, sequence, G);
    read_sequence(plan, q->u + offset, sequence, width, &q->norm);
    columns_forward(plan, sequence, U);
    for (int64_t k1 = 0; k1 < plan->n1; k1++) {
      int64_t at = k1 * plan->pitch;
      row_forward(plan, G + at);
      row_forward(plan, U + at);
      for (int64_t k = at; k < at + plan->n2; k++)
        sum[k] = vc_add(sum[k], vc_mul(G[k], U[k].r, -U[k].i));
      if (q->out == NULL) continue;
      times_spectrum(G + at, spectrum + k1 * plan->n2 * 2 * VW, plan->n2, 1);
      row_inverse(plan, G + at, k1);
    }
    if (q->out == NULL) continue;
    columns_inverse(plan, G, sequence);
    write_sequence(plan, sequence, q->out + offset, width);
  }
  vf scale = splat(1.0f / (float)(plan->n1 * plan->n2));
  for (int64_t k1 = 0; k1 < plan->n1; k1++) {
    vc *row = sum + k1 * plan->pitch;
    for (int64_t k = 0; k < plan->n2; k++) row[k] = (vc){row[k].r * scale, row[k].i * scale};
    row_inverse(plan, row, k1);
  }
  columns_inverse(plan, sum, sequence);
  write_sequence(plan, sequence, q->dk + part * all + group * VW, width);
}

INLINE fft_plan make_plan(int64_t batch, int64_t length, int64_t channels, int64_t n1, int64_t n2,
                          const float *twist, const float *turn, const float *phase) {
  return (fft_plan){batch, length, channels, (channels + VW - 1) / VW, n1, n2, PITCH(n2),
                    twist, turn, phase};
}

/* Floats for a convolution. */
INLINE size_t fft_scratch(const fft_plan *plan) {
  if (plan->phase != NULL) return long_scratch(plan, 0);
  return (size_t)(2 * plan->n1 * plan->pitch + plan->length) * VW;
}

/* out = u * k (or its adjoint applied to u), (batch, length, channels); k as its spectrum. */
EXPORT int causal_fft(const float *u, const float *spectrum, const float *twist, const float *turn,
                      const float *phase, float *out, int64_t batch, int64_t length, int64_t channels,
                      int64_t n1, int64_t n2, int64_t conjugate, int64_t threads) {
  fft_task task = {.plan = make_plan(batch, length, channels, n1, n2, twist, turn, phase)};
  task.u = u, task.spectrum = spectrum, task.out = out, task.conjugate = conjugate;
  size_t scratch = fft_scratch(&task.plan);
  return for_each(batch * task.plan.groups, threads, scratch, convolve_item, &task);
}

/* The spectrum, (groups, n1 n2, 2, VW), of kernels (length, channels); with `phase` it is
 * (channels, n1 n2, 2, VW), of kernels (channels, length). */
EXPORT int causal_fft_spectrum(const float *k, const float *twist, const float *turn,
                               const float *phase, float *out, int64_t length, int64_t channels,
                               int64_t n1, int64_t n2, int64_t threads) {
  fft_task task = {.plan = make_plan(1, length, channels, n1, n2, twist, turn, phase)};
  task.u = k, task.out = out;
  size_t scratch = fft_scratch(&task.plan);
  int64_t items = phase == NULL ? task.plan.groups : channels;
  return for_each(items, threads, scratch, spectrum_item, &task);
}

/* du, unless NULL, and dk as (parts, length, channels), whose sum over parts is the gradient; with
 * `phase` it is (parts, channels, length). */
EXPORT int causal_fft_gradients(const float *u, const float *g, const float *spectrum,
                                const float *twist, const float *turn, const float *phase,
                                float *du, float *dk, int64_t batch, int64_t length,
                                int64_t channels, int64_t n1, int64_t n2, int64_t parts,
                                int64_t threads) {
  fft_task task = {.plan = make_plan(batch, length, channels, n1, n2, twist, turn, phase)};
  task.u = u, task.g = g, task.spectrum = spectrum, task.out = du, task.dk = dk;
  task.parts = parts;
  size_t scratch = (size_t)(6 * n1 * task.plan.pitch + length) * VW;
  if (phase != NULL) scratch = long_scratch(&task.plan, (batch + parts - 1) / parts);
  return for_each(parts * task.plan.groups, threads, scratch, gradients_item, &task);
}
