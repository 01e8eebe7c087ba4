/* The selective scan: h[t] = exp(delta[t] A) h[t-1] + gain[t] B[t] u[t], y[t] = C[t] h[t] + D u[t].
 *
 * The gain is delta ("euler") or (exp(delta A) - 1) / A ("zoh"); delta may be softplus(x + bias),
 * and y may be multiplied by silu(z). Lanes are channels. An item is one example and a group of
 * channels, in chunks of SELECT_STEPS steps: forward keeps the states at the starts of chunks,
 * backward computes those within a chunk again. A set of SELECT_STATES states is worked on at a
 * time, so that their factors and states over a chunk stay in the first-level cache.
 */
#include "elementary.h"

#define SELECT_STEPS 32
#define SELECT_STATES 4
#define SELECT_SET (SELECT_STEPS * SELECT_STATES)
#define SELECT_LOG2_E 1.44269504f

typedef struct {
  const float *u, *x, *A, *B, *C, *D, *bias, *z, *starts, *dout;
  float *y, *kept;                              /* written forward */
  float *du, *dx, *dB, *dC, *dz, *dA, *dD, *db; /* written backward */
  int64_t batch, length, channels, states, row, z_row, span, groups, zoh;
} select_task;

/* The memory of an item. Over states: [set of SELECT_STATES][block of VW channels][SELECT_STATES].
 * Over a chunk: [block][step], one step longer so that blocks do not share lines of the cache.
 */
typedef struct {
  vf *A, *rate, *inverse, *flat, *h, *g, *dA;
  vf *D, *bias, *dD, *db;
  vf *u, *delta, *y, *dy, *dz, *du, *ddelta;
  vf *factor, *gain, *state, *sum_B, *sum_C; /* [step][SELECT_STATES] of one set and block */
  float *B, *C;                              /* [set][step][SELECT_STATES] */
  int64_t blocks, sets, first, width;
} select_memory;

#define SELECT_ROW (SELECT_STEPS + 1)

/* Divides the scratch memory among the arrays; returns how many floats that takes. */
static size_t select_divide(const select_task *q, int backward, float *scratch, select_memory *m) {
  m->blocks = (smaller(q->span, q->channels) + VW - 1) / VW;
  m->sets = (q->states + SELECT_STATES - 1) / SELECT_STATES;
  size_t per_state = m->blocks * m->sets * SELECT_STATES, per_chunk = m->blocks * SELECT_ROW;
  size_t within = SELECT_SET, used = 0;
  vf *at = (vf *)scratch;
#define SELECT_TAKE(name, count) (m->name = at + used, used += (count))
  SELECT_TAKE(A, per_state), SELECT_TAKE(rate, per_state), SELECT_TAKE(inverse, per_state);
  SELECT_TAKE(flat, per_state), SELECT_TAKE(h, per_state);
  SELECT_TAKE(D, m->blocks), SELECT_TAKE(bias, m->blocks);
  SELECT_TAKE(u, per_chunk), SELECT_TAKE(delta, per_chunk), SELECT_TAKE(y, per_chunk);
  if (backward) {
    SELECT_TAKE(g, per_state), SELECT_TAKE(dA, per_state);
    SELECT_TAKE(dD, m->blocks), SELECT_TAKE(db, m->blocks);
    SELECT_TAKE(dy, per_chunk), SELECT_TAKE(dz, per_chunk);
    SELECT_TAKE(du, per_chunk), SELECT_TAKE(ddelta, per_chunk);
    SELECT_TAKE(factor, within), SELECT_TAKE(state, within + SELECT_STATES);
    SELECT_TAKE(sum_B, within), SELECT_TAKE(sum_C, within), SELECT_TAKE(gain, within);
  }
#undef SELECT_TAKE
  m->B = scratch + used * VW, m->C = m->B + m->sets * SELECT_SET;
  return used * VW + 2 * m->sets * SELECT_SET;
}

/* Where state n of block d stands. */
INLINE int64_t select_at(const select_memory *m, int64_t n, int64_t d) {
  return (n / SELECT_STATES * m->blocks + d) * SELECT_STATES + n % SELECT_STATES;
}

INLINE int64_t select_lanes(const select_memory *m, int64_t block) {
  return smaller(VW, m->width - block * VW);
}

