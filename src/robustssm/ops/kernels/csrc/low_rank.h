/* The response of x <- e x - q tau, tau = 2 Re sum of r x, read as K = 2 Re sum of c x, from x = b.
 *
 * A diagonal plus rank one per channel, states in conjugate pairs: S4's discretised system. All of
 * e, q, r, c, b, and their gradients, are (states, 2, channels): real and imaginary parts. Time runs
 * one step after the other; states of VW channels, at most some tens of KiB, stay in the L1 cache.
 */
#define LR_CHUNK 32 /* steps between states that are kept for the gradients */

typedef struct {
  const float *e, *q, *r, *c, *b, *g;
  float *out[5]; /* K alone, or the gradients of e, q, r, c and b */
  int64_t length, states, channels;
} low_rank_task;

typedef struct {
  vf er, ei, qr, qi, rr, ri, cr, ci;
} lr_mode;

static void lr_gather(const low_rank_task *q, int64_t group, int64_t width, lr_mode *mode, vf *x) {
  int64_t H = q->channels;
  for (int64_t n = 0; n < q->states; n++) {
    int64_t re = 2 * n * H + group * VW, im = re + H;
#define BOTH(to, from) to##r = load_some(from + re, width), to##i = load_some(from + im, width)
    BOTH(mode[n].e, q->e);
    BOTH(mode[n].q, q->q);
    BOTH(mode[n].r, q->r);
    BOTH(mode[n].c, q->c);
    x[2 * n] = load_some(q->b + re, width);
    x[2 * n + 1] = load_some(q->b + im, width);
#undef BOTH
  }
}

INLINE vf lr_tau(const lr_mode *mode, const vf *x, int64_t states) {
  vf even = {0}, odd = {0};
  for (int64_t n = 0; n < states; n++) {
    even += mode[n].rr * x[2 * n];
    odd += mode[n].ri * x[2 * n + 1];
  }
  return 2.0f * (even - odd);
}

INLINE void lr_advance(const lr_mode *mode, const vf *x, vf *to, vf tau, int64_t states) {
  for (int64_t n = 0; n < states; n++) {
    vf a = x[2 * n], b = x[2 * n + 1];
    to[2 * n] = mode[n].er * a - mode[n].ei * b - mode[n].qr * tau;
    to[2 * n + 1] = mode[n].er * b + mode[n].ei * a - mode[n].qi * tau;
  }
}

static void low_rank_item(const void *task, int64_t group, float *scratch) {
  const low_rank_task *q = task;
  int64_t N = q->states, H = q->channels, width = smaller(VW, H - group * VW);
  lr_mode *mode = (lr_mode *)scratch;
  vf *x = (vf *)(mode + N);
  lr_gather(q, group, width, mode, x);
  for (int64_t l = 0; l < q->length; l++) {
    vf even = {0}, odd = {0};
    for (int64_t n = 0; n < N; n++) {
      even += mode[n].cr * x[2 * n];
      odd += mode[n].ci * x[2 * n + 1];
    }
    store_some(q->out[0] + l * H + group * VW, 2.0f * (even - odd), width);
    lr_advance(mode, x, x, lr_tau(mode, x, N), N);
  }
}

typedef struct {
  vf e[2], q[2], r[2], c[2];
} lr_slope;

/* One step back: mu is the gradient of x[l + 1] on entry and of x[l] on return. */
INLINE void lr_back(const lr_mode *mode, const vf *x, vf *mu, lr_slope *slope, vf g, int last,
                    int64_t states) {
  vf even = {0}, odd = {0}, theta = {0}, tau = lr_tau(mode, x, states);
  if (!last) {
    for (int64_t n = 0; n < states; n++) {
      even += mode[n].qr * mu[2 * n];
      odd += mode[n].qi * mu[2 * n + 1];
    }
    theta = -2.0f * (even + odd);
  }
  g *= 2.0f;
  for (int64_t n = 0; n < states; n++) {
    vf a = x[2 * n], b = x[2 * n + 1], mr = mu[2 * n], mi = mu[2 * n + 1];
    slope[n].e[0] += mr * a + mi * b;
    slope[n].e[1] += mi * a - mr * b;
    slope[n].q[0] -= tau * mr;
    slope[n].q[1] -= tau * mi;
    slope[n].r[0] += theta * a;
    slope[n].r[1] -= theta * b;
    slope[n].c[0] += g * a;
    slope[n].c[1] -= g * b;
    mu[2 * n] = mode[n].er * mr + mode[n].ei * mi + theta * mode[n].rr + g * mode[n].cr;
    mu[2 * n + 1] = mode[n].er * mi - mode[n].ei * mr - theta * mode[n].ri - g * mode[n].ci;
  }
}

