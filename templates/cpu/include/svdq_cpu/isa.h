/* Which instruction set a kernel is compiled for, and a vector of 16 floats that means the same on
 * each of them.
 *
 *   SVDQ_ISA_AVX512     AVX512 F, BW, VL, DQ, VNNI         f32x16 = one zmm
 *   SVDQ_ISA_AVX2       AVX2, FMA, F16C                    f32x16 = two ymm
 *   SVDQ_ISA_PORTABLE   any GCC or Clang target            f32x16 = a vector_size(64) float, which
 * the compiler splits
 *
 * Exactly one is 1, chosen from the compiler's own macros, that is, by the -m flags. SVDQ_BF16_DOT
 * is 1 where AVX512-BF16 is there too.
 *
 * Never compile with -ffast-math. Under -ffp-contract=fast the compiler may fuse `a * b + c`; where
 * bits matter (4-bit codes flip when a product is rounded differently) as_rounded(a * b) prevents
 * it.
 */
#ifndef SVDQ_CPU_ISA_H
#define SVDQ_CPU_ISA_H

#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define SVDQ_ISA_AVX512 1
#define SVDQ_ISA_AVX2 0
#define SVDQ_ISA_PORTABLE 0
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SVDQ_ISA_AVX512 0
#define SVDQ_ISA_AVX2 1
#define SVDQ_ISA_PORTABLE 0
#else
#define SVDQ_ISA_AVX512 0
#define SVDQ_ISA_AVX2 0
#define SVDQ_ISA_PORTABLE 1
#endif

#if SVDQ_ISA_AVX512 && defined(__AVX512BF16__)
#define SVDQ_BF16_DOT 1
#else
#define SVDQ_BF16_DOT 0
#endif

#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // the _mm512_undefined_* of GCC 12
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored \
    "-Wpsabi"  // vectors of 64 bytes are only ever passed to inlined functions
#endif

#define SVDQ_INLINE static inline __attribute__((always_inline))
#define SVDQ_NOINLINE static __attribute__((noinline))
#define SVDQ_UNROLL _Pragma("GCC unroll 32")
#define SVDQ_RESTRICT __restrict__

namespace svdq {

constexpr int64_t kLanes = 16;  // of f32x16, and columns of a weight panel

/* unroll<N>(f): f(0), ..., f(N - 1) with constant arguments, so that arrays of vectors become
 * registers. A loop under `GCC unroll` is unrolled too late for that: the arrays are then in
 * memory. Write f as [&](auto i) SVDQ_LAMBDA {...}. */
#define SVDQ_LAMBDA __attribute__((always_inline))

template <typename F, int... I>
SVDQ_INLINE void unroll_over(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}

template <int N, typename F>
SVDQ_INLINE void unroll(F&& f) {
  unroll_over(std::make_integer_sequence<int, N>{}, f);
}

/* ---- scalars ---- */

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

SVDQ_INLINE float bf16_to_f32(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }

/* Round to nearest, ties to even; NaN becomes a quiet NaN. */
SVDQ_INLINE uint16_t f32_to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

SVDQ_INLINE float f16_to_f32(uint16_t half) {
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
  return _cvtsh_ss(half);
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Subnormals too: the exponent of 2^112 rebases, and the multiply normalises exactly.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
#endif
}

/* Round to nearest, ties to even; overflow gives infinity. */
SVDQ_INLINE uint16_t f32_to_f16(float x) {
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
  return static_cast<uint16_t>(_cvtss_sh(x, 0));
#else
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude <
      0x38800000u) {  // below 2^-14: adding 1/2 aligns the last place of a subnormal half, 2^-24
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
  return static_cast<uint16_t>(
      sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
#endif
}

/* ---- f32x16 ---- */

#if SVDQ_ISA_AVX512

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
SVDQ_INLINE uint32_t equal_mask(f32x16 a, f32x16 b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
SVDQ_INLINE uint32_t sign_mask(f32x16 a) { return _mm512_movepi32_mask(_mm512_castps_si512(a.v)); }

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

/* Integer-valued floats in [-128, 127] (or NaN, which gives any code) to int8, ties to even. */
SVDQ_INLINE void store_rounded_s8(int8_t* p, f32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

#elif SVDQ_ISA_AVX2

struct f32x16 {
  __m256 lo, hi;
};

/* Eight lanes of ones for the first `count` of 16, from lane `first`. */
SVDQ_INLINE __m256i tail_mask(int64_t count, int first) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count) - first), lane);
}

