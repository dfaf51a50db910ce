/* Smooth and code the activations of a quantized linear, one token and group at a time.
 *
 *   x_hat = (x + shift) * inv_smooth                      two roundings
 *   z     = ROTATE ? butterfly(x_hat) : x_hat
 *   code  = clamp(round_half_even(z * (1 / scale)))       1 / scale is 0 where not finite
 *
 * The scale of each GROUP of z along k:
 *
 *   Symmetric7      absmax / 7          codes -7 .. 7
 *   Symmetric127    absmax / 127        codes -127 .. 127
 *   Signed8         v / -8              codes -8 .. 7, v the first element of largest magnitude
 *   Unsigned15      max(max, 0) / 15    codes 0 .. 15
 *
 * butterfly, in each block of 64: for h = 1, 2, 4, 8, 16, 32 every pair (a, b) = (z[i], z[i + h]),
 * i & h == 0, becomes (a + b, a - b); then each is multiplied by 0.125. Every operation is one f32
 * rounding, in this order, so the codes equal those of svdqc.compiler.quantize bit for bit.
 *
 * x            [rows, k], row stride ldx
 * inv_smooth   [k], or null for ones
 * x_hat        [rows, k], row stride ld_hat; may be x itself, or null if not needed
 * codes        [rows, k] dense
 * x_scale      [rows, k / GROUP] dense
 *
 * k is a multiple of GROUP, and of 64 if ROTATE. rows may be 0.
 */
#ifndef SVDQ_CPU_QUANTIZE_S4_H
#define SVDQ_CPU_QUANTIZE_S4_H

#include "svdq_cpu/act_range.h"
#include "svdq_cpu/isa.h"

