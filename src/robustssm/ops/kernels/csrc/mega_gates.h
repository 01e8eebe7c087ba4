/* The gates between the linear maps of a Mega layer, forward and back in one pass each.
 *
 *   silu     y = silu(x)
 *   mega_qk  q = silu(z) * gain_0 + offset_0 and k = silu(z) * gain_1 + offset_1
 *   mega_reset   out = read * silu(r)
 *   mega_update  out = x + sigmoid(u) (silu(h_x + hidden) - x)
 *
 * z, r, u and h_x are columns of one matrix and so are their gradients: hence rows that are further
 * apart than they are wide. A work item is GATE_ROWS rows, for any number of threads.
 */
#define GATE_ROWS 64
#define GATE_ARRAYS 5
#define SILU_CHUNK 16384

/* Arrays and how far apart their rows are; which is which is said at each function. */
typedef struct {
  const float *in[GATE_ARRAYS];
  float *out[GATE_ARRAYS];
  int64_t rows, width, in_row[GATE_ARRAYS], out_row[GATE_ARRAYS];
} gate_task;

INLINE int64_t gate_stop(const gate_task *q, int64_t item) {
  return smaller(q->rows, (item + 1) * GATE_ROWS);
}

INLINE vf gate_in(const gate_task *q, int which, int64_t t, int64_t n) {
  return load_some(q->in[which] + t * q->in_row[which] + n, q->width - n);
}

INLINE void gate_out(const gate_task *q, int which, int64_t t, int64_t n, vf v) {
  store_some(q->out[which] + t * q->out_row[which] + n, v, q->width - n);
}

INLINE int run_gate(const gate_task *q, int64_t threads, work_fn *work) {
  return for_each((q->rows + GATE_ROWS - 1) / GATE_ROWS, threads, 0, work, q);
}

/* In: x. Out: y. An item is SILU_CHUNK entries; the last may have fewer. */
static void silu_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  const float *x = q->in[0] + item * SILU_CHUNK;
  float *y = q->out[0] + item * SILU_CHUNK;
  int64_t count = smaller(SILU_CHUNK, q->width - item * SILU_CHUNK);
  for (int64_t n = 0; n < count; n += VW) {
    vf v = load_some(x + n, count - n);
    store_some(y + n, v * sigmoid(v), count - n);
  }
}

/* In: x, gradient of y. Out: gradient of x. */
static void silu_back_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  const float *x = q->in[0] + item * SILU_CHUNK, *g = q->in[1] + item * SILU_CHUNK;
  float *dx = q->out[0] + item * SILU_CHUNK;
  int64_t count = smaller(SILU_CHUNK, q->width - item * SILU_CHUNK);
  for (int64_t n = 0; n < count; n += VW) {
    vf v = load_some(x + n, count - n);
    store_some(dx + n, load_some(g + n, count - n) * silu_slope(v, sigmoid(v)), count - n);
  }
}

EXPORT int silu(const float *x, float *y, int64_t count, int64_t threads) {
  gate_task task = {.in = {x}, .out = {y}, .width = count};
  return for_each((count + SILU_CHUNK - 1) / SILU_CHUNK, threads, 0, silu_item, &task);
}

EXPORT int silu_gradient(const float *x, const float *g, float *dx, int64_t count,
                         int64_t threads) {
  gate_task task = {.in = {x, g}, .out = {dx}, .width = count};
  return for_each((count + SILU_CHUNK - 1) / SILU_CHUNK, threads, 0, silu_back_item, &task);
}

/* In: z, gain (2, width), offset (2, width). Out: q, k. */
static void qk_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  for (int64_t t = item * GATE_ROWS, stop = gate_stop(q, item); t < stop; t++)
    for (int64_t n = 0; n < q->width; n += VW) {
      vf v = gate_in(q, 0, t, n);
      v *= sigmoid(v);
      for (int i = 0; i < 2; i++)
        gate_out(q, i, t, n, v * gate_in(q, 1, i, n) + gate_in(q, 2, i, n));
    }
}

/* In: z, gain, gradients of q and k. Out: gradient of z; unless NULL, this item's part of the
 * gradients of gain (2, width) and of offset (2, width). */
static void qk_back_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  for (int64_t n = 0; n < q->width; n += VW) {
    vf gains[2] = {gate_in(q, 1, 0, n), gate_in(q, 1, 1, n)}, sums[4] = {{0}};
    for (int64_t t = item * GATE_ROWS, stop = gate_stop(q, item); t < stop; t++) {
      vf v = gate_in(q, 0, t, n), s = sigmoid(v);
      vf dq = gate_in(q, 2, t, n), dk = gate_in(q, 3, t, n);
      gate_out(q, 0, t, n, (dq * gains[0] + dk * gains[1]) * silu_slope(v, s));
      sums[0] += dq * (v * s);
      sums[1] += dk * (v * s);
      sums[2] += dq;
      sums[3] += dk;
    }
    if (q->out[1] == NULL) continue;
    for (int i = 0; i < 4; i++) gate_out(q, 1, 4 * item + i, n, sums[i]);
  }
}

EXPORT int mega_qk(const float *z, const float *gain, const float *offset, float *queries,
                   float *keys, int64_t rows, int64_t width, int64_t z_row, int64_t threads) {
  gate_task task = {.in = {z, gain, offset}, .in_row = {z_row, width, width},
                    .out = {queries, keys}, .out_row = {width, width},
                    .rows = rows, .width = width};
  return run_gate(&task, threads, qk_item);
}

