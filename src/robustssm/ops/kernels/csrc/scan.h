/* A diagonal linear system with many inputs and outputs, computed a block of time at a time:
 *
 *   x[t] = a x[t-1] + into u[t],   y[t] = read^T x[t] + D u[t],
 *
 * x complex, real parts before imaginary parts, and so are `into` and `read` (2 modes, channels).
 * The adjoint is the same system with the two swapped, a conjugated and time reversed, so the same
 * code serves both ways; backwards it also sums the gradients of what the system is made of.
 *
 * Modes are padded with zeros to whole vectors: a row of x is `padded` real parts and as many
 * imaginary parts, `row` floats in all.
 */

#define SCAN_STEPS 48 /* in a block of time */

typedef struct {
  const float *u, *into, *read, *a, *skip; /* into and read packed, a padded */
  float *y, *x;                            /* x: states to keep, (batch, length, row), or NULL */
  const float *before, *states;            /* backwards: u and x of the way there */
  float *d_into, *d_read, *d_a, *d_skip;   /* (parts, channels, row) twice, (parts, row), ... */
  int64_t batch, length, channels, padded, row, reverse, parts;
} system_task;

/* Runs the states of `groups` vectors of modes through `steps` rows of x, in place. */
INLINE void run_modes(float *x, const float *a, float *state, int64_t steps, int64_t padded,
                      int64_t reverse, const int groups) {
  vf re[2], im[2], a_re[2], a_im[2];
  UNROLL for (int g = 0; g < groups; g++) {
    re[g] = load(state + g * VW), im[g] = load(state + padded + g * VW);
    a_re[g] = load(a + g * VW), a_im[g] = load(a + padded + g * VW);
    if (reverse) a_im[g] = -a_im[g];
  }
  for (int64_t t = 0; t < steps; t++) {
    float *at = x + (reverse ? steps - 1 - t : t) * 2 * padded;
    UNROLL for (int g = 0; g < groups; g++) {
      vf real = load(at + g * VW) - a_im[g] * im[g], imag = load(at + padded + g * VW);
      im[g] = imag + a_im[g] * re[g] + a_re[g] * im[g];
      re[g] = real + a_re[g] * re[g];
      store(at + g * VW, re[g]);
      store(at + padded + g * VW, im[g]);
    }
  }
  UNROLL for (int g = 0; g < groups; g++) {
    store(state + g * VW, re[g]);
    store(state + padded + g * VW, im[g]);
  }
}

static void run_some(float *x, const float *a, float *state, int64_t steps, int64_t padded,
                     int64_t reverse, int64_t first) {
  if (first + VW < padded)
    run_modes(x + first, a + first, state + first, steps, padded, reverse, 2);
  else
    run_modes(x + first, a + first, state + first, steps, padded, reverse, 1);
}

/* d_a += sum over t of conj(x[t-1]) g[t], one vector of modes; x[-1] = 0. */
INLINE void slopes_of_a(const float *x, const float *g, float *d_a, int64_t t0, int64_t steps,
                        int64_t padded) {
  vf re = load(d_a), im = load(d_a + padded);
  for (int64_t t = t0 == 0; t < steps; t++) {
    const float *before = x + (t - 1) * 2 * padded, *now = g + t * 2 * padded;
    vf x_re = load(before), x_im = load(before + padded);
    vf g_re = load(now), g_im = load(now + padded);
    re += g_re * x_re + g_im * x_im;
    im += g_im * x_re - g_re * x_im;
  }
  store(d_a, re);
  store(d_a + padded, im);
}

static void slopes_of_skip(const float *u, const float *g, float *d_skip, int64_t steps,
                           int64_t channels) {
  for (int64_t h = 0; h < channels; h += VW) {
    int64_t width = channels - h;
    vf sum = load_some(d_skip + h, width);
    for (int64_t t = 0; t < steps; t++)
      sum += load_some(u + t * channels + h, width) * load_some(g + t * channels + h, width);
    store_some(d_skip + h, sum, width);
  }
}

/* A block of time of one example: where it begins, and its steps. */
typedef struct {
  int64_t start, steps, at; /* at: its first row among those of all examples */
} time_block;

static int64_t blocks_of(const system_task *q) { return (q->length + SCAN_STEPS - 1) / SCAN_STEPS; }

