// ptx/convert.h: number formats. 16-bit floats are held in uint16_t, 8-bit ones in uint8_t.
#ifndef SVDQ_CUDA_PTX_CONVERT_H
#define SVDQ_CUDA_PTX_CONVERT_H

#include "svdq_cuda/base.h"

namespace svdq {

SVDQ_INLINE uint32_t bits_of(float x) { return __float_as_uint(x); }
SVDQ_INLINE float float_of(uint32_t bits) { return __uint_as_float(bits); }
SVDQ_INLINE uint64_t bits_of(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }
SVDQ_INLINE double double_of(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// a * b + c with one rounding. Products and sums written apart are never fused (-fmad=false).
SVDQ_INLINE float mad(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SVDQ_INLINE double mad(double a, double b, double c) { return __fma_rn(a, b, c); }

// a / b. Of operands that it knows to be below 2^16 the compiler makes a division of 16 bits, which
// ptxas has a function for: a call. Of 32 bits it is inlined.
SVDQ_INLINE uint32_t divide(uint32_t a, uint32_t b) {
  uint32_t quotient;
  asm("div.u32 %0, %1, %2;" : "=r"(quotient) : "r"(a), "r"(b));
  return quotient;
}

// To the nearest integer, ties to even; saturates.
SVDQ_INLINE int32_t round_to_int(float x) { return __float2int_rn(x); }

SVDQ_INLINE float bf16_to_f32(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

SVDQ_INLINE float f16_to_f32(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

SVDQ_INLINE uint16_t f32_to_f16(float x) {
  uint16_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

SVDQ_INLINE uint16_t f32_to_bf16(float x) {
#if __CUDA_ARCH__ >= 800
  uint16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
#else
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// Two values in one register, `low` in the low half.
SVDQ_INLINE uint32_t pack_f16x2(float low, float high) {
#if __CUDA_ARCH__ >= 800
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#else
  return f32_to_f16(low) | static_cast<uint32_t>(f32_to_f16(high)) << 16;
#endif
}
SVDQ_INLINE uint32_t pack_bf16x2(float low, float high) {
#if __CUDA_ARCH__ >= 800
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#else
  return f32_to_bf16(low) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
#endif
}
SVDQ_INLINE float2 unpack_bf16x2(uint32_t x) {
  return make_float2(float_of(x << 16), float_of(x & 0xffff0000u));
}
SVDQ_INLINE float2 unpack_f16x2(uint32_t x) {
  return make_float2(f16_to_f32(static_cast<uint16_t>(x)),
                     f16_to_f32(static_cast<uint16_t>(x >> 16)));
}

#if __CUDA_ARCH__ >= 890
#define SVDQ_HAS_E4M3 1
#endif
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM120_ALL)
#define SVDQ_HAS_E2M1 1
#endif

}  // namespace svdq

#include "svdq_cuda/convert_fp8.h"

#endif  // SVDQ_CUDA_PTX_CONVERT_H
