/* f32x16 as one AVX512 register. Included by isa.h alone. */
#ifndef SVDQ_CPU_F32X16_AVX512_H
#define SVDQ_CPU_F32X16_AVX512_H

namespace svdq {

struct f32x16 {
  __m512 v;
};

SVDQ_INLINE __mmask16 tail_mask(int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1u);
}

SVDQ_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
SVDQ_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
SVDQ_INLINE void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
SVDQ_INLINE f32x16 load_tail(const float* p, int64_t count) {
  return {_mm512_maskz_loadu_ps(tail_mask(count), p)};
}
SVDQ_INLINE void store_tail(float* p, f32x16 a, int64_t count) {
  _mm512_mask_storeu_ps(p, tail_mask(count), a.v);
}
SVDQ_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
SVDQ_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
SVDQ_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
SVDQ_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
SVDQ_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SVDQ_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
SVDQ_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
SVDQ_INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
SVDQ_INLINE float reduce_max(f32x16 a) { return _mm512_reduce_max_ps(a.v); }

SVDQ_INLINE f32x16 load_bf16(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}

SVDQ_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

SVDQ_INLINE void store_f16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

SVDQ_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __m512i halves = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(halves));
}

}  // namespace svdq

#endif
