// quantize_s8.h: smooth rows of activations that lie in shared memory, and code each with 8 bits.
//
// The meaning is that of svdq_cpu/quantize_formats.h, operation by operation, so codes and scales
// are the same bits. A warp takes a row, 64 neighbouring values at a time, two to a lane.
//
//   quantize_s8<ROTATE, THREADS>(rows, k, x, ldx, inv_smooth, shift, codes, x_scale)
//   quantize_e4m3, the same for E4M3 codes
//     x        [rows, k] in shared memory, row stride ldx; becomes x_hat. k is even
//     codes    [rows, k] dense int8 or E4M3 bits, 2-aligned
//     x_scale  [rows] dense
//
// Every thread of the CTA calls it, with a cta_sync before and after.
#ifndef SVDQ_CUDA_QUANTIZE_S8_H
#define SVDQ_CUDA_QUANTIZE_S8_H

#include "svdq_cuda/quantize_s4.h"

namespace svdq {

namespace detail {

struct ToS8 {
  static constexpr float kLargest = 127.0f;
  SVDQ_INLINE uint32_t code(float ratio) {
    const int32_t code = round_to_int(ratio);
    return static_cast<uint8_t>(code < -127 ? -127 : code > 127 ? 127 : code);
  }
};

struct ToE4m3 {
  static constexpr float kLargest = 448.0f;
  SVDQ_INLINE uint32_t code(float ratio) { return f32_to_e4m3(ratio); }
};

template <class To, bool ROTATE, int THREADS>
SVDQ_INLINE void quantize_by_row(int64_t rows, int64_t k, float* x, int64_t ldx,
                                 const float* inv_smooth, float shift, void* codes,
                                 float* x_scale) {
  const int64_t first = 2 * static_cast<int64_t>(lane_id());
  for (int64_t row = warp_id(); row < rows; row += THREADS / 32) {
    float* const of_row = x + row * ldx;
    float largest = 0.0f;
    for (int64_t block = 0; block < k; block += 64) {
      const int64_t at = block + first;
      float z[2] = {0.0f, 0.0f};
      SVDQ_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (at >= k) continue;
        z[i] = (of_row[at + i] + shift) * inv_smooth[at + i];
        of_row[at + i] = z[i];
      }
      if constexpr (ROTATE) detail::butterfly64(z);
      const float larger = abs(z[0]) > abs(z[1]) ? abs(z[0]) : abs(z[1]);
      largest = larger > largest ? larger : largest;
    }
    const float scale = lanes_max<32>(largest) / To::kLargest;
    float inverse = 1.0f / scale;
    if (!(abs(inverse) < kInf)) inverse = 0.0f;
    for (int64_t block = 0; block < k; block += 64) {
      const int64_t at = block + first;
      float z[2] = {0.0f, 0.0f};
      if (at < k) {
        z[0] = of_row[at];
        z[1] = of_row[at + 1];
      }
      if constexpr (ROTATE) detail::butterfly64(z);
      if (at >= k) continue;
      const uint32_t pair = To::code(z[0] * inverse) | To::code(z[1] * inverse) << 8;
      static_cast<uint16_t*>(codes)[(row * k + at) / 2] = static_cast<uint16_t>(pair);
    }
    if (lane_id() == 0) x_scale[row] = scale;
  }
}

}  // namespace detail

template <bool ROTATE, int THREADS>
SVDQ_INLINE void quantize_s8(int64_t rows, int64_t k, float* x, int64_t ldx,
                             const float* inv_smooth, float shift, int8_t* codes, float* x_scale) {
  detail::quantize_by_row<detail::ToS8, ROTATE, THREADS>(rows, k, x, ldx, inv_smooth, shift, codes,
                                                         x_scale);
}

template <bool ROTATE, int THREADS>
SVDQ_INLINE void quantize_e4m3(int64_t rows, int64_t k, float* x, int64_t ldx,
                               const float* inv_smooth, float shift, uint8_t* codes,
                               float* x_scale) {
  detail::quantize_by_row<detail::ToE4m3, ROTATE, THREADS>(rows, k, x, ldx, inv_smooth, shift,
                                                           codes, x_scale);
}

}  // namespace svdq

#endif  // SVDQ_CUDA_QUANTIZE_S8_H