namespace svdq {

namespace detail {

/* One stage inside each f32x16: pairs H lanes apart. `z * +-1 + swapped` is a + b in the lower lane
 * of a pair and a - b in the upper one: the product is exact, so each is a single rounding. */
template <int H>
SVDQ_INLINE f32x16 butterfly_lanes(f32x16 z) {
#if SVDQ_ISA_AVX512
  const auto sign = [](int lane) SVDQ_LAMBDA { return (lane & H) ? -1.0f : 1.0f; };
  const __m512 signs =
      _mm512_setr_ps(sign(0), sign(1), sign(2), sign(3), sign(4), sign(5), sign(6), sign(7),
                     sign(8), sign(9), sign(10), sign(11), sign(12), sign(13), sign(14), sign(15));
  __m512 swapped;
  if constexpr (H == 1) swapped = _mm512_permute_ps(z.v, 0xB1);
  if constexpr (H == 2) swapped = _mm512_permute_ps(z.v, 0x4E);
  if constexpr (H == 4) swapped = _mm512_shuffle_f32x4(z.v, z.v, 0xB1);
  if constexpr (H == 8) swapped = _mm512_shuffle_f32x4(z.v, z.v, 0x4E);
  return {_mm512_fmadd_ps(z.v, signs, swapped)};
#elif SVDQ_ISA_AVX2
  if constexpr (H == 8) return {_mm256_add_ps(z.lo, z.hi), _mm256_sub_ps(z.lo, z.hi)};
  const auto sign = [](int lane) SVDQ_LAMBDA { return (lane & H) ? -1.0f : 1.0f; };
  const __m256 signs =
      _mm256_setr_ps(sign(0), sign(1), sign(2), sign(3), sign(4), sign(5), sign(6), sign(7));
  const auto half = [&](__m256 a) SVDQ_LAMBDA {
    __m256 swapped;
    if constexpr (H == 1) swapped = _mm256_permute_ps(a, 0xB1);
    if constexpr (H == 2) swapped = _mm256_permute_ps(a, 0x4E);
    if constexpr (H >= 4) swapped = _mm256_permute2f128_ps(a, a, 0x01);
    return _mm256_fmadd_ps(a, signs, swapped);
  };
  return {half(z.lo), half(z.hi)};
#else
  f32x16 out;
  for (int i = 0; i < 16; ++i) out.v[i] = (i & H) ? z.v[i ^ H] - z.v[i] : z.v[i] + z.v[i ^ H];
  return out;
#endif
}

/* The butterfly of the header comment on 64 floats in four vectors. */
SVDQ_INLINE void butterfly64(f32x16* z) {
  unroll<4>([&](auto i) SVDQ_LAMBDA {
    z[i] = butterfly_lanes<8>(butterfly_lanes<4>(butterfly_lanes<2>(butterfly_lanes<1>(z[i]))));
  });
  const f32x16 a = z[0] + z[1], b = z[0] - z[1], c = z[2] + z[3], d = z[2] - z[3];
  const f32x16 root = set1(0.125f);
  z[0] = (a + c) * root;
  z[1] = (b + d) * root;
  z[2] = (a - c) * root;
  z[3] = (b - d) * root;
}

typedef float f32x4 __attribute__((vector_size(16)));

/* Lane i of the result is the largest lane of v[i]. */
SVDQ_INLINE f32x4 reduce_max4(const f32x16* v) {
#if SVDQ_ISA_AVX512
  const auto interleave = [](__m512 a, __m512 b) SVDQ_LAMBDA {
    return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512d a = _mm512_castps_pd(interleave(v[0].v, v[1].v));
  const __m512d b = _mm512_castps_pd(interleave(v[2].v, v[3].v));
  const __m512 quarters = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                        _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  const __m256 halves =
      _mm256_max_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  return _mm_max_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
#elif SVDQ_ISA_AVX2
  const auto interleave = [](__m256 a, __m256 b) SVDQ_LAMBDA {
    return _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  };
  const auto folded = [&](int i) SVDQ_LAMBDA { return _mm256_max_ps(v[i].lo, v[i].hi); };
  const __m256d a = _mm256_castps_pd(interleave(folded(0), folded(1)));
  const __m256d b = _mm256_castps_pd(interleave(folded(2), folded(3)));
  const __m256 halves = _mm256_max_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                                      _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  return _mm_max_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
#else
  return f32x4{reduce_max(v[0]), reduce_max(v[1]), reduce_max(v[2]), reduce_max(v[3])};
#endif
}

/* The first of `count` values whose magnitude is absmax. Only for a group that has it with both
 * signs. */
SVDQ_NOINLINE float first_of_magnitude(const float* values, int count, float absmax) {
  for (int i = 0; i < count; ++i) {
    if (__builtin_fabsf(values[i]) == absmax) return values[i];
  }
  return absmax;
}

/* codes[i] = clamp(round_half_even(ratio)) for COUNT vectors of ratios. A group's ratios are at
 * most the largest code times (1 + 2^-20) in magnitude, as a reciprocal is finite only for scales
 * of 21 significant bits and more. So rounding stays in int8 and just two bounds bind: 7 under
 * Signed8, where +8 may come out, and 0 under Unsigned15, whose negative values can have any size;
 * their conversions saturate. */
template <ActRange RANGE, int COUNT>
SVDQ_INLINE void store_codes(int8_t* codes, const f32x16* ratio) {
  [[maybe_unused]] constexpr int kLowest = static_cast<int>(lowest_code(RANGE));
  [[maybe_unused]] constexpr int kHighest = static_cast<int>(highest_code(RANGE));
  static_assert(COUNT == 2 || COUNT == 4, "32 or 64 codes");
#if SVDQ_ISA_AVX512
  const auto words = [&](int i) SVDQ_LAMBDA {  // 32 int16, quarters of the two vectors alternating
    return _mm512_packs_epi32(_mm512_cvtps_epi32(ratio[i].v), _mm512_cvtps_epi32(ratio[i + 1].v));
  };
  const __m512i bytes = _mm512_packs_epi16(words(0), words(COUNT - 2));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = _mm512_max_epi8(bytes, _mm512_set1_epi8(kLowest));
  const __m512i clamped = _mm512_min_epi8(low, _mm512_set1_epi8(kHighest));
  const __m512i ordered = _mm512_permutexvar_epi32(order, clamped);
  if constexpr (COUNT == 4) _mm512_storeu_si512(codes, ordered);
  if constexpr (COUNT == 2) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm512_castsi512_si256(ordered));
  }
#elif SVDQ_ISA_AVX2
  unroll<COUNT / 2>([&](auto pair) SVDQ_LAMBDA {
    const f32x16 &a = ratio[2 * pair], &b = ratio[2 * pair + 1];
    const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32(b.lo), _mm256_cvtps_epi32(b.hi));
    const __m256i bytes = _mm256_packs_epi16(first, second);
    const __m256i low = _mm256_max_epi8(bytes, _mm256_set1_epi8(kLowest));
    const __m256i clamped = _mm256_min_epi8(low, _mm256_set1_epi8(kHighest));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 32 * pair),
                        _mm256_permutevar8x32_epi32(clamped, order));
  });
