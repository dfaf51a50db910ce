// host/convert.h: number formats; see ptx/convert.h, whose bits these are (of a NaN: a NaN).
#ifndef SVDQ_CUDA_HOST_CONVERT_H
#define SVDQ_CUDA_HOST_CONVERT_H

#include "svdq_cuda/base.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace svdq {

SVDQ_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
SVDQ_INLINE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
SVDQ_INLINE uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
SVDQ_INLINE double double_of(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

SVDQ_INLINE float mad(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SVDQ_INLINE double mad(double a, double b, double c) { return __builtin_fma(a, b, c); }

SVDQ_INLINE uint32_t divide(uint32_t a, uint32_t b) { return a / b; }

SVDQ_INLINE int32_t round_to_int(float x) {
  if (x != x) return 0;
  if (x >= 2147483648.0f) return INT32_MAX;
  if (x <= -2147483648.0f) return INT32_MIN;
  return static_cast<int32_t>(__builtin_lrintf(x));
}

SVDQ_INLINE float bf16_to_f32(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

SVDQ_INLINE uint16_t f32_to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

SVDQ_INLINE float f16_to_f32(uint16_t x) {
#if defined(__F16C__)
  return _cvtsh_ss(x);
#else
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t magnitude = x & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Subnormals too: the exponent of 2^112 rebases, and the multiply normalises exactly.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
#endif
}

SVDQ_INLINE uint16_t f32_to_f16(float x) {
#if defined(__F16C__)
  return static_cast<uint16_t>(_cvtss_sh(x, 0));
#else
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 1/2 aligns the last place of a subnormal half, 2^-24.
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
  return static_cast<uint16_t>(
      sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
#endif
}

SVDQ_INLINE uint32_t pack_f16x2(float low, float high) {
  return f32_to_f16(low) | static_cast<uint32_t>(f32_to_f16(high)) << 16;
}
SVDQ_INLINE uint32_t pack_bf16x2(float low, float high) {
  return f32_to_bf16(low) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
}
SVDQ_INLINE float2 unpack_bf16x2(uint32_t x) {
  return make_float2(float_of(x << 16), float_of(x & 0xffff0000u));
}
SVDQ_INLINE float2 unpack_f16x2(uint32_t x) {
  return make_float2(f16_to_f32(static_cast<uint16_t>(x)),
                     f16_to_f32(static_cast<uint16_t>(x >> 16)));
}

}  // namespace svdq

#include "svdq_cuda/convert_fp8.h"

#endif  // SVDQ_CUDA_HOST_CONVERT_H