/* The k-th one in the order of the recurrence. */
static time_block block_of(const system_task *q, int64_t b, int64_t k) {
  int64_t start = (q->reverse ? blocks_of(q) - 1 - k : k) * SCAN_STEPS;
  return (time_block){start, smaller(SCAN_STEPS, q->length - start), b * q->length + start};
}

static void enter(const system_task *q, time_block s, float *x) {
  int64_t H = q->channels;
  multiply(&(product){.a = q->u + s.at * H, .a_row = H, .a_step = 1, .b = q->into,
                      .c = x, .c_row = q->row, .rows = s.steps, .depth = H, .columns = q->row});
}

static void leave(const system_task *q, time_block s, const float *x) {
  int64_t H = q->channels, size = s.steps * H;
  const float *u = q->u + s.at * H;
  float *y = q->y + s.at * H;
  multiply(&(product){.a = x, .a_row = q->row, .a_step = 1, .b = q->read,
                      .c = y, .c_row = H, .rows = s.steps, .depth = q->row, .columns = H});
  if (q->skip == NULL) return;
  for (int64_t t = 0; t < size; t += H)
    for (int64_t h = 0; h < H; h++) y[t + h] += q->skip[h] * u[t + h];
}

/* Adds left^T x to c, (channels, row), in the columns of modes from p on: one panel. */
static void add_outer(const system_task *q, time_block s, const float *left, const float *x,
                      float *c, int64_t p) {
  multiply(&(product){.a = left + s.at * q->channels, .a_row = 1, .a_step = q->channels,
                      .b = x + p, .b_row = q->row, .add = c + p, .add_row = q->row,
                      .c = c + p, .c_row = q->row, .rows = q->channels, .depth = s.steps,
                      .columns = smaller(TILE_COLUMNS, q->row - p)});
}

/* Sums over a block: of `into` and `read` for modes from p on. */
static void add_products(const system_task *q, int64_t part, time_block s, const float *x,
                         int64_t p) {
  int64_t to = part * q->channels * q->row;
  add_outer(q, s, q->before, x, q->d_into + to, p);
  add_outer(q, s, q->u, q->states + s.at * q->row, q->d_read + to, p);
}

/* The other sums over a block. */
static void add_slopes(const system_task *q, int64_t part, time_block s, const float *x) {
  int64_t H = q->channels;
  for (int64_t p = 0; p < q->padded; p += VW)
    slopes_of_a(q->states + s.at * q->row + p, x + p, q->d_a + part * q->row + p, s.start, s.steps,
                q->padded);
  slopes_of_skip(q->before + s.at * H, q->u + s.at * H, q->d_skip + part * H, s.steps, H);
}

/* A few examples, every block from its inputs to its outputs. */
static void system_item(const void *task, int64_t part, float *scratch) {
  const system_task *q = task;
  float *state = scratch, *block = scratch + q->row;
  for (int64_t b = part * q->batch / q->parts; b < (part + 1) * q->batch / q->parts; b++) {
    memset(state, 0, (size_t)q->row * sizeof(float));
    for (int64_t k = 0; k < blocks_of(q); k++) {
      time_block s = block_of(q, b, k);
      float *x = q->x ? q->x + s.at * q->row : block;
      enter(q, s, x);
      for (int64_t p = 0; p < q->padded; p += 2 * VW)
        run_some(x, q->a, state, s.steps, q->padded, q->reverse, p);
      leave(q, s, x);
      if (q->d_a == NULL) continue;
      for (int64_t p = 0; p < q->row; p += TILE_COLUMNS) add_products(q, part, s, x, p);
      add_slopes(q, part, s, x);
    }
  }
}

/* The same in phases with more items, for fewer parts than threads; same order, same bytes. */
static void enter_item(const void *task, int64_t item, float *scratch) {
  const system_task *q = task;
  (void)scratch;
  time_block s = block_of(q, item / blocks_of(q), item % blocks_of(q));
  enter(q, s, q->x + s.at * q->row);
}

static void leave_item(const void *task, int64_t item, float *scratch) {
  const system_task *q = task;
  (void)scratch;
  time_block s = block_of(q, item / blocks_of(q), item % blocks_of(q));
  leave(q, s, q->x + s.at * q->row);
}

static int64_t groups_of(const system_task *q) { return (q->padded + 2 * VW - 1) / (2 * VW); }

static void run_item(const void *task, int64_t item, float *scratch) {
  const system_task *q = task;
  int64_t b = item / groups_of(q), p = item % groups_of(q) * 2 * VW;
  memset(scratch, 0, (size_t)q->row * sizeof(float));
  run_some(q->x + b * q->length * q->row, q->a, scratch, q->length, q->padded, q->reverse, p);
}

