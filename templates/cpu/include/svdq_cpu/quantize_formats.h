/* Smooth and code the activations of a linear in the formats beside int4.
 *
 *   x_hat = (x + shift) * inv_smooth                      two roundings
 *   z     = ROTATE ? butterfly(x_hat) : x_hat             as in quantize_s4.h
 *
 *   quantize_s8     a row at a time: scale = absmax / 127, code = round_half_even(z * (1 / scale))
 *   quantize_e4m3   a row at a time: scale = absmax / 448, code = E4M3(z * (1 / scale))
 *   quantize_e2m1   16 channels at a time, sent to each of `count` largest magnitudes in turn:
 *                     scale = E4M3(absmax / largest / tensor_scale) * tensor_scale / 2
 *                     code  = 2 * E2M1(z * (0.5 / scale))
 *                   and of these the first with the least sum of squares of z - code * scale
 *
 * Reciprocals are 0 where not finite. Codes and scales equal those of svdqc.compiler.quantize bit
 * for bit, but for the sign of an E4M3 zero.
 *
 * x            [rows, k], row stride ldx
 * inv_smooth   [k]
 * x_hat        [rows, k], row stride ld_hat; may be x itself
 * codes        [rows, k] dense
 * x_scale      [rows] (e2m1: [rows, k / 16]) dense
 *
 * k is a multiple of 16, and of 64 if ROTATE. rows may be 0.
 */
#ifndef SVDQ_CPU_QUANTIZE_FORMATS_H
#define SVDQ_CPU_QUANTIZE_FORMATS_H

#include "svdq_cpu/number_formats.h"
#include "svdq_cpu/quantize_s4.h"

