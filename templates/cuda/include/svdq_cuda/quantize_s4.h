// quantize_s4.h: smooth and code rows of activations that lie in shared memory, and project them
// down.
//
// The meaning is that of svdq_cpu/quantize_s4.h, operation by operation, so codes and scales are
// the same bits. A warp takes 128 neighbouring values at a time; a lane holds four of them side by
// side.
//
//   quantize_s4<GROUP, RANGE, ROTATE, THREADS, X>(rows, k, x, ldx, inv_smooth, shift, codes,
//   x_scale, whole_k)
//     x        [rows, k] in shared memory, row stride ldx, 16-byte aligned rows; becomes x_hat. X:
//              what Runs its rows are, of multiples of four
//     inv_smooth [k], 16-byte aligned
//     codes    [rows, k / 2] dense bytes, the low nibble first; Symmetric127: [rows, k] int8
//     x_scale  [rows, k / GROUP] dense
//   project_down<ROWS, THREADS, Stored>(rows, k, x_hat, ldx, lora_down, whole_k, rank, low, onto)
//     low [rows, rank] = (onto: +=) x_hat @ lora_down.T, lora_down [rank, k] as stored; rows <=
//     ROWS, k and ldx multiples of 4, x_hat 16-byte and lora_down 8-byte aligned
//
// k may be a part of whole_k, the length of a row in memory: groups and sums do not care. codes,
// x_scale and lora_down then begin at the part, and low is shared memory that the parts are added
// to, in order.
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

template <int GROUP, ActRange RANGE, bool ROTATE, int THREADS, class X>
SVDQ_INLINE void quantize_s4(int64_t rows, int64_t k, float* x, int64_t ldx,
                             const float* inv_smooth, float shift, int8_t* codes, float* x_scale,
                             int64_t whole_k) {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "groups of 32, 64 or 128 along k");
  static_assert(!ROTATE || RANGE != ActRange::Unsigned15, "a rotation makes values negative");
  constexpr int E = 4;
  constexpr int kLanes = GROUP / E;  // of a group
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(k, 32 * E));
  const uint32_t all = static_cast<uint32_t>(rows) * blocks;
  const int32_t lane = static_cast<int32_t>(lane_id());
  for (uint32_t block = warp_id(); block < all; block += THREADS / 32) {
    const int64_t row = block / blocks, k0 = block % blocks * (32 * E) + lane * E;
    const bool inside = k0 < k;  // a last block may have fewer groups
    float z[E] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (inside) {
      float4* const four = reinterpret_cast<float4*>(x + row * ldx + X::place(k0));
      const uint4 smooth = load_16(inv_smooth + k0);
      z[0] = (four->x + shift) * float_of(smooth.x);
      z[1] = (four->y + shift) * float_of(smooth.y);
      z[2] = (four->z + shift) * float_of(smooth.z);
      z[3] = (four->w + shift) * float_of(smooth.w);
      *four = make_float4(z[0], z[1], z[2], z[3]);
    }
    if constexpr (ROTATE) detail::butterfly64(z);
    const float scale = detail::group_scale<RANGE, kLanes>(z);
    float inverse = 1.0f / scale;
    if (!(abs(inverse) < kInf)) inverse = 0.0f;
    uint32_t code[E];
    SVDQ_UNROLL
    for (int i = 0; i < E; ++i) {
      const int32_t lowest = static_cast<int32_t>(lowest_code(RANGE));
      const int32_t highest = static_cast<int32_t>(highest_code(RANGE));
      const int32_t rounded = round_to_int(z[i] * inverse);
      code[i] = static_cast<uint32_t>(rounded < lowest    ? lowest
                                      : rounded > highest ? highest
                                                          : rounded);
    }
    if (!inside) continue;
    if (lane % kLanes == 0) x_scale[row * (whole_k / GROUP) + k0 / GROUP] = scale;
    if constexpr (RANGE == ActRange::Symmetric127) {
      *reinterpret_cast<uint32_t*>(codes + row * whole_k + k0) =
          (code[0] & 255) | (code[1] & 255) << 8 | (code[2] & 255) << 16 | code[3] << 24;
    } else {
      *reinterpret_cast<uint16_t*>(codes + (row * whole_k + k0) / 2) = static_cast<uint16_t>(
          (code[0] & 15) | (code[1] & 15) << 4 | (code[2] & 15) << 8 | (code[3] & 15) << 12);
    }
  }
}

namespace detail {

// Four neighbouring values of a row of lora_down, 4-aligned.
template <class Stored>
SVDQ_INLINE void load_four(const typename Stored::Type* from, float (&four)[4]) {
  if constexpr (sizeof(typename Stored::Type) == 2) {
    const uint2 words = load_8(from);
    SVDQ_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = i < 2 ? words.x : words.y;
      four[i] = Stored::load(static_cast<uint16_t>(i % 2 != 0 ? word >> 16 : word));
    }
  } else {
    SVDQ_UNROLL
    for (int i = 0; i < 4; ++i) four[i] = Stored::load(from[i]);
  }
}

}  // namespace detail

// A warp computes ROWS x kAtOnce sums together, so that a value of x_hat that leaves shared memory
// is used kAtOnce times, and one of lora_down ROWS times.
template <int ROWS, int THREADS, class Stored>
SVDQ_INLINE void project_down(int64_t rows, int64_t k, const float* x_hat, int64_t ldx,
                              const typename Stored::Type* lora_down, int64_t whole_k, int64_t rank,
                              float* low, bool onto = false) {
  constexpr int kAtOnce = ROWS <= 8 ? 4 : 2;
  const int64_t lane = lane_id();
  for (int64_t j = warp_id() * kAtOnce; j < rank; j += THREADS / 32 * kAtOnce) {
    float acc[ROWS][kAtOnce] = {};
    for (int64_t i = 4 * lane; i < k; i += 128) {
      float w[kAtOnce][4];
      SVDQ_UNROLL
      for (int n = 0; n < kAtOnce; ++n) {
        detail::load_four<Stored>(lora_down + min_i64(j + n, rank - 1) * whole_k + i, w[n]);
      }
      SVDQ_UNROLL
      for (int row = 0; row < ROWS; ++row) {
        const float4 x = *reinterpret_cast<const float4*>(x_hat + row * ldx + i);
        SVDQ_UNROLL
        for (int n = 0; n < kAtOnce; ++n) {
          acc[row][n] = mad(x.x, w[n][0], acc[row][n]);
          acc[row][n] = mad(x.y, w[n][1], acc[row][n]);
          acc[row][n] = mad(x.z, w[n][2], acc[row][n]);
          acc[row][n] = mad(x.w, w[n][3], acc[row][n]);
        }
      }
    }
    SVDQ_UNROLL
    for (int row = 0; row < ROWS; ++row) {
      SVDQ_UNROLL
      for (int n = 0; n < kAtOnce; ++n) {
        const float sum = lanes_sum<32>(acc[row][n]);
        if (lane == 0 && row < rows && j + n < rank) {
          float* const at = low + row * rank + j + n;
          *at = onto ? *at + sum : sum;
        }
      }
    }
  }
}

}  // namespace svdq

#endif  // SVDQ_CUDA_QUANTIZE_S4_H