static int64_t panels_of(const system_task *q) {
  return (q->row + TILE_COLUMNS - 1) / (TILE_COLUMNS);
}

static void sums_item(const void *task, int64_t item, float *scratch) {
  const system_task *q = task;
  (void)scratch;
  int64_t panels = panels_of(q), part = item / (panels + 1), panel = item % (panels + 1);
  for (int64_t b = part * q->batch / q->parts; b < (part + 1) * q->batch / q->parts; b++)
    for (int64_t k = 0; k < blocks_of(q); k++) {
      time_block s = block_of(q, b, k);
      const float *x = q->x + s.at * q->row;
      if (panel < panels) add_products(q, part, s, x, panel * TILE_COLUMNS);
      else add_slopes(q, part, s, x);
    }
}

static int in_phases(const system_task *q, int64_t threads) {
  int64_t blocks = q->batch * blocks_of(q);
  int failed = for_each(blocks, threads, 1, enter_item, q);
  failed |= for_each(q->batch * groups_of(q), threads, (size_t)q->row, run_item, q);
  failed |= for_each(blocks, threads, 1, leave_item, q);
  if (q->d_a) failed |= for_each(q->parts * (panels_of(q) + 1), threads, 1, sums_item, q);
  return failed;
}

/* Packs a matrix into panels as `multiply` reads them: m (2 modes,
 * channels), its modes padded, transposed if modes are to be columns. */
static void pack_modes(const float *m, float *to, int64_t modes, int64_t padded, int64_t channels,
                 int transposed) {
  int64_t depth = transposed ? channels : 2 * padded, columns = transposed ? 2 * padded : channels;
  for (int64_t first = 0; first < columns; first += TILE_COLUMNS) {
    int64_t n = smaller(TILE_COLUMNS, (columns - first + VW - 1) / VW * VW);
    for (int64_t k = 0; k < depth; k++)
      for (int64_t j = 0; j < n; j++) {
        int64_t mode = transposed ? first + j : k, h = transposed ? k : first + j;
        int64_t half = mode >= padded, p = mode - half * padded;
        *to++ = p < modes && h < channels ? m[(half * modes + p) * channels + h] : 0;
      }
  }
}

/* Both ways. `a` is complex as torch stores it. NULL may be `x`, if there are as many parts as
 * threads, and all together what belongs to the gradients; these are added to. */
EXPORT int system_scan(const float *u, const float *into, const float *read, const float *a,
                       const float *skip, float *y, float *x, const float *before,
                       const float *states, float *d_into, float *d_read, float *d_a, float *d_skip,
                       int64_t batch, int64_t length, int64_t channels, int64_t modes,
                       int64_t reverse, int64_t parts, int64_t threads) {
  int64_t padded = (modes + VW - 1) / VW * VW, row = 2 * padded;
  size_t matrix = (size_t)(row * ((channels + VW - 1) / VW * VW));
  float *packed = aligned_alloc(64, ((2 * matrix + (size_t)row) * sizeof(float) + 63) / 64 * 64);
  if (packed == NULL) return 1;
  float *packed_read = packed + matrix, *split = packed_read + matrix;
  pack_modes(into, packed, modes, padded, channels, 1);
  pack_modes(read, packed_read, modes, padded, channels, 0);
  for (int64_t p = 0; p < padded; p++)
    for (int64_t half = 0; half < 2; half++)
      split[half * padded + p] = p < modes ? a[2 * p + half] : 0;
  system_task task = {u, packed, packed_read, split, skip, y, x, before, states,
                      d_into, d_read, d_a, d_skip,
                      batch, length, channels, padded, row, reverse, parts};
  int failed = parts < threads && x != NULL
                   ? in_phases(&task, threads)
                   : for_each(parts, threads, (size_t)((SCAN_STEPS + 1) * row), system_item, &task);
  free(packed);
  return failed;
}

/* Moving averages: x[n, t] = q[n] x[n, t-1] + u[t], y[t] = skip u[t] + sum over n of c[n] x[n, t],
 * every channel with its own, in one direction of time or, added, in both with other q and c.
 */

/* Averages whose state is in registers, on the way and with gradients; SPAN steps between them. */
#if VW == 16
#define AVERAGES 8
#else
#define AVERAGES 4
#endif
#define SPAN 64