/* `sums` is NULL or has room for 4 rows of each item. */
EXPORT int mega_qk_gradients(const float *z, const float *gain, const float *dq, const float *dk,
                             float *dz, float *sums, int64_t rows, int64_t width, int64_t z_row,
                             int64_t dq_row, int64_t dk_row, int64_t dz_row, int64_t threads) {
  gate_task task = {.in = {z, gain, dq, dk}, .in_row = {z_row, width, dq_row, dk_row},
                    .out = {dz, sums}, .out_row = {dz_row, width},
                    .rows = rows, .width = width};
  return run_gate(&task, threads, qk_back_item);
}

/* In: read, r. Out: read * silu(r). */
static void reset_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  for (int64_t t = item * GATE_ROWS, stop = gate_stop(q, item); t < stop; t++)
    for (int64_t n = 0; n < q->width; n += VW) {
      vf r = gate_in(q, 1, t, n);
      gate_out(q, 0, t, n, gate_in(q, 0, t, n) * (r * sigmoid(r)));
    }
}

/* In: read, r, gradient. Out: gradients of read and of r. */
static void reset_back_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  for (int64_t t = item * GATE_ROWS, stop = gate_stop(q, item); t < stop; t++)
    for (int64_t n = 0; n < q->width; n += VW) {
      vf r = gate_in(q, 1, t, n), s = sigmoid(r), g = gate_in(q, 2, t, n);
      gate_out(q, 0, t, n, g * (r * s));
      gate_out(q, 1, t, n, g * gate_in(q, 0, t, n) * silu_slope(r, s));
    }
}

EXPORT int mega_reset(const float *read, const float *r, float *out, int64_t rows, int64_t width,
                      int64_t read_row, int64_t r_row, int64_t threads) {
  gate_task task = {.in = {read, r}, .in_row = {read_row, r_row}, .out = {out},
                    .out_row = {width}, .rows = rows, .width = width};
  return run_gate(&task, threads, reset_item);
}

EXPORT int mega_reset_gradients(const float *read, const float *r, const float *g, float *dread,
                                float *dr, int64_t rows, int64_t width, int64_t read_row,
                                int64_t r_row, int64_t g_row, int64_t dr_row, int64_t threads) {
  gate_task task = {.in = {read, r, g}, .in_row = {read_row, r_row, g_row},
                    .out = {dread, dr}, .out_row = {width, dr_row},
                    .rows = rows, .width = width};
  return run_gate(&task, threads, reset_back_item);
}

/* In: x, u, h_x, hidden. Out: the updated x. */
static void update_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  for (int64_t t = item * GATE_ROWS, stop = gate_stop(q, item); t < stop; t++)
    for (int64_t n = 0; n < q->width; n += VW) {
      vf x = gate_in(q, 0, t, n), h = gate_in(q, 2, t, n) + gate_in(q, 3, t, n);
      gate_out(q, 0, t, n, x + sigmoid(gate_in(q, 1, t, n)) * (h * sigmoid(h) - x));
    }
}

/* In: x, u, h_x, hidden, gradient. Out: gradients of x, of u, and of both h_x and hidden. */
static void update_back_item(const void *task, int64_t item, float *scratch) {
  const gate_task *q = task;
  for (int64_t t = item * GATE_ROWS, stop = gate_stop(q, item); t < stop; t++)
    for (int64_t n = 0; n < q->width; n += VW) {
      vf x = gate_in(q, 0, t, n), h = gate_in(q, 2, t, n) + gate_in(q, 3, t, n);
      vf g = gate_in(q, 4, t, n), u = sigmoid(gate_in(q, 1, t, n)), s = sigmoid(h);
      gate_out(q, 0, t, n, g * (1.0f - u));
      gate_out(q, 1, t, n, g * (h * s - x) * (u * (1.0f - u)));
      gate_out(q, 2, t, n, g * u * silu_slope(h, s));
    }
}

EXPORT int mega_update(const float *x, const float *u, const float *h_x, const float *hidden,
                       float *out, int64_t rows, int64_t width, int64_t x_row, int64_t u_row,
                       int64_t h_x_row, int64_t hidden_row, int64_t threads) {
  gate_task task = {.in = {x, u, h_x, hidden}, .in_row = {x_row, u_row, h_x_row, hidden_row},
                    .out = {out}, .out_row = {width}, .rows = rows, .width = width};
  return run_gate(&task, threads, update_item);
}

EXPORT int mega_update_gradients(const float *x, const float *u, const float *h_x,
                                 const float *hidden, const float *g, float *dx, float *du,
                                 float *dh, int64_t rows, int64_t width, int64_t x_row,
                                 int64_t u_row, int64_t h_x_row, int64_t hidden_row,
                                 int64_t g_row, int64_t du_row, int64_t dh_row, int64_t threads) {
  gate_task task = {.in = {x, u, h_x, hidden, g},
                    .in_row = {x_row, u_row, h_x_row, hidden_row, g_row},
                    .out = {dx, du, dh}, .out_row = {width, du_row, dh_row},
                    .rows = rows, .width = width};
  return run_gate(&task, threads, update_back_item);
}
