/* Softmax attention, a block of queries against all keys at a time; weights are made again on the
 * way back. y = softmax(q k^T + bias) v for q, k, v and y (batch, time, heads, width), bias (1 or heads,
 * queries, keys). Products are matrix.h's.
 */
#include <math.h>

#define QUERIES 96 /* in a block */

typedef struct {
  const float *q, *k, *v, *bias, *dy;
  float *y, *dq, *dk, *dv, *dbias; /* dbias (parts, 1 or heads, queries, keys) or NULL */
  int64_t batch, heads, queries, keys, features, values, biases, parts;
} attention_task;

/* Keys of a block of scores: whole vectors, and a row is no multiple of 4 KiB. */
INLINE int64_t score_row(int64_t keys) { return whole_vectors(keys) + VW; }

/* Scores to weights, row by row, zeros behind the last key. NaN spreads over its row. */
static void softmax_rows(float *s, int64_t rows, int64_t keys) {
  int64_t row = score_row(keys), width = whole_vectors(keys), last = width - VW;
  vi behind = numbers() >= (int32_t)(keys - last);
  for (int64_t i = 0; i < rows; i++, s += row) {
    store(s + last, where(behind, splat(-INFINITY), load(s + last)));
    vf most = splat(-INFINITY), total = {0};
    for (int64_t j = 0; j < width; j += VW) {
      vf x = load(s + j);
      most = where(x > most, x, most);
    }
    float peak = most_of(most);
    for (int64_t j = 0; j < width; j += VW) {
      vf e = whole(exp_parts(load(s + j) - peak));
      if (j == last) e = where(behind, splat(0), e);
      store(s + j, e);
      total += e;
    }
    float scale = 1 / sum_of(total);
    for (int64_t j = 0; j < width; j += VW) store(s + j, load(s + j) * scale);
    store(s + width, splat(0));
  }
}

/* Where an example's head begins, and the step from one of its rows to the next. */
INLINE int64_t head_of(const attention_task *p, int64_t b, int64_t h, int64_t time, int64_t width) {
  return (b * time * p->heads + h) * width;
}

static void score(const attention_task *p, int64_t b, int64_t h, int64_t t, int64_t rows,
                  const float *packed_k, float *s) {
  int64_t E = p->features, own = p->biases > 1 ? h : 0;
  multiply(&(product){
      .a = p->q + head_of(p, b, h, p->queries, E) + t * p->heads * E, .a_row = p->heads * E,
      .a_step = 1, .b = packed_k,
      .add = p->bias ? p->bias + (own * p->queries + t) * p->keys : NULL, .add_row = p->keys,
      .c = s, .c_row = score_row(p->keys), .rows = rows, .depth = E, .columns = p->keys});
  softmax_rows(s, rows, p->keys);
}

static void attention_item(const void *task, int64_t item, float *scratch) {
  const attention_task *p = task;
  int64_t b = item / p->heads, h = item % p->heads, E = p->features, V = p->values, K = p->keys;
  float *packed_k = scratch, *packed_v = packed_k + E * whole_vectors(K);
  float *s = packed_v + K * whole_vectors(V);
  pack_panels(p->k + head_of(p, b, h, K, E), 1, p->heads * E, E, K, packed_k);
  pack_panels(p->v + head_of(p, b, h, K, V), p->heads * V, 1, K, V, packed_v);
  for (int64_t t = 0; t < p->queries; t += QUERIES) {
    int64_t rows = smaller(QUERIES, p->queries - t);
    score(p, b, h, t, rows, packed_k, s);
    multiply(&(product){
        .a = s, .a_row = score_row(K), .a_step = 1, .b = packed_v,
        .c = p->y + head_of(p, b, h, p->queries, V) + t * p->heads * V, .c_row = p->heads * V,
        .rows = rows, .depth = K, .columns = V});
  }
}

EXPORT int attention(const float *q, const float *k, const float *v, const float *bias, float *y,
                     int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t features,
                     int64_t values, int64_t biases, int64_t threads) {
  attention_task task = {.q = q, .k = k, .v = v, .bias = bias, .y = y, .batch = batch,
                         .heads = heads, .queries = queries, .keys = keys, .features = features,
                         .values = values, .biases = biases};
  int64_t scratch = features * whole_vectors(keys) + keys * whole_vectors(values);
  scratch += QUERIES * score_row(keys);
  return for_each(batch * heads, threads, (size_t)scratch, attention_item, &task);
}

/* Adds left^T right to c (columns of left, width): left (rows, left_row), right (rows, width). */
static void add_transposed(const float *left, int64_t left_row, const float *right, float *c,
                           int64_t rows, int64_t columns, int64_t width) {
  multiply(&(product){.a = left, .a_row = 1, .a_step = left_row, .b = right, .b_row = width,
                      .add = c, .add_row = width, .c = c, .c_row = width,
                      .rows = columns, .depth = rows, .columns = width});
}