typedef struct {
  const float *u, *g, *q, *c, *skip; /* q and c (ways, averages, channels); g backwards: dy */
  float *y, *dq, *dc, *d_skip;       /* y or du; gradients (parts, as q, c and skip) */
  int64_t batch, length, channels, averages, ways, adjoint, groups, parts;
} average_task;

/* VW channels of a matrix (rows, channels) side by side. */
INLINE void take_channels(const float *from, vf *to, int64_t rows, int64_t channels,
                          int64_t width) {
  for (int64_t k = 0; k < rows; k++) to[k] = load_some(from + k * channels, width);
}

/* Adds n averages of u to y, `steps` of them in steps of `stride` vectors. */
INLINE void add_averages(const vf *u, vf *y, vf *x, const vf *q, const vf *c, int64_t steps,
                         const int n) {
  vf state[AVERAGES], factor[AVERAGES], weight[AVERAGES];
  UNROLL for (int k = 0; k < n; k++) state[k] = x[k], factor[k] = q[k], weight[k] = c[k];
  for (int64_t t = 0; t < steps; t++) {
    vf in = u[t], sum = y[t];
    UNROLL for (int k = 0; k < n; k++) {
      state[k] = factor[k] * state[k] + in;
      sum += weight[k] * state[k]; /* in this order however many there are in one go */
    }
    y[t] = sum;
  }
  UNROLL for (int k = 0; k < n; k++) x[k] = state[k];
}

static void average_item(const void *task, int64_t item, float *scratch) {
  const average_task *p = task;
  int64_t L = p->length, H = p->channels, N = p->averages;
  int64_t first = item % p->groups * VW, b = item / p->groups, width = H - first;
  vf *u = (vf *)scratch, *y = u + SPAN, *x = y + SPAN, *q = x + N, *c = q + N;
  vf skip = load_some(p->skip + first, width);
  const float *in = p->u + b * L * H + first;
  float *out = p->y + b * L * H + first;
  for (int64_t way = 0; way < p->ways; way++) {
    take_channels(p->q + way * N * H + first, q, N, H, width);
    take_channels(p->c + way * N * H + first, c, N, H, width);
    for (int64_t n = 0; n < N; n++) x[n] = (vf){0};
    for (int64_t t0 = 0; t0 < L; t0 += SPAN) {
      int64_t steps = smaller(SPAN, L - t0), reverse = way != p->adjoint;
      int64_t start = (reverse ? L - 1 - t0 : t0) * H, step = reverse ? -H : H;
      for (int64_t t = 0; t < steps; t++) {
        u[t] = load_some(in + start + t * step, width);
        if (way == 0) y[t] = skip * u[t];
        else y[t] = load_some(out + start + t * step, width);
      }
      int64_t n = 0;
      for (; n + AVERAGES <= N; n += AVERAGES)
        add_averages(u, y, x + n, q + n, c + n, steps, AVERAGES);
      for (; n + 2 <= N; n += 2) add_averages(u, y, x + n, q + n, c + n, steps, 2);
      if (n < N) add_averages(u, y, x + n, q + n, c + n, steps, 1);
      for (int64_t t = 0; t < steps; t++) store_some(out + start + t * step, y[t], width);
    }
  }
}

EXPORT int moving_average(const float *u, const float *q, const float *c, const float *skip,
                          float *y, int64_t batch, int64_t length, int64_t channels,
                          int64_t averages, int64_t ways, int64_t adjoint, int64_t threads) {
  int64_t groups = (channels + VW - 1) / VW;
  average_task task = {.u = u, .q = q, .c = c, .skip = skip, .y = y,
                       .batch = batch, .length = length, .channels = channels,
                       .averages = averages, .ways = ways, .adjoint = adjoint, .groups = groups};
  size_t vectors = (size_t)(2 * SPAN + 3 * averages);
  return for_each(batch * groups, threads, vectors * VW, average_item, &task);
}

/* n averages backwards through one span, in the order of the way there: `before` holds their states
 * ahead of every step, n to a step. With s[t] = g[t] + q s[t+1], dc is the sum of s u (by the
 * adjoint, that of g x), dq is c times that of s x[t-1], and c s goes to u. */
