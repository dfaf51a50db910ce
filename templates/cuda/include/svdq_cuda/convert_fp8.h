// convert_fp8.h: 8-bit and 4-bit floats, held in uint8_t. By instruction where the architecture
// has one, else by arithmetic that gives the same bits.
//
//   e4m3: sign, exponent 4 (bias 7), mantissa 3; largest 448; 0x7f and 0xff are NaN
//   e2m1: sign, exponent 2 (bias 1), mantissa 1; 0, 0.5, 1, 1.5, 2, 3, 4, 6
//
// Conversions from f32 round to nearest, ties to even, and saturate to the largest finite value.
#ifndef SVDQ_CUDA_CONVERT_FP8_H
#define SVDQ_CUDA_CONVERT_FP8_H

#include "svdq_cuda/base.h"

namespace svdq {

SVDQ_INLINE float e4m3_to_f32(uint8_t x) {
#if defined(SVDQ_HAS_E4M3)
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(x)));
  return f16_to_f32(static_cast<uint16_t>(halves));
#else
  const uint32_t sign = static_cast<uint32_t>(x & 0x80u) << 24;
  const uint32_t magnitude = x & 0x7fu;
  if (magnitude == 0x7fu) return float_of(0x7fffffffu);
  // Subnormals too: the multiply by 2^120 rebases the exponent and normalises, exactly.
  return float_of(sign | bits_of(float_of(magnitude << 20) * 0x1p120f));
#endif
}

// The four E4M3 of a word as f16, over kE4m3HalfUnit: two by two, in an order that is the same for
// every word. Exact; without the instruction NaN is read as 480.
#if defined(SVDQ_HAS_E4M3)
constexpr float kE4m3HalfUnit = 1.0f;
SVDQ_INLINE uint2 e4m3x4_to_f16x4(uint32_t word) {
  uint2 halves;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.rn.f16x2.e4m3x2 %0, low; "
      "cvt.rn.f16x2.e4m3x2 %1, high; }"
      : "=r"(halves.x), "=r"(halves.y)
      : "r"(word));
  return halves;
}
#else
// An f16 has a bit more of exponent and seven more of mantissa; biases are 15 and 7, so what is
// shifted into place stands for 2^-8 of the number, below the smallest normal one, too.
constexpr float kE4m3HalfUnit = 256.0f;
SVDQ_INLINE uint2 e4m3x4_to_f16x4(uint32_t word) {
  const uint32_t even = (word << 8 & 0x80008000u) | (word << 7 & 0x3f803f80u);
  return make_uint2(even, (word & 0x80008000u) | (word >> 1 & 0x3f803f80u));
}
#endif

SVDQ_INLINE uint8_t f32_to_e4m3(float x) {
#if defined(SVDQ_HAS_E4M3)
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return static_cast<uint8_t>(pair);
#else
  const uint32_t sign = (bits_of(x) >> 24) & 0x80u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // >= 448
  if (magnitude < 0x3c800000u) {
    // Below 2^-6: adding 2^14 aligns the last place of a subnormal, 2^-9.
    return static_cast<uint8_t>(sign | (bits_of(float_of(magnitude) + 0x1p14f) - 0x46800000u));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
#endif
}

// Four values in one register, the first in the low byte.
SVDQ_INLINE uint32_t pack_e4m3x4(float a, float b, float c, float d) {
#if defined(SVDQ_HAS_E4M3)
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  return low | static_cast<uint32_t>(high) << 16;
#else
  return f32_to_e4m3(a) | static_cast<uint32_t>(f32_to_e4m3(b)) << 8 |
         static_cast<uint32_t>(f32_to_e4m3(c)) << 16 | static_cast<uint32_t>(f32_to_e4m3(d)) << 24;
#endif
}

SVDQ_INLINE float e2m1_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 8u) << 28;
  // 2^126 rebases the exponent; 0.5 is the one subnormal.
  return float_of(sign | bits_of(float_of((code & 7u) << 22) * 0x1p126f));
}

SVDQ_INLINE uint8_t f32_to_e2m1(float x) {
#if defined(SVDQ_HAS_E2M1)
  uint16_t pair;
  asm("{ .reg .b8 pair; cvt.rn.satfinite.e2m1x2.f32 pair, %1, %2; cvt.u16.u8 %0, pair; }"
      : "=h"(pair)
      : "f"(0.0f), "f"(x));
  return static_cast<uint8_t>(pair & 15u);
#else
  const uint32_t sign = (bits_of(x) >> 28) & 8u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 7;  // NaN becomes the largest, as the instruction does
  if (magnitude >= 0x40c00000u) return static_cast<uint8_t>(sign | 7u);  // >= 6
  // Below 1: adding 2^22 aligns the last place of a subnormal, 0.5.
  if (magnitude < 0x3f800000u) {
    return static_cast<uint8_t>(sign | (bits_of(float_of(magnitude) + 0x1p22f) - 0x4a800000u));
  }
  const uint32_t rounded = magnitude + 0x1fffffu + ((magnitude >> 22) & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 22) - (126u << 1)));
#endif
}

// Two codes in a byte, `low` in the low nibble.
SVDQ_INLINE uint8_t pack_e2m1x2(float low, float high) {
#if defined(SVDQ_HAS_E2M1)
  uint16_t pair;
  asm("{ .reg .b8 pair; cvt.rn.satfinite.e2m1x2.f32 pair, %1, %2; cvt.u16.u8 %0, pair; }"
      : "=h"(pair)
      : "f"(high), "f"(low));
  return static_cast<uint8_t>(pair);
#else
  return static_cast<uint8_t>(f32_to_e2m1(low) | f32_to_e2m1(high) << 4);
#endif
}

// What the two codes of a byte stand for.
SVDQ_INLINE float2 unpack_e2m1x2(uint8_t codes) {
#if defined(SVDQ_HAS_E2M1)
  uint32_t halves;
  asm("{ .reg .b8 pair; cvt.u8.u16 pair, %1; cvt.rn.f16x2.e2m1x2 %0, pair; }"
      : "=r"(halves)
      : "h"(static_cast<uint16_t>(codes)));
  return unpack_f16x2(halves);
#else
  return make_float2(e2m1_to_f32(codes & 15u), e2m1_to_f32(codes >> 4));
#endif
}

// 2^exponent, for exponents of normal numbers.
SVDQ_INLINE float power_of_two(int64_t exponent) {
  return float_of(static_cast<uint32_t>(exponent + 127) << 23);
}

}  // namespace svdq

#endif  // SVDQ_CUDA_CONVERT_FP8_H
