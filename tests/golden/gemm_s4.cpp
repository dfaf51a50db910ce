// linear_s4 → gelu → copy
#include <limits>

#include "svdq_kernel.h"
#include "svdq_cpu/rows.h"
#include "svdq_cpu/gemm_f32.h"
#include "svdq_cpu/gemm_s4.h"
extern "C" SVDQ_KERNEL_EXPORT void gemm_s4_s4_f32_64x64_r16_gelu__8x256_f903e380(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end) {
  char* const scratch = static_cast<char*>(args->scratch);
  const int8_t* const b0 = static_cast<const int8_t*>(args->buffers[0]);
  const float* const b1 = static_cast<const float*>(args->buffers[1]);
  const float* const b2 = static_cast<const float*>(args->buffers[2]);
  const int8_t* const b3 = static_cast<const int8_t*>(args->buffers[3]);
  const uint16_t* const b4 = static_cast<const uint16_t*>(args->buffers[4]);
  const uint16_t* const b5 = static_cast<const uint16_t*>(args->buffers[5]);
  const float* const b6 = static_cast<const float*>(args->buffers[6]);
  float* const b7 = static_cast<float*>(args->buffers[7]);
  const int64_t s0 = args->scalars[0];
  const int64_t s1 = args->scalars[1];
  float* const tile = reinterpret_cast<float*>(scratch + 0);
  void* const packed = scratch + 8704;
  (void)scratch;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t row_begin = task / 1 * 8;
    const int64_t col_begin = task % 1 * 256;
    const int64_t col_end = svdq::min_i64(64, col_begin + 256);
    const int64_t rows = svdq::min_i64(8, s0 - row_begin);
    const int64_t panel_begin = col_begin / 16, panel_end = (col_end + 15) / 16;
    svdq::pack_codes_s4<64>(rows, 64, b0 + row_begin * 64,
        b1 + row_begin * 1, packed);
    // What the sums are added to is written panel by panel, so that the sums meet it in the first-level cache.
    svdq::gemm_s4_onto<64, svdq::ActRange::Signed8>(rows, 64, packed, reinterpret_cast<const uint8_t*>(b3), b4, panel_begin, panel_end,
        tile, 272, true, [&](int64_t panel, int64_t end, float* to) {
          svdq::fill_panels<svdq::StoredF32>(rows, panel, end, 64, b6, to, 272);
          svdq::gemm_wbf16(rows, 16, b2 + row_begin * 16, 16, b5, panel, end, to, 272,
              true);
          (void)panel, (void)end, (void)to;
        });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      SVDQ_VECTORIZE
      for (int64_t i1 = col_begin; i1 < col_end; ++i1) {
        const float v1 = tile[r * 272 + i1 - col_begin];
        const float v2 = svdq::gelu_erf(v1);
        b7[(i1 + o0 * s1)] = v2;
      }
    }
  }
}