INLINE void average_slopes(const vf *u, const vf *g, const vf *before, vf *du, vf *s, const vf *q,
                           const vf *c, vf *dq, vf *dc, int64_t steps, const int n) {
  vf slope[AVERAGES], factor[AVERAGES], weight[AVERAGES], for_q[AVERAGES], for_c[AVERAGES];
  UNROLL for (int k = 0; k < n; k++) {
    slope[k] = s[k], factor[k] = q[k], weight[k] = c[k], for_q[k] = dq[k], for_c[k] = dc[k];
  }
  for (int64_t t = steps - 1; t >= 0; t--) {
    vf in = u[t], out = g[t], sum = du[t];
    UNROLL for (int k = 0; k < n; k++) {
      slope[k] = factor[k] * slope[k] + out;
      for_q[k] += slope[k] * before[t * n + k];
      for_c[k] += slope[k] * in;
      sum += weight[k] * slope[k];
    }
    du[t] = sum;
  }
  UNROLL for (int k = 0; k < n; k++) s[k] = slope[k], dq[k] = for_q[k], dc[k] = for_c[k];
}

/* Runs n averages through a span; their states ahead of every step go to `before`, if given. */
INLINE void run_averages(const vf *u, vf *x, const vf *q, vf *before, int64_t steps, const int n) {
  vf state[AVERAGES], factor[AVERAGES];
  UNROLL for (int k = 0; k < n; k++) state[k] = x[k], factor[k] = q[k];
  for (int64_t t = 0; t < steps; t++) {
    UNROLL for (int k = 0; k < n; k++) {
      if (before) before[t * n + k] = state[k];
      state[k] = factor[k] * state[k] + u[t];
    }
  }
  UNROLL for (int k = 0; k < n; k++) x[k] = state[k];
}

/* n averages from the k-th on, back through one span from its start; at: u, dy and du; average: q,
 * c, s, and the sums for dq and dc. */
INLINE void span_back(vf *const at[3], vf *const average[5], vf *before, const vf *start, int64_t k,
                      int64_t steps, const int n) {
  vf x[AVERAGES];
  UNROLL for (int j = 0; j < n; j++) x[j] = start[k + j];
  run_averages(at[0], x, average[0] + k, before, steps, n);
  average_slopes(at[0], at[1], before, at[2], average[2] + k, average[0] + k, average[1] + k,
                 average[3] + k, average[4] + k, steps, n);
}

/* One way of one example. `starts` has room for the states at the start of every span. */
static void average_way(const average_task *p, int64_t b, int64_t way, int64_t first, vf skip,
                        vf *d_skip, vf *const average[5], vf *starts, vf *scratch) {
  int64_t L = p->length, H = p->channels, N = p->averages, width = H - first;
  int64_t start = (b * L + (way ? L - 1 : 0)) * H + first, step = way ? -H : H;
  int64_t spans = (L + SPAN - 1) / SPAN;
  vf *at[3] = {scratch, scratch + SPAN, scratch + 2 * SPAN}, *before = scratch + 3 * SPAN;
  for (int64_t n = 0; n < N; n++) starts[n] = average[2][n] = (vf){0};
  for (int64_t k = 0; k + 1 < spans; k++) {
    vf *x = starts + (k + 1) * N;
    for (int64_t t = 0; t < SPAN; t++)
      at[0][t] = load_some(p->u + start + (k * SPAN + t) * step, width);
    memcpy(x, x - N, (size_t)N * sizeof(vf));
    int64_t n = 0;
    for (; n + AVERAGES <= N; n += AVERAGES)
      run_averages(at[0], x + n, average[0] + n, NULL, SPAN, AVERAGES);
    for (; n < N; n++) run_averages(at[0], x + n, average[0] + n, NULL, SPAN, 1);
  }
  for (int64_t k = spans - 1; k >= 0; k--) {
    int64_t steps = smaller(SPAN, L - k * SPAN), origin = start + k * SPAN * step;
    for (int64_t t = 0; t < steps; t++) {
      at[0][t] = load_some(p->u + origin + t * step, width);
      at[1][t] = load_some(p->g + origin + t * step, width);
      at[2][t] = skip * at[1][t];
      if (way) at[2][t] = load_some(p->y + origin + t * step, width);
      if (way == 0) *d_skip += at[0][t] * at[1][t];
    }
    int64_t n = 0;
    for (; n + AVERAGES / 2 <= N; n += AVERAGES / 2)
      span_back(at, average, before, starts + k * N, n, steps, AVERAGES / 2);
    for (; n < N; n++) span_back(at, average, before, starts + k * N, n, steps, 1);
    for (int64_t t = 0; t < steps; t++) store_some(p->y + origin + t * step, at[2][t], width);
  }
}

