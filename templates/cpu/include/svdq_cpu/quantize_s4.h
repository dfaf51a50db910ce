/* Smooth and code the activations of a quantized linear, one token and group at a time.
 *
 *   x_hat = (x + shift) * inv_smooth                                   two roundings
 *   z     = ROTATE ? butterfly(x_hat) : x_hat
 *   scale of each GROUP of z along k:
 *     Symmetric7    absmax / 7            codes -7 .. 7
 *     Symmetric127  absmax / 127          codes -127 .. 127
 *     Signed8       v / -8                codes -8 .. 7     v: the element of largest magnitude,
 * the first of equals Unsigned15    max(max, 0) / 15      codes 0 .. 15 code  =
 * clamp(round_half_even(z * (1 / scale)))                    1/scale is 0 where not finite
 *
 * butterfly, per block of 64: for h = 1, 2, 4, 8, 16, 32: every pair (a, b) = (z[i], z[i + h]), i &
 * h == 0, becomes (a + b, a - b); then each is multiplied by 0.125. Every operation is one f32
 * rounding, in this order, so the codes equal those of svdqc.compiler.quantize bit for bit.
 *
 * x        [rows, k], row stride ldx       x_hat   [rows, k], row stride ld_hat; may be x itself,
 * or null if not needed inv_smooth  [k] or null for ones         codes   [rows, k] dense x_scale
 * [rows, k / GROUP] dense k is a multiple of GROUP, and of 64 if ROTATE. rows may be 0.
 */
#ifndef SVDQ_CPU_QUANTIZE_S4_H
#define SVDQ_CPU_QUANTIZE_S4_H

#include "svdq_cpu/isa.h"

