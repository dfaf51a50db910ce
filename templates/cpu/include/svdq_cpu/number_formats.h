/* E4M3, E2M1 and int8 numbers, sixteen at a time, bit for bit as svdqc.compiler.quantize.formats
 * rounds them. */
#ifndef SVDQ_CPU_NUMBER_FORMATS_H
#define SVDQ_CPU_NUMBER_FORMATS_H

#include "svdq_cpu/isa.h"

namespace svdq {

/* Lane by lane: a < b ? x : y; y where either is NaN. */
SVDQ_INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
#if SVDQ_ISA_AVX512
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
#elif SVDQ_ISA_AVX2
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
#else
  return {a.v < b.v ? x.v : y.v};
#endif
}

/* To the nearest integer, ties to even, for |a| < 2^22. */
SVDQ_INLINE f32x16 round_even(f32x16 a) {
  const f32x16 shift = set1(12582912.0f);  // 1.5 * 2^23
  return as_rounded(a + shift) - shift;
}

/* 1 / a, and 0 where that is not finite. */
SVDQ_INLINE f32x16 finite_reciprocal(f32x16 a) {
  const f32x16 inverse = set1(1.0f) / a;
  return select_less(abs(inverse), set1(__builtin_inff()), inverse, zero());
}

/* ---- int8 ---- */

/* Integers in [-127, 127] that are held in floats. */
SVDQ_INLINE void store_s8(int8_t* codes, f32x16 integers) {
#if SVDQ_ISA_AVX512
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes),
                   _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(integers.v)));
#else
  float lanes[16];
  store(lanes, integers);
  for (int i = 0; i < 16; ++i) codes[i] = static_cast<int8_t>(static_cast<int32_t>(lanes[i]));
#endif
}

/* ---- E4M3 ---- */

/* What a number's bits shifted into a half stand for is this much too small. */
constexpr float kE4m3Unit = 256.0f;

/* Sixteen numbers, each over kE4m3Unit: sign, exponent and mantissa move into place in an f16,
 * whose exponent is biased by 8 more; subnormals are right too. The two NaNs read as 480. */
SVDQ_INLINE f32x16 load_e4m3_small(const uint8_t* p) {
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i moved = _mm256_srai_epi16(_mm256_slli_epi16(wide, 8), 1);
  const __m256i halves = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<short>(0xbf80)));
#if SVDQ_ISA_AVX512
  return {_mm512_cvtph_ps(halves)};
#else
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
#endif
#else
  float wide[16];
  for (int i = 0; i < 16; ++i) {
    wide[i] = f16_to_f32(static_cast<uint16_t>((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7));
  }
  return load(wide);
#endif
}

SVDQ_INLINE f32x16 load_e4m3(const uint8_t* p) { return load_e4m3_small(p) * set1(kE4m3Unit); }

/* The nearest E4M3 numbers, ties to even; saturates at +-448. */
SVDQ_INLINE void store_e4m3(uint8_t* p, f32x16 a) {
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = bits_of(lanes[i]);
    const uint32_t size = bits & 0x7fffffffu;
    const uint32_t bounded = size < 0x43e00000u ? size : 0x43e00000u;  // 448
    const uint32_t normal = ((bounded + 0x7ffffu + ((bounded >> 20) & 1u)) >> 20) - (120u << 3);
    // Below 2^-6, multiples of 2^-9: the last place of 2^14.
    const uint32_t subnormal = bits_of(float_of(bounded) + 0x1p14f) - bits_of(0x1p14f);
    p[i] =
        static_cast<uint8_t>((bits >> 24 & 0x80u) | (bounded < 0x3c800000u ? subnormal : normal));
  }
}

SVDQ_INLINE f32x16 round_e4m3(f32x16 a) {
  uint8_t bits[16];
  store_e4m3(bits, a);
  return load_e4m3(bits);
}

/* ---- E2M1 ---- */

/* In units of the scale: the nearest E2M1 value, doubled, ties to the even mantissa; saturates at
 * +-12. Steps are 0.5 below 2, 1 below 4 and 2 up to 6. */
SVDQ_INLINE f32x16 round_e2m1_doubled(f32x16 a) {
  const f32x16 two = set1(2.0f), four = set1(4.0f);
  const f32x16 size = min(abs(a), set1(8.0f));
  const f32x16 fine = round_even(size * two);
  const f32x16 middle = round_even(size) * two;
  const f32x16 coarse = round_even(size * set1(0.5f)) * four;
  const f32x16 rounded =
      min(select_less(size, two, fine, select_less(size, four, middle, coarse)), set1(12.0f));
  return select_less(a, zero(), zero() - rounded, rounded);
}

}  // namespace svdq

#endif