#else
  for (int i = 0; i < COUNT; ++i) {
    const f32x16 clamped = min(max(ratio[i], set1(lowest_code(RANGE))), set1(highest_code(RANGE)));
    // 1.5 * 2^23: adding it leaves the integer, rounded half to even, in the low bits.
    const f32x16 shifted = clamped + set1(12582912.0f);
    for (int lane = 0; lane < 16; ++lane) {
      codes[16 * i + lane] = static_cast<int8_t>(bits_of(shifted.v[lane]) & 0xffu);
    }
  }
#endif
}

/* Scales of COUNT <= 4 groups of VECTORS * 16 values each, in the lanes of the result. */
template <int VECTORS, int COUNT, ActRange RANGE>
SVDQ_INLINE f32x4 group_scales(const f32x16* z) {
  const auto over_group = [&](int lane, auto fold, auto of) SVDQ_LAMBDA {
    const f32x16* group = z + (lane < COUNT ? lane : COUNT - 1) * VECTORS;
    f32x16 folded = of(group[0]);
    unroll<VECTORS - 1>([&](auto i) SVDQ_LAMBDA { folded = fold(folded, of(group[i + 1])); });
    return folded;
  };
  const auto larger = [](f32x16 a, f32x16 b) SVDQ_LAMBDA { return max(a, b); };
  const auto smaller = [](f32x16 a, f32x16 b) SVDQ_LAMBDA { return min(a, b); };
  const auto same = [](f32x16 a) SVDQ_LAMBDA { return a; };
  const auto magnitude = [](f32x16 a) SVDQ_LAMBDA { return abs(a); };
  f32x16 largest[4];
  if constexpr (RANGE == ActRange::Signed8) {
    f32x16 lowered[4];
    unroll<4>([&](auto lane) SVDQ_LAMBDA {
      largest[lane] = over_group(lane, larger, same);
      lowered[lane] = zero() - over_group(lane, smaller, same);
    });
    const f32x4 up = reduce_max4(largest), down = reduce_max4(lowered);
    f32x4 extreme = up > down ? up : -down;
    const auto tied = up == down;
    if (__builtin_expect((tied[0] | tied[1] | tied[2] | tied[3]) != 0, 0)) {
      unroll<COUNT>([&](auto lane_constant) SVDQ_LAMBDA {
        constexpr int lane = lane_constant;
        if (!tied[lane]) return;
        float values[16 * VECTORS];  // a copy, so that z itself stays in registers
        unroll<VECTORS>([&](auto i) SVDQ_LAMBDA { store(values + 16 * i, z[lane * VECTORS + i]); });
        extreme[lane] = first_of_magnitude(values, 16 * VECTORS, up[lane]);
      });
    }
    return extreme / lowest_code(RANGE);
  } else if constexpr (RANGE == ActRange::Unsigned15) {
    unroll<4>([&](auto lane)
                  SVDQ_LAMBDA { largest[lane] = max(over_group(lane, larger, same), zero()); });
  } else {
    unroll<4>([&](auto lane) SVDQ_LAMBDA { largest[lane] = over_group(lane, larger, magnitude); });
  }
  return reduce_max4(largest) / highest_code(RANGE);
}

SVDQ_INLINE void store_hat(float* p, f32x16 a) { store(p, a); }
SVDQ_INLINE void store_hat(uint16_t* p, f32x16 a) { store_bf16(p, a); }

