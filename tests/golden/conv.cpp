// convolution → copy
#include <limits>

#include "svdq_kernel.h"
#include "svdq_cpu/rows.h"
#include "svdq_cpu/gemm_f32.h"
#include "svdq_cpu/conv.h"
extern "C" SVDQ_KERNEL_EXPORT void conv_f32_16x3x3x3__12_380029d1(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end) {
  char* const scratch = static_cast<char*>(args->scratch);
  const float* const b0 = static_cast<const float*>(args->buffers[0]);
  const float* const b1 = static_cast<const float*>(args->buffers[1]);
  const float* const b2 = static_cast<const float*>(args->buffers[2]);
  float* const b3 = static_cast<float*>(args->buffers[3]);
  const int64_t s0 = args->scalars[0];
  const int64_t s1 = args->scalars[1];
  float* const tile = reinterpret_cast<float*>(scratch + 0);
  void* const conv_scratch = scratch + 1536;
  (void)conv_scratch;
  (void)scratch;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t row_begin = task * 12;
    const int64_t rows = svdq::min_i64(12, s0 - row_begin);
    {
      svdq::ConvArgs conv{};
      conv.channels = 3;
      conv.x_n = 0;
      conv.x_c = 64;
      conv.x_h = 8;
      conv.in_h = 8;
      conv.out_h = 8;
      conv.k_h = 3;
      conv.stride_h = 1;
      conv.pad_h = 1;
      conv.dil_h = 1;
      conv.x_w = 1;
      conv.in_w = 8;
      conv.out_w = 8;
      conv.k_w = 3;
      conv.stride_w = 1;
      conv.pad_w = 1;
      conv.dil_w = 1;
      for (int64_t group = 0; group < 1; ++group) {
        conv.x = b0 + group * 3 * 64;
        svdq::conv_rows_f32(conv, row_begin, row_begin + rows, b1 + group * 432,
            0, 1, tile + group * 16, 32, conv_scratch);
      }
      svdq::add_to_rows<svdq::StoredF32>(rows, 16, b2, tile, 32);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o2 = (row_begin + r) % s1;
      const int64_t o1 = (row_begin + r) / s1;
      SVDQ_VECTORIZE
      for (int64_t i0 = 0; i0 < 16; ++i0) {
        const float v1 = tile[r * 32 + i0];
        b3[(i0 * 64 + o1 * s1 + o2)] = v1;
      }
    }
  }
}
