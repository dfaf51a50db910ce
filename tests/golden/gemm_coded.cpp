// linear_coded → copy
#include <limits>

#include "svdq_kernel.h"
#include "svdq_cpu/rows.h"
#include "svdq_cpu/gemm_f32.h"
#include "svdq_cpu/gemm_s4.h"
extern "C" SVDQ_KERNEL_EXPORT void gemm_nvfp4_f32_40x64_r16__8x256_9a085372(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end) {
  char* const scratch = static_cast<char*>(args->scratch);
  const int8_t* const b0 = static_cast<const int8_t*>(args->buffers[0]);
  const int8_t* const b1 = static_cast<const int8_t*>(args->buffers[1]);
  const float* const b2 = static_cast<const float*>(args->buffers[2]);
  const float* const b3 = static_cast<const float*>(args->buffers[3]);
  const uint8_t* const b4 = static_cast<const uint8_t*>(args->buffers[4]);
  const uint16_t* const b5 = static_cast<const uint16_t*>(args->buffers[5]);
  const float* const b6 = static_cast<const float*>(args->buffers[6]);
  float* const b7 = static_cast<float*>(args->buffers[7]);
  const int64_t s0 = args->scalars[0];
  const int64_t s1 = args->scalars[1];
  const int64_t s2 = args->scalars[2];
  float* const tile = reinterpret_cast<float*>(scratch + 0);
  void* const packed = scratch + 8704;
  (void)scratch;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t row_begin = task / 1 * 8;
    const int64_t col_begin = task % 1 * 256;
    const int64_t col_end = svdq::min_i64(40, col_begin + 256);
    const int64_t rows = svdq::min_i64(8, s0 - row_begin);
    const int64_t panel_begin = col_begin / 16, panel_end = (col_end + 15) / 16;
    // What the sums are added to is written panel by panel, so that the sums meet it in the first-level cache.
    const auto start = [&](int64_t panel, int64_t end, float* to) {
      svdq::fill_panels<svdq::StoredF32>(rows, panel, end, 40, b6, to, 272);
      svdq::gemm_wbf16(rows, 16, b3 + row_begin * 16, 16, b5, panel, end, to, 272,
          true);
      (void)panel, (void)end, (void)to;
    };
    svdq::pack_codes<16, svdq::E2m1Weights>(rows, 64, b1 + row_begin * 64,
        b2 + row_begin * 4, false, __builtin_ldexpf(1.0f, static_cast<int>(s1)), packed);
    svdq::gemm_codes_onto<16, 12, svdq::E2m1Weights>(rows, 64, packed, reinterpret_cast<const uint8_t*>(b0), b4,
        panel_begin, panel_end, tile, 272, true, start);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      SVDQ_VECTORIZE
      for (int64_t i1 = col_begin; i1 < col_end; ++i1) {
        const float v1 = tile[r * 272 + i1 - col_begin];
        b7[(i1 + o0 * s2)] = v1;
      }
    }
  }
}
