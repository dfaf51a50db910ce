// vec_math.h: elementary functions on one float, branch-free, so that g++ -O3 turns loops over them
// into vector code. GPUs use them too (svdq_cuda/math.h), so the bits are the same everywhere.
//
// Needs -fno-math-errno -fno-trapping-math (else selects do not if-convert); -ffast-math must stay
// off: the range reductions rely on exact intermediate roundings. Polynomials are minimax fits,
// rounded to float coefficient by coefficient; "fit 2^-k" is the largest error of the polynomial
// itself. Errors in ulp are of the whole function and are asserted by
// tests/kernels/test_vec_math.py. Each float function has a double overload from <cmath>.
#ifndef SVDQ_CPU_VEC_MATH_H
#define SVDQ_CPU_VEC_MATH_H

#include <cmath>

#if !defined(SVDQ_MATH_BASE)  // what is below rests on: mad, bits_of, float_of, double_of
#include "svdq_cpu/scalar.h"
#endif

namespace svdq {

constexpr float kInf = __builtin_inff();
constexpr float kNan = __builtin_nanf("");

// --- Rounding, sign, selection
// --------------------------------------------------------------------------------------

SVDQ_INLINE float floor(float x) { return SVDQ_LIBM(floorf)(x); }
SVDQ_INLINE float ceil(float x) { return SVDQ_LIBM(ceilf)(x); }
SVDQ_INLINE float trunc(float x) { return SVDQ_LIBM(truncf)(x); }
SVDQ_INLINE float round_even(float x) { return SVDQ_LIBM(rintf)(x); }
SVDQ_INLINE float sqrt(float x) { return SVDQ_LIBM(sqrtf)(x); }
SVDQ_INLINE float rsqrt(float x) { return 1.0f / SVDQ_LIBM(sqrtf)(x); }
SVDQ_INLINE float reciprocal(float x) { return 1.0f / x; }
SVDQ_INLINE float abs(float x) { return SVDQ_LIBM(fabsf)(x); }
SVDQ_INLINE float copysign(float x, float sign_of) { return SVDQ_LIBM(copysignf)(x, sign_of); }
SVDQ_INLINE float sign(float x) { return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x * 0.0f); }

// A NaN on either side gives NaN, as torch.minimum and torch.maximum.
SVDQ_INLINE float min(float a, float b) { return (a < b) | (a != a) ? a : b; }
SVDQ_INLINE float max(float a, float b) { return (a > b) | (a != a) ? a : b; }
SVDQ_INLINE float clamp(float x, float lo, float hi) { return min(max(x, lo), hi); }
SVDQ_INLINE float relu(float x) { return x < 0.0f ? 0.0f : x; }

// --- Exponentials
// ---------------------------------------------------------------------------------------------------

namespace detail {

struct ExpSplit {
  float r;    // in [-ln2/2, ln2/2], up to rounding of the quotient
  int32_t n;  // x = n * ln2 + r
};

// |x| < 2^21. n is the integer in the low mantissa bits of x * log2(e) + 1.5 * 2^23.
SVDQ_INLINE ExpSplit split_exp(float x) {
  const float shifted = mad(x, 1.44269504f, 12582912.0f);
  const float nf = shifted - 12582912.0f;
  // 0.693359375 has 9 bits and |n| < 2^8 where it matters, so the first product is exact even
  // without fma.
  const float r = mad(nf, 2.12194440e-4f, mad(nf, -0.693359375f, x));
  return {r, (int32_t)bits_of(shifted) - (int32_t)bits_of(12582912.0f)};
}

// (e^r - 1 - r) / r^2 on [-ln2/2, ln2/2], fit 2^-30.5.
SVDQ_INLINE float exp_tail(float r) {
  float p = 2.015382051e-04f;
  p = mad(p, r, 1.393404440e-03f);
  p = mad(p, r, 8.332839236e-03f);
  p = mad(p, r, 4.166647419e-02f);
  p = mad(p, r, 1.666666865e-01f);
  return mad(p, r, 5.000000000e-01f);
}

SVDQ_INLINE float pow2i(int32_t n) { return float_of((uint32_t)(n + 127) << 23); }

// p * 2^n for n in [-252, 254]: two steps, so that overflow and subnormals come out right.
SVDQ_INLINE float scale_pow2(float p, int32_t n) {
  const int32_t half = n >> 1;
  return p * pow2i(half) * pow2i(n - half);
}

// The clamps keep NaN (a comparison with NaN is false).
SVDQ_INLINE float clamp_keep_nan(float x, float lo, float hi) {
  const float above = x < lo ? lo : x;
  return above > hi ? hi : above;
}

}  // namespace detail

