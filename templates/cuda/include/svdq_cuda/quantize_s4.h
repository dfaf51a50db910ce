// quantize_s4.h: smooth and code rows of activations that lie in shared memory, and project them
// down.
//
// The meaning is that of svdq_cpu/quantize_s4.h, operation by operation, so codes and scales are
// the same bits. A warp takes 64 neighbouring values (128 for groups of 128) at a time; a lane
// holds two (four) of them side by side.
//
//   quantize_s4<GROUP, RANGE, ROTATE, THREADS>(rows, k, x, ldx, inv_smooth, shift, codes, x_scale)
//     x        [rows, k] in shared memory, row stride ldx; becomes x_hat
//     codes    [rows, k / 2] dense bytes, the low nibble first; Symmetric127: [rows, k] int8
//     x_scale  [rows, k / GROUP] dense
//   project_down<ROWS, THREADS, Stored>(rows, k, x_hat, ldx, lora_down, rank, low)
//     low [rows, rank] = x_hat @ lora_down.T, lora_down [rank, k] as stored; rows <= ROWS
//
// Every thread of the CTA calls both, with a cta_sync before, between and after.
#ifndef SVDQ_CUDA_QUANTIZE_S4_H
#define SVDQ_CUDA_QUANTIZE_S4_H

#include "svdq_cpu/act_range.h"
#include "svdq_cuda/rows.h"

namespace svdq {

namespace detail {

// In each block of 64 values, E to a lane: the butterfly of svdq_cpu/quantize_s4.h.
template <int E>
SVDQ_INLINE void butterfly64(float (&z)[E]) {
  SVDQ_UNROLL
  for (int h = 1; h < E; h *= 2) {
    SVDQ_UNROLL
    for (int i = 0; i < E; ++i) {
      if ((i & h) != 0) continue;
      const float a = z[i], b = z[i + h];
      z[i] = a + b;
      z[i + h] = a - b;
    }
  }
  SVDQ_UNROLL
  for (int h = E; h < 64; h *= 2) {
    const uint32_t distance = static_cast<uint32_t>(h / E);
    const bool upper = (lane_id() & distance) != 0;
    SVDQ_UNROLL
    for (int i = 0; i < E; ++i) {
      const float other = shuffle_xor(z[i], distance);
      z[i] = upper ? other - z[i] : z[i] + other;
    }
  }
  SVDQ_UNROLL
  for (int i = 0; i < E; ++i) z[i] = z[i] * 0.125f;
}

// The scale of a group of LANES * E values.
template <ActRange RANGE, int LANES, int E>
SVDQ_INLINE float group_scale(const float (&z)[E]) {
  if constexpr (RANGE == ActRange::Unsigned15) {
    float largest = 0.0f;
    SVDQ_UNROLL
    for (int i = 0; i < E; ++i) largest = z[i] > largest ? z[i] : largest;
    return lanes_max<LANES>(largest) / highest_code(RANGE);
  } else {
    float largest = abs(z[0]);
    SVDQ_UNROLL
    for (int i = 1; i < E; ++i) largest = abs(z[i]) > largest ? abs(z[i]) : largest;
    largest = lanes_max<LANES>(largest);
    if constexpr (RANGE != ActRange::Signed8) return largest / highest_code(RANGE);
    // Twice the place of the first value of that magnitude, plus one where it is negative.
    int32_t first = INT32_MAX;
    SVDQ_UNROLL
    for (int i = E - 1; i >= 0; --i) {
      const int32_t place = 2 * (static_cast<int32_t>(lane_id()) * E + i);
      if (abs(z[i]) == largest) first = place + (z[i] < 0.0f ? 1 : 0);
    }
    first = lanes_min<LANES>(first);
    return ((first & 1) != 0 ? -largest : largest) / lowest_code(RANGE);
  }
}

}  // namespace detail

template <int GROUP, ActRange RANGE, bool ROTATE, int THREADS>
SVDQ_INLINE void quantize_s4(int64_t rows, int64_t k, float* x, int64_t ldx,
                             const float* inv_smooth, float shift, int8_t* codes, float* x_scale) {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "groups of 32, 64 or 128 along k");
  static_assert(!ROTATE || RANGE != ActRange::Unsigned15, "a rotation makes values negative");
  constexpr int E = GROUP == 128 ? 4 : 2;
  constexpr int kLanes = GROUP / E;  // of a group
  const int64_t blocks = ceil_div(k, 32 * E);
  const int32_t lane = static_cast<int32_t>(lane_id());
  for (int64_t block = warp_id(); block < rows * blocks; block += THREADS / 32) {
    const int64_t row = block / blocks, k0 = block % blocks * (32 * E) + lane * E;
    const bool inside = k0 < k;  // a last half block, of one group of 32
    float z[E];
    SVDQ_UNROLL
    for (int i = 0; i < E; ++i) {
      z[i] = 0.0f;
      if (!inside) continue;
      z[i] = (x[row * ldx + k0 + i] + shift) * inv_smooth[k0 + i];
      x[row * ldx + k0 + i] = z[i];
    }
    if constexpr (ROTATE) detail::butterfly64(z);
    const float scale = detail::group_scale<RANGE, kLanes>(z);
    float inverse = 1.0f / scale;
    if (!(abs(inverse) < kInf)) inverse = 0.0f;
    int32_t code[E];
    SVDQ_UNROLL
    for (int i = 0; i < E; ++i) {
      const int32_t lowest = static_cast<int32_t>(lowest_code(RANGE));
      const int32_t highest = static_cast<int32_t>(highest_code(RANGE));
      const int32_t rounded = round_to_int(z[i] * inverse);
      code[i] = rounded < lowest ? lowest : rounded > highest ? highest : rounded;
    }
    if (!inside) continue;
    if (lane % kLanes == 0) x_scale[row * (k / GROUP) + k0 / GROUP] = scale;
    SVDQ_UNROLL
    for (int i = 0; i < E; i += 2) {
      if constexpr (RANGE == ActRange::Symmetric127) {
        codes[row * k + k0 + i] = static_cast<int8_t>(code[i]);
        codes[row * k + k0 + i + 1] = static_cast<int8_t>(code[i + 1]);
      } else {
        const int32_t pair = (code[i] & 15) | (code[i + 1] & 15) << 4;
        codes[(row * k + k0 + i) / 2] = static_cast<int8_t>(static_cast<uint8_t>(pair));
      }
    }
  }
}

template <int ROWS, int THREADS, class Stored>
SVDQ_INLINE void project_down(int64_t rows, int64_t k, const float* x_hat, int64_t ldx,
                              const typename Stored::Type* lora_down, int64_t rank, float* low) {
  const int64_t lane = lane_id();
  for (int64_t j = warp_id(); j < rank; j += THREADS / 32) {
    float acc[ROWS] = {};
    for (int64_t i = lane; i < k; i += 32) {
      const float w = Stored::load(lora_down[j * k + i]);
      SVDQ_UNROLL
      for (int row = 0; row < ROWS; ++row) acc[row] = mad(x_hat[row * ldx + i], w, acc[row]);
    }
    SVDQ_UNROLL
    for (int row = 0; row < ROWS; ++row) {
      const float sum = lanes_sum<32>(acc[row]);
      if (lane == 0 && row < rows) low[row * rank + j] = sum;
    }
  }
}

}  // namespace svdq

#endif  // SVDQ_CUDA_QUANTIZE_S4_H
