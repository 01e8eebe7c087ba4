/* Vectors of VW floats in GCC's and Clang's extension, and loops over work items on threads.
 *
 * One element of a vector is one channel (or state) throughout, so arithmetic on vectors is
 * arithmetic on independent sequences. The widths: 16 for x86-64-v4, 8 for x86-64-v3, else 4.
 */
#ifndef ROBUSTSSM_VECTOR_H
#define ROBUSTSSM_VECTOR_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#ifndef VW
#error "define VW, the number of floats in a vector, before including this file"
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vf __attribute__((vector_size(4 * VW), may_alias));
typedef float vf_unaligned __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VW), may_alias));

/* The elements of a, then those of b, by number; all numbers are constants. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE vf splat(float a) { return a - (vf){0}; }

INLINE vf load(const float *p) { return (vf) * (const vf_unaligned *)p; }

INLINE void store(float *p, vf v) { *(vf_unaligned *)p = (vf_unaligned)v; }

/* The first n floats, zeros behind them: the last channels of a number that VW does not divide. */
INLINE vf load_some(const float *p, int64_t n) {
  if (__builtin_expect(n >= VW, 1)) return load(p);
  vf v = {0};
  for (int64_t k = 0; k < n; k++) v[k] = p[k];
  return v;
}

INLINE void store_some(float *p, vf v, int64_t n) {
  if (__builtin_expect(n >= VW, 1)) {
    store(p, v);
    return;
  }
  for (int64_t k = 0; k < n; k++) p[k] = v[k];
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The vector with element k + n at place k, from the front again behind the end. A constant
 * shuffle: a loop over elements goes through memory, and costs more than the sum of a short row. */
#if VW == 16
#define TURNED(v, n)                                                                   \
  SHUFFLED(v, v, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9, n + 10, \
           n + 11, n + 12, n + 13, n + 14, n + 15)
#elif VW == 8
#define TURNED(v, n) SHUFFLED(v, v, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7)
#else
#define TURNED(v, n) SHUFFLED(v, v, n, n + 1, n + 2, n + 3)
#endif

/* 0, 1, ..., VW - 1. */
INLINE vi numbers(void) {
  vi v = {0};
  for (int k = 0; k < VW; k++) v[k] = k;
  return v;
}

/* The sum of a vector's elements, by halves: the same order at every call. */
INLINE float sum_of(vf v) {
#if VW == 16
  v += TURNED(v, 8);
#endif
#if VW >= 8
  v += TURNED(v, 4);
#endif
  v += TURNED(v, 2);
  v += TURNED(v, 1);
  return v[0];
}

/* Subnormal numbers cost a hundred times what others do, and decaying states are full of them. */
INLINE unsigned flush_subnormals(void) {
#if defined(__SSE2__)
  unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  return before;
#else
  return 0;
#endif
}

INLINE void restore_subnormals(unsigned before) {
#if defined(__SSE2__)
  _mm_setcsr(before);
#else
  (void)before;
#endif
}

/* Calls work(task, item, scratch) for every item. Items write to places of their own, so the bytes
 * that come out do not depend on the number of threads. Returns 0, or 1 if memory ran out. */
typedef void work_fn(const void *task, int64_t item, float *scratch);

static int for_each(int64_t items, int64_t threads, size_t scratch_floats, work_fn *work,
                    const void *task) {
  int failed = 0;
  size_t bytes = (scratch_floats * sizeof(float) + 127) / 64 * 64;
  if (threads > items) threads = items;
  if (threads < 1) threads = 1;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)threads) reduction(| : failed) if (threads > 1)
#endif
  {
    float *scratch = aligned_alloc(64, bytes);
    unsigned before = flush_subnormals();
    if (scratch == NULL) failed = 1;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
    for (int64_t item = 0; item < items; item++)
      if (scratch != NULL) work(task, item, scratch);
    restore_subnormals(before);
    free(scratch);
  }
  return failed;
}

#endif