// 1 ulp, subnormal results included.
SVDQ_INLINE float exp(float x) {
  const detail::ExpSplit s = detail::split_exp(detail::clamp_keep_nan(x, -104.5f, 89.0f));
  const float p = mad(s.r * s.r, detail::exp_tail(s.r), s.r) + 1.0f;
  return detail::scale_pow2(p, s.n);
}

// 1 ulp.
SVDQ_INLINE float exp2(float x) {
  const float clamped = detail::clamp_keep_nan(x, -151.0f, 129.0f);
  const float shifted = clamped + 12582912.0f;
  const float r = (clamped - (shifted - 12582912.0f)) * 0.693147181f;
  const float p = mad(r * r, detail::exp_tail(r), r) + 1.0f;
  return detail::scale_pow2(p, (int32_t)bits_of(shifted) - (int32_t)bits_of(12582912.0f));
}

// 2 ulp. 2^n * (e^r - 1) + (2^n - 1), all at half size so that n = 128 does not overflow.
SVDQ_INLINE float expm1(float x) {
  const detail::ExpSplit s = detail::split_exp(detail::clamp_keep_nan(x, -18.0f, 89.0f));
  const float p = mad(s.r * s.r, detail::exp_tail(s.r), s.r);
  const float half = detail::pow2i(s.n - 1);
  const float y = mad(half, p, half - 0.5f);
  return x == 0.0f ? x : y + y;
}

// --- Logarithms
// -----------------------------------------------------------------------------------------------------

namespace detail {

struct LogSplit {
  float f;  // mantissa - 1, mantissa in [sqrt(1/2), sqrt(2))
  float e;  // exponent
};

// x > 0, finite; subnormals are scaled up first.
SVDQ_INLINE LogSplit split_log(float x) {
  const bool tiny = x < 0x1p-126f;
  const uint32_t u = bits_of(tiny ? x * 0x1p23f : x);
  const int32_t e = (int32_t)(u - 0x3f3504f3u) >> 23;  // 0x3f3504f3 = sqrt(1/2)
  const float m = float_of(u - ((uint32_t)e << 23));
  return {m - 1.0f, (float)e - (tiny ? 23.0f : 0.0f)};
}

// log(1 + f) = f + log_tail(f) on [sqrt(1/2) - 1, sqrt(2) - 1], fit 2^-30.4.
SVDQ_INLINE float log_tail(float f) {
  float p = 6.915632635e-02f;
  p = mad(p, f, -1.178937927e-01f);
  p = mad(p, f, 1.187261790e-01f);
  p = mad(p, f, -1.238440126e-01f);
  p = mad(p, f, 1.421871632e-01f);
  p = mad(p, f, -1.666924953e-01f);
  p = mad(p, f, 2.000222355e-01f);
  p = mad(p, f, -2.499998659e-01f);
  p = mad(p, f, 3.333331048e-01f);
  const float z = f * f;
  return mad(p * f, z, -0.5f * z);
}

SVDQ_INLINE float log_special(float x, float y) {
  const float edge = x == 0.0f ? -kInf : (x < 0.0f ? kNan : x);  // x itself: +inf or NaN
  return (x > 0.0f) & (x < kInf) ? y : edge;
}

}  // namespace detail

// 1 ulp.
SVDQ_INLINE float log(float x) {
  const detail::LogSplit s = detail::split_log(x);
  const float low = mad(s.e, -2.12194440e-4f, detail::log_tail(s.f));
  const float y = mad(s.e, 0.693359375f, low + s.f);
  return detail::log_special(x, y);
}