static void average_gradients_item(const void *task, int64_t item, float *scratch) {
  const average_task *p = task;
  int64_t H = p->channels, N = p->averages, first = item % p->groups * VW, part = item / p->groups;
  int64_t width = H - first, spans = (p->length + SPAN - 1) / SPAN;
  vf *matrices = (vf *)scratch, *starts = matrices + 5 * N * p->ways, *rest = starts + spans * N;
  vf skip = load_some(p->skip + first, width), d_skip = {0};
  for (int64_t way = 0; way < p->ways; way++) {
    vf *own = matrices + 5 * N * way;
    take_channels(p->q + way * N * H + first, own, N, H, width);
    take_channels(p->c + way * N * H + first, own + N, N, H, width);
    for (int64_t n = 0; n < 3 * N; n++) own[2 * N + n] = (vf){0};
  }
  for (int64_t b = part * p->batch / p->parts; b < (part + 1) * p->batch / p->parts; b++)
    for (int64_t way = 0; way < p->ways; way++) {
      vf *own = matrices + 5 * N * way;
      vf *const average[5] = {own, own + N, own + 2 * N, own + 3 * N, own + 4 * N};
      average_way(p, b, way, first, skip, &d_skip, average, starts, rest);
    }
  for (int64_t way = 0; way < p->ways; way++)
    for (int64_t n = 0; n < N; n++) {
      vf *own = matrices + 5 * N * way + n;
      int64_t to = ((part * p->ways + way) * N + n) * H + first;
      store_some(p->dq + to, own[N] * own[3 * N], width);
      store_some(p->dc + to, own[4 * N], width);
    }
  store_some(p->d_skip + part * H + first, d_skip, width);
}

EXPORT int moving_average_gradients(const float *u, const float *g, const float *q, const float *c,
                                    const float *skip, float *du, float *dq, float *dc,
                                    float *d_skip, int64_t batch, int64_t length, int64_t channels,
                                    int64_t averages, int64_t ways, int64_t parts,
                                    int64_t threads) {
  int64_t groups = (channels + VW - 1) / VW, spans = (length + SPAN - 1) / SPAN;
  average_task task = {.u = u, .g = g, .q = q, .c = c, .skip = skip, .y = du,
                       .dq = dq, .dc = dc, .d_skip = d_skip,
                       .batch = batch, .length = length, .channels = channels,
                       .averages = averages, .ways = ways, .groups = groups, .parts = parts};
  size_t vectors = (size_t)((5 * ways + spans) * averages + (3 + AVERAGES) * SPAN);
  return for_each(parts * groups, threads, vectors * VW, average_gradients_item, &task);
}

/* h[t] = a h[t-1] + b[t], elementwise, real or, with imaginary parts after real ones, complex. */
typedef struct {
  const float *a, *b;
  float *h;
  int64_t length, floats, complex, reverse, groups;
} scan_task;

/* (re, im, re, im, ...) to (im, re, im, re, ...). */
INLINE vf swapped(vf v) {
#if VW == 16
  return SHUFFLED(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif VW == 8
  return SHUFFLED(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
  return SHUFFLED(v, v, 1, 0, 3, 2);
#endif
}

static void scan_item(const void *task, int64_t item, float *scratch) {
  const scan_task *q = task;
  (void)scratch;
  int64_t first = item % q->groups * VW, width = q->floats - first, step = q->floats;
  int64_t from = item / q->groups * q->length * step + first;
  vf a = load_some(q->a + first, width), cross = {0}, state = {0};
  if (q->complex)
    for (int k = 0; k < VW; k += 2) cross[k] = -a[k + 1], cross[k + 1] = a[k + 1], a[k + 1] = a[k];
  for (int64_t t = 0; t < q->length; t++) {
    int64_t at = from + (q->reverse ? q->length - 1 - t : t) * step;
    vf h = load_some(q->b + at, width);
    if (q->complex) h += cross * swapped(state);
    state = h + a * state;
    store_some(q->h + at, state, width);
  }
}

EXPORT int constant_scan(const float *a, const float *b, float *h, int64_t batch, int64_t length,
                         int64_t floats, int64_t complex, int64_t reverse, int64_t threads) {
  int64_t groups = (floats + VW - 1) / VW;
  scan_task task = {a, b, h, length, floats, complex, reverse, groups};
  return for_each(batch * groups, threads, 1, scan_item, &task);
}