SVDQ_INLINE f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SVDQ_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SVDQ_INLINE void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
SVDQ_INLINE f32x16 load_tail(const float* p, int64_t count) {
  return {_mm256_maskload_ps(p, tail_mask(count, 0)),
          _mm256_maskload_ps(p + 8, tail_mask(count, 8))};
}
SVDQ_INLINE void store_tail(float* p, f32x16 a, int64_t count) {
  _mm256_maskstore_ps(p, tail_mask(count, 0), a.lo);
  _mm256_maskstore_ps(p + 8, tail_mask(count, 8), a.hi);
}
SVDQ_INLINE f32x16 operator+(f32x16 a, f32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
SVDQ_INLINE f32x16 operator-(f32x16 a, f32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
SVDQ_INLINE f32x16 operator*(f32x16 a, f32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
SVDQ_INLINE f32x16 operator/(f32x16 a, f32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
SVDQ_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SVDQ_INLINE f32x16 min(f32x16 a, f32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
SVDQ_INLINE f32x16 max(f32x16 a, f32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
SVDQ_INLINE f32x16 abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
SVDQ_INLINE float reduce_max(f32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
SVDQ_INLINE uint32_t equal_mask(f32x16 a, f32x16 b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ)) |
                               (_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)) << 8));
}
SVDQ_INLINE uint32_t sign_mask(f32x16 a) {
  return static_cast<uint32_t>(_mm256_movemask_ps(a.lo) | (_mm256_movemask_ps(a.hi) << 8));
}

SVDQ_INLINE __m256 widen_bf16(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

SVDQ_INLINE f32x16 load_bf16(const uint16_t* p) {
  return {widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}

SVDQ_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}

SVDQ_INLINE void store_f16(uint16_t* p, f32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}

SVDQ_INLINE __m256i narrow_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, nan);
}

SVDQ_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const __m256i lanes = _mm256_packus_epi32(narrow_bf16(a.lo), narrow_bf16(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(lanes, 0xD8));
}

/* Integer-valued floats in [-128, 127] (or NaN, which gives any code) to int8, ties to even. */
SVDQ_INLINE void store_rounded_s8(int8_t* p, f32x16 a) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

#else

struct f32x16 {
  float v __attribute__((vector_size(64)));
};

SVDQ_INLINE f32x16 set1(float x) {
  f32x16 a = {};
  a.v = x - a.v;  // not x + 0, which loses the sign of -0
  return a;
}
SVDQ_INLINE f32x16 load(const float* p) {
  f32x16 a;
  memcpy(&a, p, sizeof a);
  return a;
}
SVDQ_INLINE void store(float* p, f32x16 a) { memcpy(p, &a, sizeof a); }
SVDQ_INLINE f32x16 load_tail(const float* p, int64_t count) {
  f32x16 a = {};
  memcpy(&a, p, static_cast<size_t>(count) * sizeof(float));
  return a;
}
SVDQ_INLINE void store_tail(float* p, f32x16 a, int64_t count) {
  memcpy(p, &a, static_cast<size_t>(count) * sizeof(float));
}
SVDQ_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {a.v + b.v}; }
SVDQ_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {a.v - b.v}; }
SVDQ_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {a.v * b.v}; }
SVDQ_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {a.v / b.v}; }
SVDQ_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {a.v * b.v + c.v}; }
SVDQ_INLINE f32x16 min(f32x16 a, f32x16 b) { return {a.v < b.v ? a.v : b.v}; }
SVDQ_INLINE f32x16 max(f32x16 a, f32x16 b) { return {a.v > b.v ? a.v : b.v}; }
SVDQ_INLINE f32x16 abs(f32x16 a) {
  for (int i = 0; i < 16; ++i) a.v[i] = __builtin_fabsf(a.v[i]);
  return a;
}
SVDQ_INLINE float reduce_max(f32x16 a) {
  float largest = a.v[0];
  for (int i = 1; i < 16; ++i) largest = a.v[i] > largest ? a.v[i] : largest;
  return largest;
}
SVDQ_INLINE uint32_t equal_mask(f32x16 a, f32x16 b) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(a.v[i] == b.v[i]) << i;
  return mask;
}
SVDQ_INLINE uint32_t sign_mask(f32x16 a) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (bits_of(a.v[i]) >> 31) << i;
  return mask;
}
SVDQ_INLINE f32x16 load_bf16(const uint16_t* p) {
  float wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = bf16_to_f32(p[i]);
  return load(wide);
}
SVDQ_INLINE f32x16 load_f16(const uint16_t* p) {
  float wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = f16_to_f32(p[i]);
  return load(wide);
}
SVDQ_INLINE void store_f16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(a.v[i]);
}
SVDQ_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = f32_to_bf16(a.v[i]);
}
/* Integer-valued floats in [-128, 127] (or NaN, which gives any code) to int8, ties to even. */
SVDQ_INLINE void store_rounded_s8(int8_t* p, f32x16 a) {
  // 1.5 * 2^23: adding it leaves the integer, rounded half to even, in the low bits of the
  // significand.
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(bits_of(a.v[i] + 12582912.0f) & 0xffu);
}

#endif

SVDQ_INLINE f32x16 zero() { return set1(0.0f); }

/* The same value, which the compiler must have in full: a product passed through is never fused
 * into a later sum. */
SVDQ_INLINE f32x16 as_rounded(f32x16 a) {
#if SVDQ_ISA_AVX512
  __asm__("" : "+v"(a.v));
#elif SVDQ_ISA_AVX2
  __asm__("" : "+x"(a.lo), "+x"(a.hi));
#else
  __asm__("" : "+m"(a.v));
#endif
  return a;
}

}  // namespace svdq

#endif
