/* The same transforms for long sequences, one channel at a time: vectors hold VW tokens in a row.
 *
 * Beside each other, the transforms of VW channels of 16,384 tokens take 2 MB and their spectra as
 * much: more than a core's own cache, several times over. One after the other they take 128 KB each.
 * With t = VW m + j the points of one j lie in one lane: transforms over m as before (size / VW points
 * n1 n2, frequency f = k1 + n1 k2), a turn by exp(-2 pi i j (f + 1/4) / size), the quarter being what
 * is left of the twist, and VW points across the lanes: transposed, VW frequencies f at a time, these
 * are transforms of vectors again. Spectra stay in that order: (channels, size / VW, 2, VW).
 */
#if VW == 16
#define FFT_ACROSS fft16
#elif VW == 8
#define FFT_ACROSS fft8
#else
#define FFT_ACROSS fft4
#endif

INLINE void transpose_complex(vc *x) {
  vf part[VW];
  UNROLL for (int k = 0; k < VW; k++) part[k] = x[k].r;
  transpose(part);
  UNROLL for (int k = 0; k < VW; k++) x[k].r = part[k];
  UNROLL for (int k = 0; k < VW; k++) part[k] = x[k].i;
  transpose(part);
  UNROLL for (int k = 0; k < VW; k++) x[k].i = part[k];
}

/* VW vectors of a row, each one frequency of all lanes, to VW vectors of the spectrum. */
INLINE void across_forward(vc *x, const float *phase) {
  UNROLL for (int k = 0; k < VW; k++)
    x[k] = vc_mul(x[k], load(phase + 2 * k * VW), load(phase + (2 * k + 1) * VW));
  transpose_complex(x);
  FFT_ACROSS(x, 0);
}

INLINE void across_inverse(vc *x, const float *phase) {
  FFT_ACROSS(x, 1);
  transpose_complex(x);
  UNROLL for (int k = 0; k < VW; k++)
    x[k] = vc_mul(x[k], load(phase + 2 * k * VW), -load(phase + (2 * k + 1) * VW));
}

/* The plan of one channel's transforms over m. */
INLINE fft_plan along(const fft_plan *plan) {
  fft_plan inner = *plan;
  inner.length = (plan->length + VW - 1) / VW;
  return inner;
}

/* Floats of a transform. */
INLINE int64_t place_of(const fft_plan *plan) { return 2 * plan->n1 * plan->pitch * VW; }

/* Vectors between the sequences of two channels. */
INLINE int64_t apart(const fft_plan *plan) { return (plan->length + VW - 1) / VW + 1; }

/* The channels of a group, each a sequence of its own; zeros behind their ends. Every row of VW
 * channels lies in another line of the cache, more of them than the processor itself looks ahead. */
static void read_along(const fft_plan *plan, const float *from, vf *to, int64_t width,
                       const norming *norm) {
  int64_t row = plan->channels, between = apart(plan);
  vf gain = {0}, offset = {0};
  if (norm->moments != NULL)
    gain = load_some(norm->gain, width), offset = load_some(norm->offset, width);
  for (int64_t t = 0; t < plan->length; t += VW, from += VW * row, to++) {
    vf x[VW];
    if (t + VW <= plan->length && width == VW) {
      UNROLL for (int j = 0; j < VW; j++) {
        x[j] = load(from + j * row);
        __builtin_prefetch(from + (j + 2 * VW) * row);
      }
    } else {
      for (int64_t j = 0; j < VW; j++)
        x[j] = t + j < plan->length ? load_some(from + j * row, width) : (vf){0};
    }
    for (int64_t j = 0; norm->moments != NULL && j < smaller(VW, plan->length - t); j++)
      x[j] = normed(norm, x[j], t + j, gain, offset);
    transpose(x);
    UNROLL for (int c = 0; c < VW; c++) to[c * between] = x[c];
  }
}