/* Sets an item up: the state matrix by columns, 1 / A, and where A is as good as 0. */
static void select_begin(const select_task *q, int64_t group, select_memory *m) {
  m->first = group * q->span;
  m->width = smaller(q->span, q->channels - m->first);
  m->blocks = (m->width + VW - 1) / VW;
  for (int64_t d = 0; d < m->blocks; d++) {
    int64_t n_lanes = select_lanes(m, d), at = m->first + d * VW;
    m->D[d] = load_some(q->D + at, n_lanes);
    m->bias[d] = q->bias ? load_some(q->bias + at, n_lanes) : (vf){0};
    for (int64_t n = 0; n < m->sets * SELECT_STATES; n++) {
      float column[VW] = {0};
      for (int64_t k = 0; k < n_lanes && n < q->states; k++)
        column[k] = q->A[(at + k) * q->states + n];
      vf A = load(column);
      int64_t to = select_at(m, n, d);
      vi flat = magnitude(A) < splat(1e-20f);
      m->A[to] = A, m->rate[to] = A * SELECT_LOG2_E, m->h[to] = (vf){0};
      m->flat[to] = where(flat, splat(1.0f), (vf){0});
      m->inverse[to] = where(flat, (vf){0}, 1.0f / where(flat, splat(1.0f), A));
    }
  }
}

/* Rows of B or C as [set][step][SELECT_STATES], zeros behind the last state. */
static void select_pack(const select_task *q, const select_memory *m, const float *from, float *to,
                      int64_t steps) {
  for (int64_t s = 0; s < m->sets; s++)
    for (int64_t t = 0; t < steps; t++)
      for (int64_t j = 0; j < SELECT_STATES; j++) {
        int64_t n = s * SELECT_STATES + j;
        to[s * SELECT_SET + t * SELECT_STATES + j] = n < q->states ? from[t * q->row + n] : 0.0f;
      }
}

/* Reads a chunk: u, delta, B, C, and y as far as the skip makes it. */
static void select_read(const select_task *q, const select_memory *m, int64_t step, int64_t steps) {
  select_pack(q, m, q->B + step * q->row, m->B, steps);
  select_pack(q, m, q->C + step * q->row, m->C, steps);
  for (int64_t t = 0; t < steps; t++) {
    int64_t row = (step + t) * q->channels + m->first;
    for (int64_t d = 0; d < m->blocks; d++) {
      int64_t to = d * SELECT_ROW + t, at = row + d * VW, n = select_lanes(m, d);
      vf u = load_some(q->u + at, n), x = load_some(q->x + at, n);
      m->u[to] = u, m->y[to] = m->D[d] * u;
      m->delta[to] = q->bias ? softplus(x + m->bias[d]) : x;
    }
  }
}

/* The start of chunk k in the memory of states at starts; chunk 0 starts from zero. */
INLINE int64_t select_start(const select_task *q, int64_t b, int64_t k, int64_t n) {
  int64_t chunks = (q->length + SELECT_STEPS - 1) / SELECT_STEPS;
  return ((b * (chunks - 1) + k - 1) * q->states + n) * q->channels;
}

/* One set of states of one block over a chunk, forward; adds to y. */
INLINE void select_advance(const select_memory *m, int64_t set, int64_t d, int64_t steps,
                           const int zoh) {
  int64_t of = (set * m->blocks + d) * SELECT_STATES, within = d * SELECT_ROW;
  vf h[SELECT_STATES];
  const vf *A = m->rate + of, *inverse = m->inverse + of, *flat = m->flat + of;
  UNROLL for (int j = 0; j < SELECT_STATES; j++) h[j] = m->h[of + j];
  const vf *u = m->u + within, *delta = m->delta + within;
  const float *B = m->B + set * SELECT_SET, *C = m->C + set * SELECT_SET;
  vf *y = m->y + within;
  for (int64_t t = 0; t < steps; t++, B += SELECT_STATES, C += SELECT_STATES) {
    vf held = delta[t], drive = u[t], sum = y[t];
    if (!zoh) drive *= held;
    UNROLL for (int j = 0; j < SELECT_STATES; j++) {
      power e = exp2_parts(held * A[j]);
      vf in = drive * B[j];
      if (zoh) in *= less_one(e) * inverse[j] + held * flat[j];
      h[j] = whole(e) * h[j] + in;
      sum += h[j] * C[j];
    }
    y[t] = sum;
  }
  UNROLL for (int j = 0; j < SELECT_STATES; j++) m->h[of + j] = h[j];
}