namespace svdq {

enum class ActRange { Symmetric7, Signed8, Unsigned15, Symmetric127 };

constexpr float lowest_code(ActRange range) {
  return range == ActRange::Symmetric7   ? -7.0f
         : range == ActRange::Signed8    ? -8.0f
         : range == ActRange::Unsigned15 ? 0.0f
                                         : -127.0f;
}

constexpr float highest_code(ActRange range) {
  return range == ActRange::Unsigned15 ? 15.0f : range == ActRange::Symmetric127 ? 127.0f : 7.0f;
}

/* The largest magnitude of a code; what integer kernels size their accumulators by. */
constexpr int largest_code(ActRange range) {
  return static_cast<int>(highest_code(range) > -lowest_code(range) ? highest_code(range)
                                                                    : -lowest_code(range));
}

namespace detail {

/* One stage inside each f32x16: pairs H lanes apart. `swapped + (+-z)` is a + b in the lower lane
 * of a pair and a - b in the upper one: the product by +-1 is exact, so each is a single rounding.
 */
template <int H>
SVDQ_INLINE f32x16 butterfly_lanes(f32x16 z) {
#if SVDQ_ISA_AVX512
  __m512 swapped;
  if constexpr (H == 1) swapped = _mm512_permute_ps(z.v, 0xB1);
  if constexpr (H == 2) swapped = _mm512_permute_ps(z.v, 0x4E);
  if constexpr (H == 4) swapped = _mm512_shuffle_f32x4(z.v, z.v, 0xB1);
  if constexpr (H == 8) swapped = _mm512_shuffle_f32x4(z.v, z.v, 0x4E);
  constexpr __mmask16 upper = H == 1 ? 0xAAAA : H == 2 ? 0xCCCC : H == 4 ? 0xF0F0 : 0xFF00;
  return {_mm512_mask_sub_ps(_mm512_add_ps(swapped, z.v), upper, swapped, z.v)};
#elif SVDQ_ISA_AVX2
  if constexpr (H == 8) return {_mm256_add_ps(z.lo, z.hi), _mm256_sub_ps(z.lo, z.hi)};
  const auto half = [](__m256 a) {
    __m256 swapped;
    if constexpr (H == 1) swapped = _mm256_permute_ps(a, 0xB1);
    if constexpr (H == 2) swapped = _mm256_permute_ps(a, 0x4E);
    if constexpr (H >= 4) swapped = _mm256_permute2f128_ps(a, a, 0x01);
    constexpr int upper = H == 1 ? 0xAA : H == 2 ? 0xCC : 0xF0;
    return _mm256_blend_ps(_mm256_add_ps(swapped, a), _mm256_sub_ps(swapped, a), upper);
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
  SVDQ_UNROLL
  for (int i = 0; i < 4; ++i) {
    z[i] = butterfly_lanes<8>(butterfly_lanes<4>(butterfly_lanes<2>(butterfly_lanes<1>(z[i]))));
  }
  const f32x16 a = z[0] + z[1], b = z[0] - z[1], c = z[2] + z[3], d = z[2] - z[3];
  const f32x16 root = set1(0.125f);
  z[0] = (a + c) * root;
  z[1] = (b + d) * root;
  z[2] = (a - c) * root;
  z[3] = (b - d) * root;
}

/* The scale of one group of VECTORS * 16 values. */
template <int VECTORS, ActRange RANGE>
SVDQ_INLINE float group_scale(const f32x16* z) {
  if constexpr (RANGE == ActRange::Unsigned15) {
    f32x16 largest = max(z[0], zero());
    SVDQ_UNROLL
    for (int i = 1; i < VECTORS; ++i) largest = max(largest, z[i]);
    return reduce_max(largest) / highest_code(RANGE);
  }
  f32x16 largest = abs(z[0]);
  SVDQ_UNROLL
  for (int i = 1; i < VECTORS; ++i) largest = max(largest, abs(z[i]));
  const float absmax = reduce_max(largest);
  if constexpr (RANGE == ActRange::Signed8) {
    // Lanes of the largest magnitude; the lowest set bit is the first of equals, whose sign the
    // scale takes.
    uint64_t signs = 0;
    int lane = -1;
    SVDQ_UNROLL
    for (int first = 0; first < VECTORS; first += 4) {
      uint64_t equal = 0, negative = 0;
      SVDQ_UNROLL
      for (int i = 0; i < (VECTORS < 4 ? VECTORS : 4); ++i) {
        equal |= static_cast<uint64_t>(equal_mask(abs(z[first + i]), set1(absmax))) << (16 * i);
        negative |= static_cast<uint64_t>(sign_mask(z[first + i])) << (16 * i);
      }
      if (lane < 0 && equal != 0) {
        lane = __builtin_ctzll(equal);
        signs = negative;
      }
    }
    const bool is_negative = lane >= 0 && ((signs >> lane) & 1u);
    return (is_negative ? -absmax : absmax) / lowest_code(RANGE);
  }
  return absmax / highest_code(RANGE);
}

template <int VECTORS, ActRange RANGE>
SVDQ_INLINE float code_group(const f32x16* z, int8_t* codes) {
  const float scale = group_scale<VECTORS, RANGE>(z);
  float inverse = 1.0f / scale;
  if (!(__builtin_fabsf(inverse) <= 3.402823466e+38f)) inverse = 0.0f;
  SVDQ_UNROLL
  for (int i = 0; i < VECTORS; ++i) {
    // Bounds are integers, so clamping before rounding gives the same codes as after it.
    const f32x16 ratio = as_rounded(z[i] * set1(inverse));
    const f32x16 clamped = min(max(ratio, set1(lowest_code(RANGE))), set1(highest_code(RANGE)));
    store_rounded_s8(codes + 16 * i, clamped);
  }
  return scale;
}

}  // namespace detail

template <int GROUP, ActRange RANGE, bool ROTATE>
void quantize_s4(int64_t rows, int64_t k, const float* x, int64_t ldx, const float* inv_smooth,
                 float shift, float* x_hat, int64_t ld_hat, int8_t* codes, float* x_scale) {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "groups of 32, 64 or 128 along k");
  static_assert(!ROTATE || RANGE != ActRange::Unsigned15, "a rotation makes values negative");
  // A unit is what is worked on in registers: whole groups and, if rotated, whole blocks of 64.
  constexpr int kUnit = ROTATE && GROUP < 64 ? 64 : GROUP;
  constexpr int kVectors = kUnit / 16;
  constexpr int kGroupVectors = GROUP / 16;
  const f32x16 offset = set1(shift);
  for (int64_t row = 0; row < rows; ++row) {
    const float* x_row = x + row * ldx;
    float* hat_row = x_hat == nullptr ? nullptr : x_hat + row * ld_hat;
    int8_t* code_row = codes + row * k;
    float* scale_row = x_scale + row * (k / GROUP);
    for (int64_t k0 = 0; k0 < k; k0 += kUnit) {
      f32x16 z[kVectors];
      unroll<kVectors>([&](auto i) SVDQ_LAMBDA {
        z[i] = load(x_row + k0 + 16 * i) + offset;
        if (inv_smooth != nullptr) z[i] = as_rounded(z[i] * load(inv_smooth + k0 + 16 * i));
        if (hat_row != nullptr) store(hat_row + k0 + 16 * i, z[i]);
      });
      if constexpr (ROTATE) {
        SVDQ_UNROLL
        for (int i = 0; i < kVectors; i += 4) detail::butterfly64(z + i);
      }
      SVDQ_UNROLL
      for (int i = 0; i < kVectors; i += kGroupVectors) {
        scale_row[(k0 + 16 * i) / GROUP] =
            detail::code_group<kGroupVectors, RANGE>(z + i, code_row + k0 + 16 * i);
      }
    }
  }
}

}  // namespace svdq

#endif
