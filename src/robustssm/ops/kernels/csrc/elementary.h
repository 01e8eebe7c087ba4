/* Exponential, softplus and sigmoid of vectors, by polynomials that were fitted for them.
 *
 * NaN gives NaN and infinities give what they give in libm; results that would be subnormal are 0.
 * Largest relative errors, over a million arguments at each of the three levels: exp2 and exp
 * 1.0e-7, softplus 2.6e-7, its slope 1.2e-7, sigmoid 1.5e-7.
 */
#ifndef ROBUSTSSM_ELEMENTARY_H
#define ROBUSTSSM_ELEMENTARY_H

typedef uint32_t vu __attribute__((vector_size(4 * VW), may_alias));

INLINE vf where(vi condition, vf yes, vf no) {
  return (vf)(((vu)condition & (vu)yes) | (~(vu)condition & (vu)no));
}

/* The largest element; a NaN counts only in the first place. */
INLINE float most_of(vf v) {
  vf other;
#define MOST_OF_BOTH(n) other = TURNED(v, n), v = where(other > v, other, v)
#if VW == 16
  MOST_OF_BOTH(8);
#endif
#if VW >= 8
  MOST_OF_BOTH(4);
#endif
  MOST_OF_BOTH(2);
  MOST_OF_BOTH(1);
#undef MOST_OF_BOTH
  return v[0];
}

/* Where x is NaN it stays: these instructions return their second operand then, as do comparisons.
 * GCC does not find them in the expressions of the last case. */
#if defined(__AVX512F__) && VW == 16
#include <immintrin.h>
INLINE vf at_least(vf x, float low) { return (vf)_mm512_max_ps((__m512)splat(low), (__m512)x); }
INLINE vf at_most(vf x, float high) { return (vf)_mm512_min_ps((__m512)splat(high), (__m512)x); }
#elif defined(__AVX__) && VW == 8
#include <immintrin.h>
INLINE vf at_least(vf x, float low) { return (vf)_mm256_max_ps((__m256)splat(low), (__m256)x); }
INLINE vf at_most(vf x, float high) { return (vf)_mm256_min_ps((__m256)splat(high), (__m256)x); }
#elif defined(__SSE2__) && VW == 4
INLINE vf at_least(vf x, float low) { return (vf)_mm_max_ps((__m128)splat(low), (__m128)x); }
INLINE vf at_most(vf x, float high) { return (vf)_mm_min_ps((__m128)splat(high), (__m128)x); }
#else
INLINE vf at_least(vf x, float low) { return where(x < splat(low), splat(low), x); }
INLINE vf at_most(vf x, float high) { return where(x > splat(high), splat(high), x); }
#endif

INLINE vf magnitude(vf x) { return (vf)((vu)x & 0x7fffffffu); }

/* A power of two in parts: exp = half * (2 + growth), with half = 2^(n-1), |growth| < 0.9. */
typedef struct {
  vf half, growth;
} power;

/* Adding it rounds to a whole number, which then stands in the low bits. */
#define ROUNDING 12582912.0f

/* 2^(n-1) from n + ROUNDING, for n in [-126, 128]; 0 for n = -126. */
INLINE vf half_power(vf shifted) { return (vf)(((vu)shifted << 23) + (126u << 23)); }

INLINE power exp2_parts(vf x) {
  x = at_most(at_least(x, -126.0f), 128.0f);
  vf shifted = x + ROUNDING, f = x - (shifted - ROUNDING);
  vf p = f * 0.000308070216f + 0.00267814706f;
  p = p * f + 0.0192364752f;
  p = p * f + 0.111007147f;
  p = p * f + 0.480452984f;
  p = p * f + 1.386294364f;
  return (power){half_power(shifted), p * f};
}

INLINE power exp_parts(vf x) {
  x = at_most(at_least(x, -87.4f), 89.0f);
  vf shifted = x * 1.44269504f + ROUNDING, n = shifted - ROUNDING;
  vf f = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
  vf p = f * 0.00277777436f + 0.0167381521f;
  p = p * f + 0.0833342746f;
  p = p * f + 0.333330124f;
  p = p * f + 0.99999994f;
  p = p * f + 2.0f;
  return (power){half_power(shifted), p * f};
}

INLINE vf whole(power e) { return e.half * (e.growth + 2.0f); }

/* The power less 1, without cancellation near 1. */
INLINE vf less_one(power e) { return e.half * e.growth + (e.half * 2.0f - 1.0f); }

INLINE vf vexp2(vf x) { return whole(exp2_parts(x)); }

INLINE vf vexp(vf x) { return whole(exp_parts(x)); }

/* log(1 + e) for e in [0, 1], as 2 artanh(e / (2 + e)). */
INLINE vf log1p_unit(vf e) {
  vf s = e / (e + 2.0f), w = s * s;
  vf p = w * 0.281783313f + 0.279606044f;
  p = p * w + 0.400249094f;
  p = p * w + 0.66666317f;
  p = p * w + 2.0f;
  return s * p;
}

INLINE vf softplus(vf x) { return at_least(x, 0.0f) + log1p_unit(vexp(-magnitude(x))); }

/* The slope of softplus, from its value: 1 - exp(-value). */
INLINE vf softplus_slope(vf value) { return -less_one(exp_parts(-value)); }

INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

/* Slope of x sigmoid(x), given s = sigmoid(x). */
INLINE vf silu_slope(vf x, vf s) { return s + x * s * (1.0f - s); }

#endif