namespace svdq {

/* Where a group of E2M1 may send its largest magnitude:
 * svdqc.compiler.quantize.formats.E2M1_RANGES. */
constexpr float kE2m1Six[] = {6.0f};
constexpr float kE2m1FourOverSix[] = {6.0f, 4.0f};
constexpr float kE2m1BestOfThree[] = {6.0f, 4.0f, 6.5f};

namespace detail {

/* x_hat of one row. */
SVDQ_INLINE void smooth_row(int64_t k, const float* x, const float* inv_smooth, float shift,
                            float* x_hat) {
  const f32x16 offset = set1(shift);
  for (int64_t i = 0; i < k; i += 16) {
    store(x_hat + i, (load(x + i) + offset) * load(inv_smooth + i));
  }
}

/* visit(first channel, vector) over a row of x_hat, rotated where asked for. */
template <bool ROTATE, class Visit>
SVDQ_INLINE void for_each_vector(int64_t k, const float* x_hat, const Visit& visit) {
  if constexpr (ROTATE) {
    for (int64_t i = 0; i < k; i += 64) {
      f32x16 z[4];
      unroll<4>([&](auto j) SVDQ_LAMBDA { z[j] = load(x_hat + i + 16 * j); });
      butterfly64(z);
      unroll<4>([&](auto j) SVDQ_LAMBDA { visit(i + 16 * j, z[j]); });
    }
  } else {
    for (int64_t i = 0; i < k; i += 16) visit(i, load(x_hat + i));
  }
}

/* One scale per row: `put(codes, ratios)` stores sixteen codes. */
template <bool ROTATE, typename Code, class Put>
SVDQ_INLINE void quantize_by_row(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                 const float* inv_smooth, float shift, float* x_hat, int64_t ld_hat,
                                 Code* codes, float* x_scale, float largest, const Put& put) {
  for (int64_t row = 0; row < rows; ++row) {
    float* hat = x_hat + row * ld_hat;
    smooth_row(k, x + row * ldx, inv_smooth, shift, hat);
    f32x16 absmax = zero();
    for_each_vector<ROTATE>(k, hat,
                            [&](int64_t, f32x16 z) SVDQ_LAMBDA { absmax = max(absmax, abs(z)); });
    const float scale = reduce_max(absmax) / largest;
    x_scale[row] = scale;
    const f32x16 inverse = finite_reciprocal(set1(scale));
    for_each_vector<ROTATE>(
        k, hat, [&](int64_t i, f32x16 z) SVDQ_LAMBDA { put(codes + row * k + i, z * inverse); });
  }
}

/* Sixteen groups of 16 side by side, lane g of z[c] being channel c of group g, sent to `largest`.
 * Returns the scales; `loss` gets the sums of squares of what is missed. */
SVDQ_INLINE f32x16 try_e2m1(const f32x16* z, f32x16 absmax, float largest, float tensor_scale,
                            f32x16* codes, f32x16* loss) {
  const f32x16 wanted = absmax / set1(largest) / set1(tensor_scale);
  const f32x16 scale = round_e4m3(wanted) * set1(0.5f * tensor_scale);
  const f32x16 half = set1(0.5f) / scale;
  const f32x16 inverse = select_less(abs(half), set1(__builtin_inff()), half, zero());
  *loss = zero();
  for (int c = 0; c < 16; ++c) {
    codes[c] = round_e2m1_doubled(z[c] * inverse);
    const f32x16 miss = z[c] - as_rounded(codes[c] * scale);
    *loss = *loss + as_rounded(miss * miss);
  }
  return scale;
}

SVDQ_INLINE f32x16 quantize_e2m1_groups(const f32x16* z, const float* largest, int64_t count,
                                        float tensor_scale, f32x16* codes) {
  f32x16 absmax = zero(), best_loss, loss, tried[16];
  for (int c = 0; c < 16; ++c) absmax = max(absmax, abs(z[c]));
  f32x16 scales = try_e2m1(z, absmax, largest[0], tensor_scale, codes, &best_loss);
  for (int64_t candidate = 1; candidate < count; ++candidate) {
    const f32x16 scale = try_e2m1(z, absmax, largest[candidate], tensor_scale, tried, &loss);
    scales = select_less(loss, best_loss, scale, scales);
    for (int c = 0; c < 16; ++c) codes[c] = select_less(loss, best_loss, tried[c], codes[c]);
    best_loss = select_less(loss, best_loss, loss, best_loss);
  }
  return scales;
}

}  // namespace detail

template <bool ROTATE>
void quantize_s8(int64_t rows, int64_t k, const float* x, int64_t ldx, const float* inv_smooth,
                 float shift, float* x_hat, int64_t ld_hat, int8_t* codes, float* x_scale) {
  detail::quantize_by_row<ROTATE>(
      rows, k, x, ldx, inv_smooth, shift, x_hat, ld_hat, codes, x_scale, 127.0f,
      [](int8_t* to, f32x16 ratio)
          SVDQ_LAMBDA { store_s8(to, round_even(min(max(ratio, set1(-127.0f)), set1(127.0f)))); });
}

template <bool ROTATE>
void quantize_e4m3(int64_t rows, int64_t k, const float* x, int64_t ldx, const float* inv_smooth,
                   float shift, float* x_hat, int64_t ld_hat, uint8_t* codes, float* x_scale) {
  detail::quantize_by_row<ROTATE>(
      rows, k, x, ldx, inv_smooth, shift, x_hat, ld_hat, codes, x_scale, 448.0f,
      [](uint8_t* to, f32x16 ratio) SVDQ_LAMBDA { store_e4m3(to, ratio); });
}

template <bool ROTATE>
void quantize_e2m1(int64_t rows, int64_t k, const float* x, int64_t ldx, const float* inv_smooth,
                   float shift, float* x_hat, int64_t ld_hat, int8_t* codes, float* x_scale,
                   const float* largest, int64_t count, float tensor_scale) {
  for (int64_t row = 0; row < rows; ++row) {
    float* hat = x_hat + row * ld_hat;
    detail::smooth_row(k, x + row * ldx, inv_smooth, shift, hat);
    for (int64_t first = 0; first < k; first += 256) {
      const int64_t channels = k - first < 256 ? k - first : 256;
      float by_group[256] = {}, across[256];
      detail::for_each_vector<ROTATE>(
          channels, hat + first, [&](int64_t i, f32x16 z) SVDQ_LAMBDA { store(by_group + i, z); });
      for (int c = 0; c < 16; ++c) {
        for (int g = 0; g < 16; ++g) across[c * 16 + g] = by_group[g * 16 + c];
      }
      f32x16 z[16], coded[16];
      for (int c = 0; c < 16; ++c) z[c] = load(across + c * 16);
      const f32x16 scales = detail::quantize_e2m1_groups(z, largest, count, tensor_scale, coded);
      for (int c = 0; c < 16; ++c) store(across + c * 16, coded[c]);
      int8_t* to = codes + row * k + first;
      for (int64_t g = 0; g < channels / 16; ++g) {
        for (int c = 0; c < 16; ++c) to[g * 16 + c] = static_cast<int8_t>(across[c * 16 + g]);
      }
      store(by_group, scales);
      memcpy(x_scale + row * (k / 16) + first / 16, by_group,
             static_cast<size_t>(channels / 16) * sizeof(float));
    }
  }
}

}  // namespace svdq

#endif
