// vec_trig.h: the second half of vec_math.h: sin, cos, atan, pow, and the rarely used functions.
// Include vec_math.h.
#ifndef SVDQ_CPU_VEC_TRIG_H
#define SVDQ_CPU_VEC_TRIG_H

#include "svdq_cpu/vec_math.h"

namespace svdq {

namespace detail {

struct TrigSplit {
  float r;           // in [-pi/4, pi/4]
  uint32_t quarter;  // x = quarter * pi/2 + r (mod 2 pi)
};

// Good over the whole float range, in double. x = m * 2^u, where m is an integer (or u = 0) with
// |m| < 2^44, and 2^u mod 2 pi is a pair of doubles. The products with fma are exact, so r is off
// by about 2^44 * 2^-104, far below 2^-30, the closest that a float comes to a multiple of pi/2.
SVDQ_INLINE TrigSplit split_trig(float x) {
  const float magnitude = abs(x);
  double down = 1.0, unit_hi = 1.0, unit_lo = 0.0;
  down = magnitude >= 0x1p44f ? 0x1p-21 : down;
  unit_hi = magnitude >= 0x1p44f ? 0x1.58e8ec12c0aa8p-1 : unit_hi;
  unit_lo = magnitude >= 0x1p44f ? 0x1.95c955afd3e7bp-55 : unit_lo;
  down = magnitude >= 0x1p65f ? 0x1p-42 : down;
  unit_hi = magnitude >= 0x1p65f ? 0x1.abc6aacca5912p+0 : unit_hi;
  unit_lo = magnitude >= 0x1p65f ? -0x1.1b6f34f397eb5p-55 : unit_lo;
  down = magnitude >= 0x1p86f ? 0x1p-63 : down;
  unit_hi = magnitude >= 0x1p86f ? 0x1.8f1a5c3d52d34p+0 : unit_hi;
  unit_lo = magnitude >= 0x1p86f ? 0x1.ade7e21ae7526p-56 : unit_lo;
  down = magnitude >= 0x1p107f ? 0x1p-84 : down;
  unit_hi = magnitude >= 0x1p107f ? 0x1.2b5532bc0fd6bp+1 : unit_hi;
  unit_lo = magnitude >= 0x1p107f ? -0x1.75e080e9be09ap-54 : unit_lo;
  const double m = (double)x * down;
  const double product = m * unit_hi;
  const double product_lo = SVDQ_LIBM(fma)(m, unit_hi, -product) + m * unit_lo;
  const double shifted = product * 0.63661977236758134 + 0x1.8p52;  // |quotient| < 2^45
  const double quotient = shifted - 0x1.8p52;
  const double near = SVDQ_LIBM(fma)(quotient, -0x1.921fb54442d18p+0, product);
  const double r = SVDQ_LIBM(fma)(quotient, -0x1.1a62633145c07p-54, near + product_lo);
  return {(float)r, (uint32_t)bits_of(shifted)};
}

SVDQ_INLINE float sin_near(float r) {  // fit 2^-32
  const float z = r * r;
  float p = 2.804471478e-06f;
  p = mad(p, z, -1.985030103e-04f);
  p = mad(p, z, 8.333372883e-03f);
  p = mad(p, z, -1.666666716e-01f);
  return mad(p * z, r, r);
}

SVDQ_INLINE float cos_near(float r) {  // fit 2^-33
  const float z = r * r;
  float p = 2.443296034e-05f;
  p = mad(p, z, -1.388731296e-03f);
  p = mad(p, z, 4.166664556e-02f);
  return mad(p * z, z, mad(-0.5f, z, 1.0f));
}

SVDQ_INLINE float trig_quarter(float r, uint32_t quarter) {
  const float y = quarter & 1u ? cos_near(r) : sin_near(r);
  return float_of(bits_of(y) ^ ((quarter & 2u) << 30));
}

}  // namespace detail

// 2 ulp for every finite float (vectorised where the machine has fma).
SVDQ_INLINE float sin(float x) {
  const detail::TrigSplit s = detail::split_trig(x);
  const float y = detail::trig_quarter(s.r, s.quarter);
  return abs(x) < 0x1p-12f ? x : (abs(x) < kInf ? y : kNan);
}

SVDQ_INLINE float cos(float x) {
  const detail::TrigSplit s = detail::split_trig(x);
  const float y = detail::trig_quarter(s.r, s.quarter + 1u);
  return abs(x) < kInf ? y : kNan;
}

// 3 ulp: x + x^3 P(x^2) on [0, 1] (fit 2^-31), pi/2 - atan(1/x) above.
SVDQ_INLINE float atan(float x) {
  const float magnitude = abs(x);
  const bool large = magnitude > 1.0f;
  const float t = large ? -1.0f / magnitude : magnitude;
  const float z = t * t;
  float p = 1.149775460e-03f;
  p = mad(p, z, -7.499265485e-03f);
  p = mad(p, z, 2.292860486e-02f);
  p = mad(p, z, -4.515214264e-02f);
  p = mad(p, z, 6.774874777e-02f);
  p = mad(p, z, -8.825957775e-02f);
  p = mad(p, z, 1.106227860e-01f);
  p = mad(p, z, -1.428046972e-01f);
  p = mad(p, z, 1.999972165e-01f);
  p = mad(p, z, -3.333332837e-01f);
  const float y = mad(p * z, t, t);
  return copysign(large ? y + 1.57079633f : y, x);
}

SVDQ_INLINE float atan2(float y, float x) { return SVDQ_LIBM(atan2f)(y, x); }

namespace detail {

// log2(a), a >= 0, to 2^-43: 2/ln2 * atanh((m - 1) / (m + 1)), m in [sqrt(1/2), sqrt(2)).
SVDQ_INLINE double log2_wide(double a) {
  const uint64_t u = bits_of(a);
  const uint64_t e = ((u - 0x3fe6a09e667f3bcdull) >> 52) & 0xfffu;  // exponent mod 2^12
  const double m = double_of(u - (e << 52));
  // e, two's complement of 12 bits, to double without a 64-bit conversion: the magic number's low
  // bits.
  const double ef = double_of(0x4330000000000000ull | ((e + 0x800u) & 0xfffu)) - 0x1.00000000008p52;
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 0x1.21af7dfb39c7cp-2;
  p = mad(p, z, 0x1.479572133bd72p-2);
  p = mad(p, z, 0x1.a61a2dfdd7d5bp-2);
  p = mad(p, z, 0x1.2776c29495d83p-1);
  p = mad(p, z, 0x1.ec709dc53a795p-1);
  p = mad(p, z, 0x1.71547652b8253p+1);
  const double y = mad(p, s, ef);
  return a > 0.0 ? (a < (double)kInf ? y : a) : -(double)kInf;
}

// 2^x, |x| <= 200, to 2^-34.
SVDQ_INLINE double exp2_wide(double x) {
  const double shifted = x + 0x1.8p52;
  const double r = x - (shifted - 0x1.8p52);
  double p = 0x1.fe177209fb9b2p-17;
  p = mad(p, r, 0x1.446a1fbb28c72p-13);
  p = mad(p, r, 0x1.5d8a7097619a2p-10);
  p = mad(p, r, 0x1.3b29dc4104217p-7);
  p = mad(p, r, 0x1.c6b08aaf206d3p-5);
  p = mad(p, r, 0x1.ebfbe0a4be478p-3);
  p = mad(p, r, 0x1.62e42ff116304p-1);
  p = mad(p, r, 0x1.ffffffffabbd0p-1);
  const uint64_t n = bits_of(shifted) - bits_of(0x1.8p52);
  return p * double_of((n + 1023u) << 52);
}

}  // namespace detail

// 1 ulp, computed in double; the special cases of C's pow.
SVDQ_INLINE float pow(float x, float y) {
  const float magnitude = abs(x);
  double product = (double)y * detail::log2_wide((double)magnitude);
  product = product < -200.0 ? -200.0 : product;
  product = product > 200.0 ? 200.0 : product;
  const float power = (float)detail::exp2_wide(product);
  const bool whole = trunc(y) == y;
  const bool odd = whole & (trunc(0.5f * y) != 0.5f * y);
  const bool negative = bits_of(x) >> 31;
  const float with_sign = negative & odd ? -power : power;
  const bool undefined = ((x < 0.0f) & (magnitude < kInf) & !whole) | (x != x) | (y != y);
  const bool one = (y == 0.0f) | (x == 1.0f) | ((magnitude == 1.0f) & (abs(y) == kInf));
  return one ? 1.0f : (undefined ? kNan : with_sign);
}

// --- Not vectorised: the C library
// ------------------------------------------------------------------------------------

SVDQ_INLINE float fmod(float a, float b) { return SVDQ_LIBM(fmodf)(a, b); }
// torch.remainder: the sign of the divisor.
SVDQ_INLINE float remainder(float a, float b) {
  const float r = SVDQ_LIBM(fmodf)(a, b);
  return (r != 0.0f) & ((r < 0.0f) != (b < 0.0f)) ? r + b : r;
}
SVDQ_INLINE float tan(float x) { return SVDQ_LIBM(tanf)(x); }
SVDQ_INLINE float asin(float x) { return SVDQ_LIBM(asinf)(x); }
SVDQ_INLINE float acos(float x) { return SVDQ_LIBM(acosf)(x); }
SVDQ_INLINE float sinh(float x) { return SVDQ_LIBM(sinhf)(x); }
SVDQ_INLINE float cosh(float x) { return SVDQ_LIBM(coshf)(x); }
SVDQ_INLINE float asinh(float x) { return SVDQ_LIBM(asinhf)(x); }
SVDQ_INLINE float acosh(float x) { return SVDQ_LIBM(acoshf)(x); }
SVDQ_INLINE float atanh(float x) { return SVDQ_LIBM(atanhf)(x); }
SVDQ_INLINE float erfc(float x) { return SVDQ_LIBM(erfcf)(x); }

SVDQ_INLINE double sin(double x) { return std::sin(x); }
SVDQ_INLINE double cos(double x) { return std::cos(x); }
SVDQ_INLINE double tan(double x) { return std::tan(x); }
SVDQ_INLINE double asin(double x) { return std::asin(x); }
SVDQ_INLINE double acos(double x) { return std::acos(x); }
SVDQ_INLINE double atan(double x) { return std::atan(x); }
SVDQ_INLINE double atan2(double y, double x) { return std::atan2(y, x); }
SVDQ_INLINE double sinh(double x) { return std::sinh(x); }
SVDQ_INLINE double cosh(double x) { return std::cosh(x); }
SVDQ_INLINE double asinh(double x) { return std::asinh(x); }
SVDQ_INLINE double acosh(double x) { return std::acosh(x); }
SVDQ_INLINE double atanh(double x) { return std::atanh(x); }
SVDQ_INLINE double erfc(double x) { return std::erfc(x); }
SVDQ_INLINE double pow(double x, double y) { return std::pow(x, y); }
SVDQ_INLINE double fmod(double a, double b) { return std::fmod(a, b); }
SVDQ_INLINE double remainder(double a, double b) {
  const double r = std::fmod(a, b);
  return (r != 0.0) & ((r < 0.0) != (b < 0.0)) ? r + b : r;
}

}  // namespace svdq
#endif  // SVDQ_CPU_VEC_TRIG_H