static void select_item(const void *task, int64_t item, float *scratch) {
  select_task own = *(const select_task *)task, *q = &own;
  select_memory m;
  int64_t b = item / q->groups, L = q->length;
  select_divide(q, 0, scratch, &m);
  select_begin(q, item % q->groups, &m);
  int64_t example = b * L;
  q->u += example * q->channels, q->x += example * q->channels;
  q->B += example * q->row, q->C += example * q->row;
  for (int64_t step = 0; step < L; step += SELECT_STEPS) {
    int64_t steps = smaller(SELECT_STEPS, L - step);
    select_read(q, &m, step, steps);
    for (int64_t d = 0; d < m.blocks; d++) {
      int64_t n_lanes = select_lanes(&m, d), at = m.first + d * VW;
      for (int64_t n = 0; q->kept && step > 0 && n < q->states; n++)
        store_some(q->kept + select_start(q, b, step / SELECT_STEPS, n) + at,
                   m.h[select_at(&m, n, d)], n_lanes);
      for (int64_t set = 0; set < m.sets; set++) {
        if (q->zoh)
          select_advance(&m, set, d, steps, 1);
        else
          select_advance(&m, set, d, steps, 0);
      }
    }
    for (int64_t t = 0; t < steps; t++)
      for (int64_t d = 0; d < m.blocks; d++) {
        int64_t n_lanes = select_lanes(&m, d), at = m.first + d * VW;
        vf y = m.y[d * SELECT_ROW + t];
        if (q->z) {
          vf z = load_some(q->z + (example + step + t) * q->z_row + at, n_lanes);
          y *= z * sigmoid(z);
        }
        store_some(q->y + (example + step + t) * q->channels + at, y, n_lanes);
      }
  }
}

