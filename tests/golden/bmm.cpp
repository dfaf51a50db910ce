// bmm → copy
#include <limits>

#include "svdq_kernel.h"
#include "svdq_cpu/rows.h"
#include "svdq_cpu/gemm_f32.h"
extern "C" SVDQ_KERNEL_EXPORT void bmm_f32__12_7c4a42e3(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end) {
  char* const scratch = static_cast<char*>(args->scratch);
  const float* const b0 = static_cast<const float*>(args->buffers[0]);
  float* const b1 = static_cast<float*>(args->buffers[1]);
  const int64_t s0 = args->scalars[0];
  const int64_t s1 = args->scalars[1];
  const int64_t s2 = args->scalars[2];
  float* const tile = reinterpret_cast<float*>(scratch + 0);
  float* const x_tile = reinterpret_cast<float*>(scratch + 768);
  float* const panels = reinterpret_cast<float*>(scratch + 3840);
  (void)scratch;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t blocks = svdq::ceil_div(8, 12);
    const int64_t first = task % blocks * 12;
    const int64_t rows = svdq::min_i64(12, 8 - first);
    const int64_t row_begin = task / blocks * 8 + first;
    int64_t lead = task / blocks;
    const int64_t l0 = lead % s1;
    lead /= s1;
    (void)l0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      SVDQ_VECTORIZE
      for (int64_t ik = 0; ik < 64; ++ik) {
        const float v1 = b0[(ik + o0 * s2)];
        x_tile[r * 64 + ik] = v1;
      }
    }
    svdq::pack_b(64, 8, b0, 1, 64, panels);
    svdq::gemm_f32(rows, 64, x_tile, 64, panels, 0, (8 + 15) / 16, tile, 16, false);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      SVDQ_VECTORIZE
      for (int64_t i1 = 0; i1 < 8; ++i1) {
        const float v1 = tile[r * 16 + i1];
        b1[(i1 + o0 * s0)] = v1;
      }
    }
  }
}
