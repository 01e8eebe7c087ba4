/* GELU with the normal distribution itself: x Phi(x), and its slope Phi(x) + x phi(x).
 *
 * Phi(-|x|) = exp(-x^2 / 2) erfcx(|x| / sqrt 2) / 2, and erfcx(z) = t p(t) with t = 1 / (1 + 0.3 z):
 * p is a polynomial fitted to 2e-8 for z in [0, 10], beyond which the exponential is 0 in float32.
 */
#include "elementary.h"

typedef struct {
  vf below, density; /* Phi(-|x|) and phi(x) */
} normal_parts;

INLINE normal_parts normal_at(vf x) {
  vf size = magnitude(x), e = vexp(size * size * -0.5f);
  vf t = 1.0f / (size * 0.212132034f + 1.0f);
  vf p = t * -0.129522829f + 0.48556287f;
  p = p * t - 0.512277443f;
  p = p * t + 0.547719361f;
  p = p * t - 0.0946503183f;
  p = p * t + 0.21492591f;
  p = p * t + 0.148339201f;
  p = p * t + 0.170715224f;
  p = p * t + 0.169188005f;
  return (normal_parts){p * t * e * 0.5f, e * 0.398942280f};
}

INLINE vf gelu(vf x) {
  vf below = normal_at(x).below;
  return where(x < splat(0), x * below, x - x * below);
}

INLINE vf gelu_slope(vf x) {
  normal_parts at = normal_at(x);
  return where(x < splat(0), at.below, 1.0f - at.below) + x * at.density;
}
