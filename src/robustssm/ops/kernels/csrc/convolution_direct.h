/* Causal convolution by its definition, in tiles of TILE outputs and TILE inputs.
 *
 * y[b, t, c] = sum over s <= t of k[t - s, c] u[b, s, c]; backwards: with time reversed in u and y,
 * which is the adjoint. Multiplications: (length + 1) / 2 per output, two per cycle at best.
 */
#define TILE 8

typedef struct {
  const float *u, *k;
  float *y;
  int64_t batch, length, channels, groups, reverse;
} direct_task;

/* Copies VW channels of a sequence side by side, in reverse if asked; zeros up to `padded`. */
INLINE void gather(const float *from, vf *to, int64_t length, int64_t padded, int64_t channels,
                   int64_t width, int64_t reverse) {
  for (int64_t t = 0; t < length; t++) {
    int64_t at = reverse ? length - 1 - t : t;
    to[t] = load_some(from + at * channels, width);
  }
  for (int64_t t = length; t < padded; t++) to[t] = (vf){0};
}

static void direct_item(const void *task, int64_t item, float *scratch) {
  const direct_task *q = task;
  int64_t group = item % q->groups, b = item / q->groups, L = q->length, H = q->channels;
  int64_t width = smaller(VW, H - group * VW), padded = (L + TILE - 1) / TILE * TILE;
  vf *k = (vf *)scratch + TILE, *u = k + padded;
  for (int64_t t = 0; t < TILE; t++) k[t - TILE] = (vf){0}; /* lags below zero */
  gather(q->k + group * VW, k, L, padded, H, width, 0);
  gather(q->u + b * L * H + group * VW, u, L, padded, H, width, q->reverse);
  float *y = q->y + b * L * H + group * VW;
  for (int64_t t0 = 0; t0 < L; t0 += TILE) {
    vf sum[TILE];
    UNROLL for (int i = 0; i < TILE; i++) sum[i] = (vf){0};
    for (int64_t s0 = 0; s0 <= t0; s0 += TILE) {
      const vf *lag = k + (t0 - s0), *in = u + s0;
      UNROLL for (int j = 0; j < TILE; j++) {
        UNROLL for (int i = 0; i < TILE; i++) sum[i] += lag[i - j] * in[j];
      }
    }
    for (int64_t i = 0; i < TILE && t0 + i < L; i++) {
      int64_t at = q->reverse ? L - 1 - t0 - i : t0 + i;
      store_some(y + at * H, sum[i], width);
    }
  }
}

EXPORT int causal_direct(const float *u, const float *k, float *y, int64_t batch, int64_t length,
                         int64_t channels, int64_t reverse, int64_t threads) {
  int64_t groups = (channels + VW - 1) / VW;
  direct_task task = {u, k, y, batch, length, channels, groups, reverse};
  size_t vectors = (size_t)(2 * (length + TILE) + TILE);
  return for_each(batch * groups, threads, vectors * VW, direct_item, &task);
}

/* dk[part, l, c] = sum over the part's examples b and over t of g[b, t, c] u[b, t - l, c]. */
typedef struct {
  const float *u, *g;
  float *dk;
  int64_t batch, length, channels, groups, parts;
} lags_task;

static void lags_item(const void *task, int64_t item, float *scratch) {
  const lags_task *q = task;
  int64_t group = item % q->groups, part = item / q->groups, L = q->length, H = q->channels;
  int64_t width = smaller(VW, H - group * VW), padded = (L + TILE - 1) / TILE * TILE;
  vf *u = (vf *)scratch + TILE, *g = u + padded, *dk = g + padded;
  for (int64_t t = 0; t < TILE; t++) u[t - TILE] = (vf){0};
  for (int64_t l = 0; l < padded; l++) dk[l] = (vf){0};
  int64_t first = part * q->batch / q->parts, last = (part + 1) * q->batch / q->parts;
  for (int64_t b = first; b < last; b++) {
    gather(q->u + b * L * H + group * VW, u, L, padded, H, width, 0);
    gather(q->g + b * L * H + group * VW, g, L, padded, H, width, 0);
    for (int64_t l0 = 0; l0 < L; l0 += TILE) {
      vf sum[TILE];
      UNROLL for (int i = 0; i < TILE; i++) sum[i] = dk[l0 + i];
      for (int64_t t0 = l0; t0 < padded; t0 += TILE) {
        const vf *in = u + (t0 - l0), *out = g + t0;
        UNROLL for (int j = 0; j < TILE; j++) {
          UNROLL for (int i = 0; i < TILE; i++) sum[i] += out[j] * in[j - i];
        }
      }
      UNROLL for (int i = 0; i < TILE; i++) dk[l0 + i] = sum[i];
    }
  }
  float *to = q->dk + part * L * H + group * VW;
  for (int64_t l = 0; l < L; l++) store_some(to + l * H, dk[l], width);
}

EXPORT int causal_direct_lags(const float *u, const float *g, float *dk, int64_t batch,
                              int64_t length, int64_t channels, int64_t parts, int64_t threads) {
  int64_t groups = (channels + VW - 1) / VW;
  lags_task task = {u, g, dk, batch, length, channels, groups, parts};
  size_t vectors = (size_t)(3 * (length + TILE) + TILE);
  return for_each(parts * groups, threads, vectors * VW, lags_item, &task);
}