static void write_along(const fft_plan *plan, const vf *from, float *to, int64_t width) {
  int64_t row = plan->channels, between = apart(plan);
  for (int64_t t = 0; t < plan->length; t += VW, from++, to += VW * row) {
    vf x[VW];
    UNROLL for (int c = 0; c < VW; c++) x[c] = from[c * between];
    transpose(x);
    if (t + VW <= plan->length && width == VW) {
      UNROLL for (int j = 0; j < VW; j++) {
        store(to + j * row, x[j]);
        __builtin_prefetch(to + (j + 2 * VW) * row, 1);
      }
    } else {
      for (int64_t j = 0; j < smaller(VW, plan->length - t); j++)
        store_some(to + j * row, x[j], width);
    }
  }
}

/* Spectra come from afar, once for every example, and a block of VW frequencies is soon over. */
INLINE void expect(const float *spectrum) {
  UNROLL for (int k = 0; k < 2 * VW; k++) __builtin_prefetch(spectrum + (4 * VW + k) * VW);
}

/* A channel's sequence to its spectrum, times `spectrum`, and back. */
static void convolve_along(const fft_plan *inner, vf *sequence, const float *spectrum,
                           int64_t conjugate, vc *T) {
  columns_forward(inner, sequence, T);
  for (int64_t k1 = 0; k1 < inner->n1; k1++) {
    vc *row = T + k1 * inner->pitch;
    row_forward(inner, row);
    for (int64_t k2 = 0; k2 < inner->n2; k2 += VW) {
      int64_t at = 2 * (k1 * inner->n2 + k2) * VW;
      expect(spectrum + at);
      across_forward(row + k2, inner->phase + at);
      times_spectrum(row + k2, spectrum + at, VW, conjugate);
      across_inverse(row + k2, inner->phase + at);
    }
    row_inverse(inner, row, k1);
  }
  columns_inverse(inner, T, sequence);
}

static void convolve_long_item(const fft_task *q, int64_t group, int64_t b, float *scratch) {
  const fft_plan *plan = &q->plan, inner = along(plan);
  int64_t width = lanes(plan, group), size = plan->n1 * plan->n2 * 2 * VW;
  int64_t offset = b * plan->length * plan->channels + group * VW;
  vf *sequences = (vf *)(scratch + place_of(plan));
  norming norm = norm_of(&q->norm, b * plan->length, group * VW);
  read_along(plan, q->u + offset, sequences, width, &norm);
  for (int64_t c = 0; c < width; c++)
    convolve_along(&inner, sequences + c * apart(plan), q->spectrum + (group * VW + c) * size,
                   q->conjugate, (vc *)scratch);
  write_along(plan, sequences, q->out + offset, width);
}

/* Kernels lie as (channels, length) here, and so do their gradients. */
static void spectrum_long_item(const fft_task *q, int64_t channel, float *scratch) {
  const fft_plan inner = along(&q->plan), *plan = &inner;
  vc *T = (vc *)scratch;
  vf *sequence = (vf *)(scratch + place_of(plan));
  float *out = q->out + channel * plan->n1 * plan->n2 * 2 * VW;
  vf scale = splat(1.0f / (float)(plan->n1 * plan->n2 * VW));
  sequence[plan->length - 1] = (vf){0};
  memcpy(sequence, q->u + channel * q->plan.length, (size_t)q->plan.length * sizeof(float));
  columns_forward(plan, sequence, T);
  for (int64_t k1 = 0; k1 < plan->n1; k1++) {
    vc *row = T + k1 * plan->pitch;
    row_forward(plan, row);
    for (int64_t k2 = 0; k2 < plan->n2; k2++, out += 2 * VW) {
      if (k2 % VW == 0) across_forward(row + k2, plan->phase + 2 * (k1 * plan->n2 + k2) * VW);
      store(out, row[k2].r * scale);
      store(out + VW, row[k2].i * scale);
    }
  }
}

