/* Products of matrices: a tile of TILE_ROWS rows and up to TILE_VECTORS vectors of columns stays in
 * registers while the inner index runs. Each sum is taken in the order of that index, so an entry
 * depends on its row and its column alone, however many others there are.
 */
#define TILE_ROWS 6
#if VW == 16
#define TILE_VECTORS 4
#else
#define TILE_VECTORS 2
#endif
#define TILE_COLUMNS (TILE_VECTORS * VW)
#define DEPTH 128 /* of a product before its sums go to memory: a panel of it stays in L1 */

INLINE int64_t whole_vectors(int64_t n) { return (n + VW - 1) / VW * VW; }

/* sum[i, j] += sum over k of a[i][k a_step] b[k b_step + j], in the order of k. */
INLINE void multiply_tile(const float *const a[TILE_ROWS], int64_t a_step, const float *b,
                          int64_t b_step, int64_t depth, vf sum[TILE_ROWS][TILE_VECTORS],
                          const int n) {
  for (int64_t k = 0; k < depth; k++) {
    vf column[TILE_VECTORS];
    UNROLL for (int j = 0; j < n; j++) column[j] = load(b + k * b_step + j * VW);
    UNROLL for (int i = 0; i < TILE_ROWS; i++) {
      vf row = splat(a[i][k * a_step]);
      UNROLL for (int j = 0; j < n; j++) sum[i][j] += row * column[j];
    }
  }
}

/* a0 b0 a1 b1 ... of the first or the second halves of a and b. */
#if VW == 16
#define PAIRS(a, b, h)                                                                      \
  SHUFFLED(a, b, h, h + 16, h + 1, h + 17, h + 2, h + 18, h + 3, h + 19, h + 4, h + 20, h + 5, \
           h + 21, h + 6, h + 22, h + 7, h + 23)
#elif VW == 8
#define PAIRS(a, b, h) SHUFFLED(a, b, h, h + 8, h + 1, h + 9, h + 2, h + 10, h + 3, h + 11)
#else
#define PAIRS(a, b, h) SHUFFLED(a, b, h, h + 4, h + 1, h + 5)
#endif

/* Rows become columns: a perfect shuffle of all rows, as often as VW is halved. */
INLINE void transpose(vf m[VW]) {
  UNROLL for (int step = 1; step < VW; step *= 2) {
    vf pairs[VW];
    UNROLL for (int i = 0; i < VW / 2; i++) {
      pairs[2 * i] = PAIRS(m[i], m[i + VW / 2], 0);
      pairs[2 * i + 1] = PAIRS(m[i], m[i + VW / 2], VW / 2);
    }
    UNROLL for (int i = 0; i < VW; i++) m[i] = pairs[i];
  }
}

/* Panels of TILE_COLUMNS columns of m[k down + j across], (depth, columns), each with its rows one
 * after the other; zeros behind the last column. Down or across is 1. */
static void pack_panels(const float *m, int64_t down, int64_t across, int64_t depth,
                        int64_t columns, float *to) {
  for (int64_t first = 0; first < columns; first += TILE_COLUMNS) {
    int64_t n = smaller(TILE_COLUMNS, whole_vectors(columns - first));
    for (int64_t j = 0; j < n; j += VW) {
      const float *from = m + (first + j) * across;
      int64_t given = smaller(VW, columns - first - j);
      for (int64_t k = 0; across == 1 && k < depth; k++)
        store(to + k * n + j, load_some(from + k * down, given));
      for (int64_t k = 0; across != 1 && k < depth; k += VW) {
        vf block[VW];
        for (int64_t i = 0; i < VW; i++)
          block[i] = i < given ? load_some(from + k + i * across, depth - k) : (vf){0};
        transpose(block);
        for (int64_t i = 0; i < smaller(VW, depth - k); i++) store(to + (k + i) * n + j, block[i]);
      }
    }
    to += depth * n;
  }
}

/* c (rows, columns) = add + a b + bias, where `add` (which may be c) and bias may be NULL. */
typedef struct {
  const float *a, *b, *add, *bias;
  float *c;
  int64_t a_row, a_step;         /* from row to row of a, and from column to column */
  int64_t b_row, add_row, c_row; /* b_row 0: b is in panels; else VW divides `columns` */
  int64_t rows, depth, columns;
} product;

