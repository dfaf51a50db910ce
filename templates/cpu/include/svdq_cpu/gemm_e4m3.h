/* The product of a linear with E4M3 weights and E4M3 inputs, for a block of rows and a range of
 * 16-column panels.
 *
 *   out[m, n] = x_scale[m] * w_scale[n] * sum_k codes[m, k] * w_codes[n, k]
 *
 * Products of E4M3 numbers are exact in f32; their sum is one chain of fma in rising order of k, so
 * it is within k * 2^-24 of the sum of their magnitudes.
 *
 * codes      [rows, k] dense, E4M3 bits
 * x_scale    [rows] f32
 * w_packed   "e4m3_n16", [panels, k, 16] E4M3 bits
 * w_scale    "bf16_scale_n16", [panels, 16] bfloat16; 0 in columns past the last
 * out        [rows, 16 * (panel_end - panel_begin)] f32, row stride ldo, from panel_begin's column
 *
 * decode_e4m3_rows makes the inputs floats: [rows, k], row stride ldx, over kE4m3Unit, as the
 * weights are decoded too; gemm_e4m3 multiplies by its square.
 */
#ifndef SVDQ_CPU_GEMM_E4M3_H
#define SVDQ_CPU_GEMM_E4M3_H

#include "svdq_cpu/gemm_f32.h"
#include "svdq_cpu/number_formats.h"

namespace svdq {
namespace detail {

struct WeightE4m3 : WeightF32 {
  typedef uint8_t W;
  SVDQ_INLINE B widen(const W* w) { return load_e4m3_small(w); }
};

}  // namespace detail

/* k is a multiple of 16. */
SVDQ_NOINLINE void decode_e4m3_rows(int64_t rows, int64_t k, const uint8_t* codes, float* x,
                                    int64_t ldx) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < k; i += 16)
      store(x + row * ldx + i, load_e4m3_small(codes + row * k + i));
  }
}

SVDQ_NOINLINE void gemm_e4m3(int64_t rows, int64_t k, const float* x, int64_t ldx,
                             const float* x_scale, const uint8_t* w_packed, const uint16_t* w_scale,
                             int64_t panel_begin, int64_t panel_end, float* out, int64_t ldo) {
  detail::gemm_strided<detail::WeightE4m3>(rows, k, x, ldx, w_packed, k * kLanes, panel_begin,
                                           panel_end, out, ldo, false);
  for (int64_t row = 0; row < rows; ++row) {
    const f32x16 unit = set1(x_scale[row] * (kE4m3Unit * kE4m3Unit));
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      float* at = out + row * ldo + (panel - panel_begin) * 16;
      store(at, load(at) * (load_bf16(w_scale + panel * 16) * unit));
    }
  }
}

}  // namespace svdq

#endif