// 2 ulp; exact at powers of two.
SVDQ_INLINE float log2(float x) {
  const detail::LogSplit s = detail::split_log(x);
  // 1.44269504 = 1 + 0.44269504: the leading part is added unrounded.
  const float t = detail::log_tail(s.f);
  const float y = mad(t, 0.44269504f, mad(s.f, 0.44269504f, t)) + s.f + s.e;
  return detail::log_special(x, y);
}

SVDQ_INLINE float log10(float x) { return log2(x) * 0.301029996f; }

// 2 ulp. log(1 + x) = e * ln2 + log(1 + f), where f takes back what rounding 1 + x lost.
SVDQ_INLINE float log1p(float x) {
  const float u = 1.0f + x;
  const float lost = x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);  // u - 1 + lost = x
  const detail::LogSplit s = detail::split_log(u);
  const float correction = (u > 0.0f) & (u < kInf) ? lost / u : 0.0f;
  const float tail = detail::log_tail(s.f) + correction;
  const float y = mad(s.e, 0.693359375f, mad(s.e, -2.12194440e-4f, tail) + s.f);
  return x == 0.0f ? x : detail::log_special(u, y);
}

// --- Hyperbolic tangent, error function
// -------------------------------------------------------------------------------

// 3 ulp: tanh|x| = t / (t + 2), t = e^(2|x|) - 1.
SVDQ_INLINE float tanh(float x) {
  const float magnitude = abs(x);
  const float t = expm1(magnitude > 10.0f ? 20.0f : magnitude + magnitude);
  return copysign(t / (t + 2.0f), x);
}

// 2 ulp: x * P(x^2) below 0.92 (fit 2^-29.5), 1 - e^Q(|x|) above (Q ~ log erfc on [0.92, 4], fit
// 2^-34.4).
SVDQ_INLINE float erf(float x) {
  const float magnitude = abs(x);
  const float t = magnitude > 4.0f ? 4.0f : magnitude;
  float q = -2.115619645e-05f;
  q = mad(q, t, 4.351657117e-04f);
  q = mad(q, t, -4.174443893e-03f);
  q = mad(q, t, 2.512823977e-02f);
  q = mad(q, t, -1.082935408e-01f);
  q = mad(q, t, -6.333348751e-01f);
  q = mad(q, t, -1.129520774e+00f);
  q = mad(q, t, 1.758745202e-04f);
  const float tail = copysign(1.0f - exp(q), x);
  const float z = x * x;
  float p = 7.924130477e-05f;
  p = mad(p, z, -8.031835896e-04f);
  p = mad(p, z, 5.190844648e-03f);
  p = mad(p, z, -2.685517445e-02f);
  p = mad(p, z, 1.128361896e-01f);
  p = mad(p, z, -3.761262894e-01f);
  p = mad(p, z, 1.283791661e-01f);
  return magnitude > 0.92f ? tail : mad(p, x, x);
}

// --- Activations
// ----------------------------------------------------------------------------------------------------