/* COUNT neighbouring groups, all in registers. */
template <int GROUP, int COUNT, ActRange RANGE, bool ROTATE, typename Hat>
SVDQ_INLINE void quantize_groups(const float* x, const float* inv_smooth, f32x16 offset, Hat* x_hat,
                                 int8_t* codes, float* x_scale) {
  constexpr int kVectors = GROUP / 16 * COUNT;
  f32x16 z[kVectors];
  unroll<kVectors>([&](auto i) SVDQ_LAMBDA {
    z[i] = load(x + 16 * i) + offset;
    if (inv_smooth != nullptr) z[i] = as_rounded(z[i] * load(inv_smooth + 16 * i));
    if (x_hat != nullptr) store_hat(x_hat + 16 * i, z[i]);
  });
  if constexpr (ROTATE) {
    unroll<kVectors / 4>([&](auto i) SVDQ_LAMBDA { butterfly64(z + 4 * i); });
  }
  const f32x4 scale = group_scales<GROUP / 16, COUNT, RANGE>(z);
  const f32x4 reciprocal = 1.0f / scale;
  const f32x4 inverse = reciprocal - reciprocal == 0.0f ? reciprocal : f32x4{};  // 0 if not finite
  memcpy(x_scale, &scale, COUNT * sizeof(float));
  unroll<kVectors>([&](auto i)
                       SVDQ_LAMBDA { z[i] = as_rounded(z[i] * set1(inverse[i / (GROUP / 16)])); });
  constexpr int kAtOnce = kVectors % 4 == 0 ? 4 : 2;
  unroll<kVectors / kAtOnce>([&](auto i) SVDQ_LAMBDA {
    store_codes<RANGE, kAtOnce>(codes + 16 * kAtOnce * i, z + kAtOnce * i);
  });
}

template <int GROUP, ActRange RANGE, bool ROTATE, typename Hat>
SVDQ_INLINE void quantize_rows(int64_t rows, int64_t k, const float* x, int64_t ldx,
                               const float* inv_smooth, float shift, Hat* x_hat, int64_t ld_hat,
                               int8_t* codes, float* x_scale) {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "groups of 32, 64 or 128 along k");
  static_assert(!ROTATE || RANGE != ActRange::Unsigned15, "a rotation makes values negative");
  // As many groups at once as registers hold, so that their reductions and divisions share work;
  // then what is left, at least a whole block of 64 if rotated.
  constexpr int kLeast = ROTATE && GROUP < 64 ? 2 : 1;
  constexpr int kMost = SVDQ_ISA_AVX512 ? (GROUP > 64 ? 2 : 4) : (GROUP > 32 ? 1 : 2);
  const f32x16 offset = set1(shift);
  for (int64_t row = 0; row < rows; ++row) {
    int64_t k0 = 0;
    const auto quantize = [&](auto count) SVDQ_LAMBDA {
      quantize_groups<GROUP, count, RANGE, ROTATE>(
          x + row * ldx + k0, inv_smooth == nullptr ? nullptr : inv_smooth + k0, offset,
          x_hat == nullptr ? nullptr : x_hat + row * ld_hat + k0, codes + row * k + k0,
          x_scale + row * (k / GROUP) + k0 / GROUP);
      k0 += count * GROUP;
    };
    while (k - k0 >= kMost * GROUP) quantize(std::integral_constant<int, kMost>{});
    while (k - k0 >= kLeast * GROUP) quantize(std::integral_constant<int, kLeast>{});
  }
}

}  // namespace detail

template <int GROUP, ActRange RANGE, bool ROTATE>
void quantize_s4(int64_t rows, int64_t k, const float* x, int64_t ldx, const float* inv_smooth,
                 float shift, float* x_hat, int64_t ld_hat, int8_t* codes, float* x_scale) {
  detail::quantize_rows<GROUP, RANGE, ROTATE>(rows, k, x, ldx, inv_smooth, shift, x_hat, ld_hat,
                                              codes, x_scale);
}

/* The same, with x_hat rounded to bfloat16: what gemm_bf16dot reads. Codes and scales come from the
 * f32 values, so they are the same bits. */
template <int GROUP, ActRange RANGE, bool ROTATE>
void quantize_s4_bf16(int64_t rows, int64_t k, const float* x, int64_t ldx, const float* inv_smooth,
                      float shift, uint16_t* x_hat, int64_t ld_hat, int8_t* codes, float* x_scale) {
  detail::quantize_rows<GROUP, RANGE, ROTATE>(rows, k, x, ldx, inv_smooth, shift, x_hat, ld_hat,
                                              codes, x_scale);
}

}  // namespace svdq

#endif