static void low_rank_back_item(const void *task, int64_t group, float *scratch) {
  const low_rank_task *q = task;
  int64_t N = q->states, H = q->channels, L = q->length, width = smaller(VW, H - group * VW);
  int64_t chunks = (L + LR_CHUNK - 1) / LR_CHUNK, size = 2 * N;
  lr_mode *mode = (lr_mode *)scratch;
  lr_slope *slope = (lr_slope *)(mode + N);
  vf *mu = (vf *)(slope + N), *x = mu + size, *kept = x + LR_CHUNK * size;
  lr_gather(q, group, width, mode, x);
  memset(slope, 0, (size_t)N * sizeof *slope);
  memset(mu, 0, (size_t)size * sizeof *mu);
  for (int64_t k = 0; k < chunks; k++) { /* states at the starts of chunks */
    memcpy(kept + k * size, x, (size_t)size * sizeof *x);
    for (int64_t l = 0; l < LR_CHUNK && k + 1 < chunks; l++)
      lr_advance(mode, x, x, lr_tau(mode, x, N), N);
  }
  for (int64_t k = chunks - 1; k >= 0; k--) {
    int64_t steps = smaller(LR_CHUNK, L - k * LR_CHUNK);
    memcpy(x, kept + k * size, (size_t)size * sizeof *x);
    for (int64_t l = 0; l + 1 < steps; l++) {
      vf *now = x + l * size;
      lr_advance(mode, now, now + size, lr_tau(mode, now, N), N);
    }
    for (int64_t l = steps - 1; l >= 0; l--) {
      int64_t t = k * LR_CHUNK + l;
      vf g = load_some(q->g + t * H + group * VW, width);
      lr_back(mode, x + l * size, mu, slope, g, t == L - 1, N);
    }
  }
  for (int64_t n = 0; n < N; n++)
    for (int part = 0; part < 2; part++) {
      int64_t at = (2 * n + part) * H + group * VW;
      store_some(q->out[0] + at, slope[n].e[part], width);
      store_some(q->out[1] + at, slope[n].q[part], width);
      store_some(q->out[2] + at, slope[n].r[part], width);
      store_some(q->out[3] + at, slope[n].c[part], width);
      store_some(q->out[4] + at, mu[2 * n + part], width);
    }
}

/* K, (length, channels). */
EXPORT int low_rank_response(const float *e, const float *q, const float *r, const float *c,
                             const float *b, float *K, int64_t length, int64_t states,
                             int64_t channels, int64_t threads) {
  low_rank_task task = {e, q, r, c, b, NULL, {K}, length, states, channels};
  size_t scratch = (size_t)states * (sizeof(lr_mode) + 2 * sizeof(vf)) / sizeof(float);
  return for_each((channels + VW - 1) / VW, threads, scratch, low_rank_item, &task);
}

/* The gradients of e, q, r, c and b from that of K, (length, channels). */
EXPORT int low_rank_gradients(const float *e, const float *q, const float *r, const float *c,
                              const float *b, const float *g, float *de, float *dq, float *dr,
                              float *dc, float *db, int64_t length, int64_t states,
                              int64_t channels, int64_t threads) {
  low_rank_task task = {e, q, r, c, b, g, {de, dq, dr, dc, db}, length, states, channels};
  int64_t chunks = (length + LR_CHUNK - 1) / LR_CHUNK;
  size_t vectors = (size_t)((1 + LR_CHUNK + chunks) * 2 * states);
  size_t scratch = (size_t)states * (sizeof(lr_mode) + sizeof(lr_slope)) / sizeof(float);
  return for_each((channels + VW - 1) / VW, threads, scratch + vectors * VW, low_rank_back_item,
                  &task);
}