/* g's and u's transforms: their product to sum or added to it, and g through the adjoint. */
static void gradients_along(const fft_plan *inner, vf *g, const vf *u, const float *spectrum,
                            int64_t first, int64_t adjoint, vc *G, vc *U, vc *sum) {
  columns_forward(inner, g, G);
  columns_forward(inner, u, U);
  for (int64_t k1 = 0; k1 < inner->n1; k1++) {
    int64_t row = k1 * inner->pitch;
    row_forward(inner, G + row);
    row_forward(inner, U + row);
    for (int64_t k2 = 0; k2 < inner->n2; k2 += VW) {
      int64_t at = 2 * (k1 * inner->n2 + k2) * VW;
      vc *x = G + row + k2, *y = U + row + k2, *to = sum + row + k2;
      if (adjoint) expect(spectrum + at);
      across_forward(x, inner->phase + at);
      across_forward(y, inner->phase + at);
      for (int64_t k = 0; k < VW; k++) {
        vc both = vc_mul(x[k], y[k].r, -y[k].i);
        to[k] = first ? both : vc_add(to[k], both);
      }
      if (!adjoint) continue;
      times_spectrum(x, spectrum + at, VW, 1);
      across_inverse(x, inner->phase + at);
    }
    if (adjoint) row_inverse(inner, G + row, k1);
  }
  if (adjoint) columns_inverse(inner, G, g);
}

/* The way back of a sum of products, scaled. */
static void gradient_of_kernel(const fft_plan *inner, vc *sum, vf *sequence) {
  vf scale = splat(1.0f / (float)(inner->n1 * inner->n2 * VW));
  for (int64_t k1 = 0; k1 < inner->n1; k1++) {
    vc *row = sum + k1 * inner->pitch;
    for (int64_t k2 = 0; k2 < inner->n2; k2 += VW) {
      across_inverse(row + k2, inner->phase + 2 * (k1 * inner->n2 + k2) * VW);
      for (int64_t k = k2; k < k2 + VW; k++) row[k] = (vc){row[k].r * scale, row[k].i * scale};
    }
    row_inverse(inner, row, k1);
  }
  columns_inverse(inner, sum, sequence);
}

/* As gradients_item: the part's examples one after the other. */
static void gradients_long_item(const fft_task *q, int64_t group, int64_t part, float *scratch) {
  const fft_plan *plan = &q->plan, inner = along(plan);
  int64_t width = lanes(plan, group), size = plan->n1 * plan->n2 * 2 * VW;
  int64_t between = apart(plan), place = place_of(plan);
  vc *G = (vc *)scratch, *U = (vc *)(scratch + place);
  vf *g = (vf *)(scratch + 2 * place), *u = g + VW * between;
  float *sums = (float *)(u + VW * between);
  int64_t first = part * plan->batch / q->parts, last = (part + 1) * plan->batch / q->parts;
  for (int64_t b = first; b < last; b++) {
    int64_t offset = b * plan->length * plan->channels + group * VW;
    read_along(plan, q->g + offset, g, width, &q->norm);
    read_along(plan, q->u + offset, u, width, &q->norm);
    for (int64_t c = 0; c < width; c++) {
      int64_t channel = group * VW + c;
      vc *sum = (vc *)(sums + (last - first > 1 ? c * place : 0));
      gradients_along(&inner, g + c * between, u + c * between, q->spectrum + channel * size,
                      b == first, q->out != NULL, G, U, sum);
      if (b + 1 < last) continue;
      gradient_of_kernel(&inner, sum, u + c * between);
      memcpy(q->dk + (part * plan->channels + channel) * plan->length, u + c * between,
             (size_t)plan->length * sizeof(float));
    }
    if (q->out != NULL) write_along(plan, g, q->out + offset, width);
  }
}

/* Floats for one item: of a spectrum or a convolution, or of gradients for `examples` a part. */
INLINE size_t long_scratch(const fft_plan *plan, int64_t examples) {
  int64_t sequences = VW * VW * apart(plan), place = place_of(plan);
  if (examples == 0) return (size_t)(place + sequences);
  return (size_t)((examples > 1 ? 2 + VW : 3) * place + 2 * sequences);
}