/* The columns from `first` on, n vectors, all of them whole or not, with the inner index from k0 to
 * k1. */
INLINE void multiply_panel(const product *p, int64_t first, int64_t k0, int64_t k1, const int n,
                           const int whole) {
  int64_t b_step = p->b_row ? p->b_row : n * VW, width = p->columns - first;
  const float *b = p->b + (p->b_row ? first : first * p->depth) + k0 * b_step;
  const float *add = k0 ? p->c : p->add, *bias = k1 == p->depth ? p->bias : NULL;
  int64_t add_row = k0 ? p->c_row : p->add_row;
  for (int64_t i0 = 0; i0 < p->rows; i0 += TILE_ROWS) {
    const float *a[TILE_ROWS]; /* rows beyond the last repeat it and are not stored */
    vf sum[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < TILE_ROWS; i++) {
      a[i] = p->a + smaller(i0 + i, p->rows - 1) * p->a_row + k0 * p->a_step;
      UNROLL for (int j = 0; j < n; j++) sum[i][j] = (vf){0};
    }
    if (add)
      UNROLL for (int i = 0; i < TILE_ROWS; i++) {
        const float *from = add + smaller(i0 + i, p->rows - 1) * add_row + first;
        UNROLL for (int j = 0; j < n; j++)
          sum[i][j] = load_some(from + j * VW, whole ? VW : width - j * VW);
      }
    multiply_tile(a, p->a_step, b, b_step, k1 - k0, sum, n);
    if (bias)
      UNROLL for (int j = 0; j < n; j++) {
        vf more = load_some(bias + first + j * VW, whole ? VW : width - j * VW);
        UNROLL for (int i = 0; i < TILE_ROWS; i++) sum[i][j] += more;
      }
    float *to = p->c + i0 * p->c_row + first;
    UNROLL for (int i = 0; i < TILE_ROWS; i++) {
      if (i0 + i >= p->rows) break;
      UNROLL for (int j = 0; j < n; j++)
        store_some(to + i * p->c_row + j * VW, sum[i][j], whole ? VW : width - j * VW);
    }
  }
}

static void multiply(const product *p) {
  for (int64_t first = 0; first < p->columns; first += TILE_COLUMNS) {
    int64_t k0 = 0, width = smaller(TILE_COLUMNS, p->columns - first);
    do { /* once even if there is nothing to sum */
      int64_t k1 = smaller(k0 + DEPTH, p->depth);
#define PANEL(N)                                                          \
  if (width == (N) * VW) multiply_panel(p, first, k0, k1, N, 1);          \
  else if (whole_vectors(width) == (N) * VW) multiply_panel(p, first, k0, k1, N, 0)
      PANEL(TILE_VECTORS);
      else PANEL(1);
#if TILE_VECTORS > 2
      else PANEL(2);
      else PANEL(3);
#endif
      k0 = k1;
    } while (k0 < p->depth);
  }
}

/* Linear maps: y = x m + bias, and what the gradient of m needs. */
#define DENSE_ROWS 96 /* that one work item takes */

static float *packed_matrix(const float *m, int64_t down, int64_t across, int64_t depth,
                            int64_t columns) {
  size_t bytes = (size_t)(depth * whole_vectors(columns)) * sizeof(float);
  float *packed = aligned_alloc(64, (bytes + 127) / 64 * 64);
  if (packed != NULL) pack_panels(m, down, across, depth, columns, packed);
  return packed;
}

static void dense_item(const void *task, int64_t item, float *scratch) {
  (void)scratch;
  product p = *(const product *)task;
  int64_t first = item * DENSE_ROWS;
  p.rows = smaller(DENSE_ROWS, p.rows - first);
  p.a += first * p.a_row, p.c += first * p.c_row;
  multiply(&p);
}

/* y (rows, columns) = x (rows, depth), its rows `x_row` apart, times m[k down + j across] (depth,
 * columns), plus bias unless NULL. */