/* Rows, side by side and padded to whole vectors. */
static void gather_rows(const float *from, int64_t step, int64_t rows, int64_t width, float *to) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < width; j += VW)
      store(to + t * whole_vectors(width) + j, load_some(from + t * step + j, width - j));
}

static void scatter_rows(const float *from, int64_t step, int64_t rows, int64_t width, float *to) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < width; j += VW)
      store_some(to + t * step + j, load(from + t * whole_vectors(width) + j), width - j);
}

/* dS = P (dP - sum over keys of P dP), in the place of dP. */
static void softmax_slopes(const float *p, float *dp, int64_t rows, int64_t keys, float *dbias) {
  int64_t row = score_row(keys), width = whole_vectors(keys);
  for (int64_t i = 0; i < rows; i++, p += row, dp += row) {
    vf total = {0};
    for (int64_t j = keys; j < width; j++) dp[j] = 0;
    for (int64_t j = 0; j < width; j += VW) total += load(p + j) * load(dp + j);
    float mean = sum_of(total);
    for (int64_t j = 0; j < width; j += VW) store(dp + j, load(p + j) * (load(dp + j) - mean));
    if (dbias)
      for (int64_t j = 0; j < keys; j++) dbias[i * keys + j] += dp[j];
  }
}

static void attention_back(const attention_task *p, int64_t part, int64_t b, int64_t h,
                           float *scratch) {
  int64_t E = p->features, V = p->values, K = p->keys, H = p->heads, row = score_row(K);
  int64_t wide_e = whole_vectors(E), wide_v = whole_vectors(V), own = p->biases > 1 ? h : 0;
  float *k_across = scratch, *k_down = k_across + E * whole_vectors(K);
  float *v_across = k_down + K * wide_e;
  float *dk = v_across + V * whole_vectors(K), *dv = dk + K * wide_e, *s = dv + K * wide_v;
  float *ds = s + QUERIES * row, *q = ds + QUERIES * row, *dy = q + QUERIES * wide_e;
  const float *k = p->k + head_of(p, b, h, K, E);
  pack_panels(k, 1, H * E, E, K, k_across);
  pack_panels(k, H * E, 1, K, E, k_down);
  pack_panels(p->v + head_of(p, b, h, K, V), 1, H * V, V, K, v_across);
  memset(dk, 0, (size_t)(K * (wide_e + wide_v)) * sizeof(float));
  for (int64_t t = 0; t < p->queries; t += QUERIES) {
    int64_t rows = smaller(QUERIES, p->queries - t);
    int64_t at_q = head_of(p, b, h, p->queries, E) + t * H * E;
    gather_rows(p->q + at_q, H * E, rows, E, q);
    gather_rows(p->dy + head_of(p, b, h, p->queries, V) + t * H * V, H * V, rows, V, dy);
    score(p, b, h, t, rows, k_across, s);
    multiply(&(product){.a = dy, .a_row = wide_v, .a_step = 1, .b = v_across, .c = ds, .c_row = row,
                        .rows = rows, .depth = V, .columns = K});
    softmax_slopes(s, ds, rows, K,
                   p->dbias ? p->dbias + ((part * p->biases + own) * p->queries + t) * K : NULL);
    add_transposed(s, row, dy, dv, rows, K, wide_v);
    add_transposed(ds, row, q, dk, rows, K, wide_e);
    multiply(&(product){.a = ds, .a_row = row, .a_step = 1, .b = k_down,
                        .c = p->dq + at_q, .c_row = H * E,
                        .rows = rows, .depth = K, .columns = E});
  }
  scatter_rows(dk, H * E, K, E, p->dk + head_of(p, b, h, K, E));
  scatter_rows(dv, H * V, K, V, p->dv + head_of(p, b, h, K, V));
}

/* Some examples; all heads of them where heads share a bias, else one. */
static void attention_back_item(const void *task, int64_t item, float *scratch) {
  const attention_task *p = task;
  int64_t part = item / p->biases, only = item % p->biases;
  for (int64_t b = part * p->batch / p->parts; b < (part + 1) * p->batch / p->parts; b++)
    for (int64_t h = 0; h < p->heads; h++)
      if (p->biases == 1 || h == only) attention_back(p, part, b, h, scratch);
}

EXPORT int attention_gradients(const float *q, const float *k, const float *v, const float *bias,
                               const float *dy, float *dq, float *dk, float *dv, float *dbias,
                               int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                               int64_t features, int64_t values, int64_t biases, int64_t parts,
                               int64_t threads) {
  attention_task task = {q, k, v, bias, dy, NULL, dq, dk, dv, dbias,
                         batch, heads, queries, keys, features, values, biases, parts};
  int64_t wide_k = whole_vectors(keys), wide_e = whole_vectors(features);
  int64_t wide_v = whole_vectors(values);
  int64_t scratch = (features + values) * wide_k + keys * (2 * wide_e + wide_v);
  scratch += QUERIES * (2 * score_row(keys) + wide_e + wide_v);
  return for_each(parts * biases, threads, (size_t)scratch, attention_back_item, &task);
}