/* From the lanes of a where `half` is not in the lane's number, else from those of b. */
INLINE vf select_mixed(vf a, vf b, int half, int swap) {
#if defined(__clang__)
  vf to;
  UNROLL for (int l = 0; l < VW; l++) {
    int from = swap ? l ^ half : l;
    to[l] = l & half ? b[from] : a[from];
  }
  return to;
#else
  static const int32_t counted[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi lane;
  memcpy(&lane, counted, sizeof lane);
  vi from = lane + (lane & half) * (VW / half);
  if (swap) from ^= half;
  return __builtin_shuffle(a, b, from);
#endif
}

/* Lane k of the result is the sum of the lanes of v[k], by halves; v is used up. */
INLINE vf select_sums(vf *v) {
  UNROLL for (int half = VW / 2; half > 0; half /= 2) {
    UNROLL for (int k = 0; k < half; k++) v[k] =
        select_mixed(v[k], v[k + half], half, 0) + select_mixed(v[k], v[k + half], half, 1);
  }
  return v[0];
}

/* Sums over the lanes of [step][SELECT_STATES] go to the columns of `set` in rows of gradients. */
static void select_write_sums(const select_task *q, vf *sums, float *to, int64_t set,
                              int64_t steps) {
  float flat[SELECT_SET];
  for (int64_t k = 0; k < steps * SELECT_STATES; k += VW) store(flat + k, select_sums(sums + k));
  int64_t wanted = smaller(SELECT_STATES, q->states - set * SELECT_STATES);
  for (int64_t t = 0; t < steps; t++)
    for (int64_t j = 0; j < wanted; j++)
      to[t * q->states + set * SELECT_STATES + j] = flat[t * SELECT_STATES + j];
}

/* (delta exp(z) - gain) / A = delta^2 (z exp(z) - exp(z) + 1) / z^2 for z = delta A: the slope of
 * the gain in A, by its series where that cancels. */
INLINE vf select_gain_slope(vf held, vf A, vf inverse, vf factor, vf gain) {
  vf z = held * A;
  vf p = z * 2.48015873e-6f + 2.20458554e-5f;
  p = p * z + 1.73611111e-4f;
  p = p * z + 1.19047619e-3f;
  p = p * z + 6.94444444e-3f;
  p = p * z + 3.33333333e-2f;
  p = p * z + 0.125f;
  p = p * z + 0.333333333f;
  p = p * z + 0.5f;
  return where(magnitude(z) < splat(0.5f), p * held * held, (held * factor - gain) * inverse);
}

/* Computes the states of a chunk again and keeps them and their factors; adds to y and dC. */
INLINE void select_again(const select_memory *m, int64_t set, int64_t d, int64_t steps,
                         const int zoh) {
  int64_t of = (set * m->blocks + d) * SELECT_STATES, within = d * SELECT_ROW;
  const vf *A = m->rate + of, *inverse = m->inverse + of, *flat = m->flat + of;
  const vf *u = m->u + within, *delta = m->delta + within, *dy = m->dy + within;
  const float *B = m->B + set * SELECT_SET, *C = m->C + set * SELECT_SET;
  vf *y = m->y + within, *sum_C = m->sum_C;
  vf *factor = m->factor, *gains = m->gain, *state = m->state;
  vf h[SELECT_STATES];
  UNROLL for (int j = 0; j < SELECT_STATES; j++) state[j] = h[j] = m->h[of + j];
  for (int64_t t = 0; t < steps; t++, B += SELECT_STATES, C += SELECT_STATES) {
    vf held = delta[t], drive = u[t], slope = dy[t], sum = y[t];
    if (!zoh) drive *= held;
    state += SELECT_STATES;
    UNROLL for (int j = 0; j < SELECT_STATES; j++) {
      power e = exp2_parts(held * A[j]);
      vf a = whole(e), in = drive * B[j];
      factor[j] = a;
      if (zoh) {
        gains[j] = less_one(e) * inverse[j] + held * flat[j];
        in *= gains[j];
      }
      state[j] = h[j] = a * h[j] + in;
      sum += h[j] * C[j];
      sum_C[j] += slope * h[j];
    }
    y[t] = sum;
    factor += SELECT_STATES, gains += SELECT_STATES, sum_C += SELECT_STATES;
  }
}

/* Gradients of a chunk, last step first: g[t] = C[t] dy[t] + a[t+1] g[t+1] is that of h[t]. */
INLINE void select_back(const select_memory *m, int64_t set, int64_t d, int64_t steps,
                        const int zoh, const int weights) {
  int64_t of = (set * m->blocks + d) * SELECT_STATES, within = d * SELECT_ROW;
  const vf *A = m->A + of, *inverse = m->inverse + of;
  const vf *u = m->u + within, *delta = m->delta + within, *dy = m->dy + within;
  const float *B = m->B + set * SELECT_SET, *C = m->C + set * SELECT_SET;
  vf *du = m->du + within, *ddelta = m->ddelta + within;
  vf carry[SELECT_STATES], dA[SELECT_STATES];
  UNROLL for (int j = 0; j < SELECT_STATES; j++) carry[j] = m->g[of + j];
  UNROLL for (int j = 0; j < SELECT_STATES; j++) dA[j] = weights ? m->dA[of + j] : (vf){0};
  for (int64_t t = steps - 1; t >= 0; t--) {
    const vf *before = m->state + t * SELECT_STATES, *factor = m->factor + t * SELECT_STATES;
    const vf *gains = m->gain + t * SELECT_STATES;
    const float *B_t = B + t * SELECT_STATES, *C_t = C + t * SELECT_STATES;
    vf *sum_B = m->sum_B + t * SELECT_STATES;
    vf held = delta[t], u_t = u[t], drive = held * u_t, slope = dy[t];
    vf for_u = du[t], for_delta = ddelta[t];
    UNROLL for (int j = 0; j < SELECT_STATES; j++) {
      vf g = carry[j] + slope * C_t[j];
      carry[j] = g * factor[j];
      if (zoh) {
        vf gained = g * gains[j];
        sum_B[j] += gained * u_t;
        for_u += gained * B_t[j];
        for_delta += carry[j] * (A[j] * before[j] + u_t * B_t[j]);
        if (weights) {
          vf bend = select_gain_slope(held, A[j], inverse[j], factor[j], gains[j]);
          dA[j] += carry[j] * before[j] * held + g * (u_t * B_t[j]) * bend;
        }
      } else {
        vf w = carry[j] * before[j];
        sum_B[j] += g * drive;
        for_u += g * B_t[j];
        for_delta += w * A[j];
        if (weights) dA[j] += w * held;
      }
    }
    du[t] = for_u, ddelta[t] = for_delta;
  }
  UNROLL for (int j = 0; j < SELECT_STATES; j++) m->g[of + j] = carry[j];
  if (weights) {
    UNROLL for (int j = 0; j < SELECT_STATES; j++) m->dA[of + j] = dA[j];
  }
}

/* Reads what comes back to a chunk, through the gate if there is one. */
static void select_read_slopes(const select_task *q, const select_memory *m, int64_t step,
                               int64_t steps) {
  for (int64_t t = 0; t < steps; t++)
    for (int64_t d = 0; d < m->blocks; d++) {
      int64_t n_lanes = select_lanes(m, d), at = m->first + d * VW, to = d * SELECT_ROW + t;
      vf dy = load_some(q->dout + (step + t) * q->channels + at, n_lanes);
      if (q->z) {
        vf z = load_some(q->z + (step + t) * q->z_row + at, n_lanes), s = sigmoid(z);
        m->dz[to] = dy * silu_slope(z, s), dy *= z * s;
      }
      m->dy[to] = dy, m->du[to] = m->ddelta[to] = (vf){0};
    }
}

/* Writes the gradients of u, delta (or x) and z over a chunk; adds to those of D and the bias. */
static void select_write_slopes(const select_task *q, const select_memory *m, int64_t step,
                                int64_t steps) {
  for (int64_t t = 0; t < steps; t++)
    for (int64_t d = 0; d < m->blocks; d++) {
      int64_t n_lanes = select_lanes(m, d), from = d * SELECT_ROW + t, row = step + t;
      int64_t at = m->first + d * VW;
      vf u = m->u[from], delta = m->delta[from], dy = m->dy[from];
      vf du = m->du[from], ddelta = m->ddelta[from];
      if (!q->zoh) ddelta += du * u, du *= delta;
      du += dy * m->D[d];
      if (q->bias) ddelta *= softplus_slope(delta);
      m->dD[d] += dy * u, m->db[d] += ddelta;
      store_some(q->du + row * q->channels + at, du, n_lanes);
      store_some(q->dx + row * q->channels + at, ddelta, n_lanes);
      if (q->z) {
        vf dz = m->dz[from] * m->y[from];
        store_some(q->dz + row * q->channels + at, dz, n_lanes);
      }
    }
}

/* The states at the start of chunk k, as forward kept them. */
static void select_read_start(const select_task *q, const select_memory *m, int64_t b, int64_t k) {
  for (int64_t d = 0; d < m->blocks; d++)
    for (int64_t n = 0; n < q->states; n++) {
      const float *from = k ? q->starts + select_start(q, b, k, n) + m->first + d * VW : NULL;
      int64_t to = select_at(m, n, d);
      m->h[to] = from ? load_some(from, select_lanes(m, d)) : (vf){0};
    }
}

INLINE void select_chunk_back(const select_task *q, const select_memory *m, float *dB, float *dC,
                       int64_t steps, const int zoh, const int weights) {
  for (int64_t set = 0; set < m->sets; set++) {
    for (int64_t k = 0; k < SELECT_SET; k++) m->sum_B[k] = m->sum_C[k] = (vf){0};
    for (int64_t d = 0; d < m->blocks; d++) {
      select_again(m, set, d, steps, zoh);
      select_back(m, set, d, steps, zoh, weights);
    }
    select_write_sums(q, m->sum_B, dB, set, steps);
    select_write_sums(q, m->sum_C, dC, set, steps);
  }
}

/* Gradients of parameters, a part for every example: dA[b, n, d], dD[b, d], db[b, d]. */
static void select_write_parts(const select_task *q, const select_memory *m, int64_t b) {
  for (int64_t d = 0; d < m->blocks; d++) {
    int64_t n_lanes = select_lanes(m, d), at = m->first + d * VW;
    for (int64_t n = 0; q->dA && n < q->states; n++)
      store_some(q->dA + (b * q->states + n) * q->channels + at,
                 m->dA[select_at(m, n, d)], n_lanes);
    if (q->dD) store_some(q->dD + b * q->channels + at, m->dD[d], n_lanes);
    if (q->db) store_some(q->db + b * q->channels + at, m->db[d], n_lanes);
  }
}

static void select_back_item(const void *task, int64_t item, float *scratch) {
  select_task own = *(const select_task *)task, *q = &own;
  select_memory m;
  int64_t group = item % q->groups, b = item / q->groups, L = q->length;
  select_divide(q, 1, scratch, &m);
  select_begin(q, group, &m);
  for (int64_t k = 0; k < m.blocks * m.sets * SELECT_STATES; k++) m.g[k] = m.dA[k] = (vf){0};
  for (int64_t d = 0; d < m.blocks; d++) m.dD[d] = m.db[d] = (vf){0};
  int64_t rows = b * L, wide = rows * q->channels;
  q->u += wide, q->x += wide, q->dout += wide, q->du += wide, q->dx += wide;
  q->B += rows * q->row, q->C += rows * q->row;
  if (q->z) q->z += rows * q->z_row, q->dz += wide;
  int64_t part = (group * q->batch + b) * L * q->states;
  for (int64_t k = (L + SELECT_STEPS - 1) / SELECT_STEPS - 1; k >= 0; k--) {
    int64_t step = k * SELECT_STEPS, steps = smaller(SELECT_STEPS, L - step);
    float *dB = q->dB + part + step * q->states, *dC = q->dC + part + step * q->states;
    select_read_start(q, &m, b, k);
    select_read(q, &m, step, steps);
    select_read_slopes(q, &m, step, steps);
    if (q->zoh && q->dA)
      select_chunk_back(q, &m, dB, dC, steps, 1, 1);
    else if (q->zoh)
      select_chunk_back(q, &m, dB, dC, steps, 1, 0);
    else if (q->dA)
      select_chunk_back(q, &m, dB, dC, steps, 0, 1);
    else
      select_chunk_back(q, &m, dB, dC, steps, 0, 0);
    select_write_slopes(q, &m, step, steps);
  }
  select_write_parts(q, &m, b);
}

/* x is delta, or what becomes delta = softplus(x + bias) if there is a bias. B, C and z may be
 * columns of wider rows: `row` and `z_row` floats apart. `kept` (batch, chunks - 1, states,
 * channels), bias and z may be NULL. Every group is `span` channels, a multiple of 64. */
EXPORT int selective_scan(const float *u, const float *x, const float *A, const float *B,
                          const float *C, const float *D, const float *bias, const float *z,
                          float *y, float *kept, int64_t batch, int64_t length, int64_t channels,
                          int64_t states, int64_t row, int64_t z_row, int64_t span, int64_t zoh,
                          int64_t threads) {
  select_task task = {.u = u, .x = x, .A = A, .B = B, .C = C, .D = D, .bias = bias, .z = z};
  task.y = y, task.kept = kept, task.zoh = zoh;
  task.batch = batch, task.length = length, task.channels = channels, task.states = states;
  task.row = row, task.z_row = z_row, task.span = span;
  task.groups = (channels + span - 1) / span;
  select_memory m;
  size_t floats = select_divide(&task, 0, NULL, &m);
  return for_each(batch * task.groups, threads, floats, select_item, &task);
}

/* dB and dC are (groups, batch, length, states), to be summed over the groups; dA (batch, states,
 * channels), dD and db (batch, channels), to be summed over the batch, or NULL where not wanted. */
EXPORT int selective_scan_back(const float *u, const float *x, const float *A, const float *B,
                               const float *C, const float *D, const float *bias, const float *z,
                               const float *starts, const float *dout, float *du, float *dx,
                               float *dB, float *dC, float *dz, float *dA, float *dD, float *db,
                               int64_t batch, int64_t length, int64_t channels, int64_t states,
                               int64_t row, int64_t z_row, int64_t span, int64_t zoh,
                               int64_t threads) {
  select_task task = {.u = u, .x = x, .A = A, .B = B, .C = C, .D = D, .bias = bias, .z = z};
  task.starts = starts, task.dout = dout, task.du = du, task.dx = dx, task.dB = dB, task.dC = dC;
  task.dz = dz, task.dA = dA, task.dD = dD, task.db = db, task.zoh = zoh;
  task.batch = batch, task.length = length, task.channels = channels, task.states = states;
  task.row = row, task.z_row = z_row, task.span = span;
  task.groups = (channels + span - 1) / span;
  select_memory m;
  size_t floats = select_divide(&task, 1, NULL, &m);
  return for_each(batch * task.groups, threads, floats, select_back_item, &task);
}