// 3 ulp over the whole range: the exponential never overflows.
SVDQ_INLINE float sigmoid(float x) {
  const float e = exp(-abs(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

SVDQ_INLINE float silu(float x) { return x * sigmoid(x); }

// x * Phi(x). Phi(-t) = e^(-t^2/2) u P(u - 1), u = 1 / (1 + 0.35 t), P(0) = 1/2, fit 2^-24.7 for t
// <= 14.5: no cancellation on either side. 5 ulp for x > -1, 4 + 1.5 x^2 ulp below, where eager
// PyTorch cancels.
SVDQ_INLINE float gelu_erf(float x) {
  const float magnitude = abs(x);
  const float t = magnitude > 16.0f ? 16.0f : magnitude;
  const float u = 1.0f / mad(0.35f, t, 1.0f);
  const float w = u - 1.0f;
  float p = -2.891644277e-02f;
  p = mad(p, w, -8.836976439e-02f);
  p = mad(p, w, -6.277310103e-02f);
  p = mad(p, w, 1.708804630e-02f);
  p = mad(p, w, -6.372413039e-02f);
  p = mad(p, w, -1.025264040e-01f);
  p = mad(p, w, 2.610603571e-01f);
  p = mad(p, w, 6.398329139e-01f);
  p = mad(p, w, 0.5f);
  const float upper_tail = exp(-0.5f * t * t) * u * p;
  return x * (x >= 0.0f ? 1.0f - upper_tail : upper_tail);
}

// 0.5 x (1 + tanh(y)) = x sigmoid(2 y), y = sqrt(2/pi) (x + 0.044715 x^3).
SVDQ_INLINE float gelu_tanh(float x) {
  const float bounded = detail::clamp_keep_nan(x, -20.0f, 20.0f);  // beyond, the sigmoid is 0 or 1
  return x * sigmoid(1.59576912f * mad(0.044715f * bounded * bounded, bounded, bounded));
}

SVDQ_INLINE float softplus(float x) { return max(x, 0.0f) + log1p(exp(-abs(x))); }
SVDQ_INLINE float softplus(float x, float beta, float threshold) {
  return x * beta > threshold ? x : softplus(x * beta) / beta;
}
SVDQ_INLINE float mish(float x) { return x * tanh(softplus(x)); }
SVDQ_INLINE float elu(float x, float alpha) { return x > 0.0f ? x : alpha * expm1(x); }

// --- Double: the C library
// --------------------------------------------------------------------------------------------

SVDQ_INLINE double floor(double x) { return std::floor(x); }
SVDQ_INLINE double ceil(double x) { return std::ceil(x); }
SVDQ_INLINE double trunc(double x) { return std::trunc(x); }
SVDQ_INLINE double round_even(double x) { return std::nearbyint(x); }
SVDQ_INLINE double sqrt(double x) { return std::sqrt(x); }
SVDQ_INLINE double rsqrt(double x) { return 1.0 / std::sqrt(x); }
SVDQ_INLINE double reciprocal(double x) { return 1.0 / x; }
SVDQ_INLINE double abs(double x) { return std::fabs(x); }
SVDQ_INLINE double copysign(double x, double sign_of) { return std::copysign(x, sign_of); }
SVDQ_INLINE double sign(double x) { return x > 0.0 ? 1.0 : (x < 0.0 ? -1.0 : x * 0.0); }
SVDQ_INLINE double min(double a, double b) { return (a < b) | (a != a) ? a : b; }
SVDQ_INLINE double max(double a, double b) { return (a > b) | (a != a) ? a : b; }
SVDQ_INLINE double clamp(double x, double lo, double hi) { return min(max(x, lo), hi); }
SVDQ_INLINE double relu(double x) { return x < 0.0 ? 0.0 : x; }
SVDQ_INLINE double exp(double x) { return std::exp(x); }
SVDQ_INLINE double exp2(double x) { return std::exp2(x); }
SVDQ_INLINE double expm1(double x) { return std::expm1(x); }
SVDQ_INLINE double log(double x) { return std::log(x); }
SVDQ_INLINE double log2(double x) { return std::log2(x); }
SVDQ_INLINE double log10(double x) { return std::log10(x); }
SVDQ_INLINE double log1p(double x) { return std::log1p(x); }
SVDQ_INLINE double tanh(double x) { return std::tanh(x); }
SVDQ_INLINE double erf(double x) { return std::erf(x); }
SVDQ_INLINE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
SVDQ_INLINE double silu(double x) { return x * sigmoid(x); }
SVDQ_INLINE double gelu_erf(double x) { return 0.5 * x * std::erfc(-0.70710678118654752 * x); }
SVDQ_INLINE double gelu_tanh(double x) {
  return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x));
}
SVDQ_INLINE double softplus(double x) { return max(x, 0.0) + std::log1p(std::exp(-abs(x))); }
SVDQ_INLINE double softplus(double x, double beta, double threshold) {
  return x * beta > threshold ? x : softplus(x * beta) / beta;
}
SVDQ_INLINE double mish(double x) { return x * std::tanh(softplus(x)); }
SVDQ_INLINE double elu(double x, double alpha) { return x > 0.0 ? x : alpha * std::expm1(x); }

}  // namespace svdq

#include "svdq_cpu/vec_trig.h"

#endif  // SVDQ_CPU_VEC_MATH_H