EXPORT int dense(const float *x, const float *m, const float *bias, float *y, int64_t rows,
                 int64_t depth, int64_t columns, int64_t x_row, int64_t down, int64_t across,
                 int64_t threads) {
  float *packed = packed_matrix(m, down, across, depth, columns);
  if (packed == NULL) return 1;
  product task = {.a = x, .b = packed, .bias = bias, .c = y, .a_row = x_row, .a_step = 1,
                  .c_row = columns, .rows = rows, .depth = depth, .columns = columns};
  int64_t items = (rows + DENSE_ROWS - 1) / DENSE_ROWS;
  int failed = for_each(items, threads, 0, dense_item, &task);
  free(packed);
  return failed;
}

typedef struct {
  const float *x, *g;
  float *dw, *db, *more; /* db NULL if not wanted; more: dw and db of the parts but the first */
  int64_t rows, inputs, outputs, x_row, g_row, parts;
} dense_task;

INLINE int64_t weights_of(const dense_task *q) { return q->outputs * (q->inputs + 1); }

/* Some rows, DEPTH at a time. */
static void dense_gradients_item(const void *task, int64_t part, float *scratch) {
  const dense_task *q = task;
  int64_t I = q->inputs, O = q->outputs, end = (part + 1) * q->rows / q->parts;
  float *dw = part ? q->more + (part - 1) * weights_of(q) : q->dw;
  float *db = q->db == NULL ? NULL : part ? dw + O * I : q->db;
  if (db != NULL) memset(db, 0, (size_t)O * sizeof(float));
  if (q->rows == 0) memset(dw, 0, (size_t)(O * I) * sizeof(float));
  for (int64_t first = part * q->rows / q->parts, start = first; first < end; first += DEPTH) {
    int64_t depth = smaller(DEPTH, end - first);
    const float *g = q->g + first * q->g_row;
    pack_panels(q->x + first * q->x_row, q->x_row, 1, depth, I, scratch);
    multiply(&(product){.a = g, .a_row = 1, .a_step = q->g_row, .b = scratch, .c = dw, .c_row = I,
                        .add = first == start ? NULL : dw, .add_row = I,
                        .rows = O, .depth = depth, .columns = I});
    for (int64_t o = 0; db != NULL && o < O; o += VW) {
      vf sum = load_some(db + o, O - o);
      for (int64_t k = 0; k < depth; k++) sum += load_some(g + k * q->g_row + o, O - o);
      store_some(db + o, sum, O - o);
    }
  }
}

#define SUMMED 4096 /* floats of all parts that one work item adds, in the order of the parts */

static void dense_sum_item(const void *task, int64_t item, float *scratch) {
  (void)scratch;
  const dense_task *q = task;
  int64_t weights = q->outputs * q->inputs, first = item * SUMMED;
  for (int64_t part = 0; part + 1 < q->parts; part++) {
    const float *more = q->more + part * weights_of(q);
    for (int64_t k = first; k < smaller(first + SUMMED, weights); k++) q->dw[k] += more[k];
    if (item == 0 && q->db != NULL)
      for (int64_t o = 0; o < q->outputs; o++) q->db[o] += more[weights + o];
  }
}

/* dw (outputs, inputs) = g^T x and db (outputs) = the sum of g over rows, or NULL, from g (rows,
 * outputs) and x (rows, inputs); as many sums as there are parts, then their sum. */
EXPORT int dense_gradients(const float *x, const float *g, float *dw, float *db, int64_t rows,
                           int64_t inputs, int64_t outputs, int64_t x_row, int64_t g_row,
                           int64_t parts, int64_t threads) {
  dense_task task = {x, g, dw, db, NULL, rows, inputs, outputs, x_row, g_row, parts};
  if (parts > 1) {
    task.more = malloc((size_t)((parts - 1) * weights_of(&task)) * sizeof(float));
    if (task.more == NULL) return 1;
  }
  size_t scratch = (size_t)(DEPTH * whole_vectors(inputs));
  int failed = for_each(parts, threads, scratch, dense_gradients_item, &task);
  int64_t items = (outputs * inputs + SUMMED - 1) / SUMMED;
  if (parts > 1 && !failed) failed = for_each(items, threads, 0, dense_sum_item, &task);
  free(task.more);
  return failed;
}
