// linear_w → copy
#include <limits>

#include "svdq_kernel.h"
#include "svdq_cpu/rows.h"
#include "svdq_cpu/gemm_w4.h"
extern "C" SVDQ_KERNEL_EXPORT void gemm_f32_s4_f32_24x64__8x256_ce4ff701(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end) {
  char* const scratch = static_cast<char*>(args->scratch);
  const float* const b0 = static_cast<const float*>(args->buffers[0]);
  const int8_t* const b1 = static_cast<const int8_t*>(args->buffers[1]);
  const uint16_t* const b2 = static_cast<const uint16_t*>(args->buffers[2]);
  const float* const b3 = static_cast<const float*>(args->buffers[3]);
  float* const b4 = static_cast<float*>(args->buffers[4]);
  const int64_t s0 = args->scalars[0];
  const int64_t s1 = args->scalars[1];
  const int64_t s2 = args->scalars[2];
  float* const tile = reinterpret_cast<float*>(scratch + 0);
  (void)scratch;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t row_begin = task / 1 * 8;
    const int64_t col_begin = task % 1 * 256;
    const int64_t col_end = svdq::min_i64(24, col_begin + 256);
    const int64_t rows = svdq::min_i64(8, s0 - row_begin);
    const int64_t panel_begin = col_begin / 16, panel_end = (col_end + 15) / 16;
    svdq::fill_panels<svdq::StoredF32>(rows, panel_begin, panel_end, 24, b3, tile, 272);
    svdq::gemm_w4<svdq::S4Values>(rows, 64, 64, b0 + 0 + row_begin * s1, s1, reinterpret_cast<const uint8_t*>(b1), b2, panel_begin, panel_end,
        tile, 272, true);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      SVDQ_VECTORIZE
      for (int64_t i1 = col_begin; i1 < col_end; ++i1) {
        const float v1 = tile[r * 272 + i1 - col_begin];
        b4[(i1 + o0 * s2)] = v1;
      }
    }
  }
}
