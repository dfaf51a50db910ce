// amax → sub → exp → sum → div → copy
#include <limits>

#include "svdq_kernel.h"
#include "svdq_cpu/rows.h"
extern "C" SVDQ_KERNEL_EXPORT void rows_f32_exp__2_5d6703cd(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end) {
  char* const scratch = static_cast<char*>(args->scratch);
  const float* const b0 = static_cast<const float*>(args->buffers[0]);
  float* const b1 = static_cast<float*>(args->buffers[1]);
  const int64_t s0 = args->scalars[0];
  const int64_t s1 = args->scalars[1];
  float* const t0 = reinterpret_cast<float*>(scratch + 0);
  float* const t1 = reinterpret_cast<float*>(scratch + 64);
  float* const t2 = reinterpret_cast<float*>(scratch + 576);
  (void)scratch;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t row_begin = task * 2;
    const int64_t rows = svdq::min_i64(2, s0 - row_begin);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      {
        float acc = -std::numeric_limits<float>::infinity();
        for (int64_t i1 = 0; i1 < 64; ++i1) {
          const float v1 = b0[(i1 + o0 * s1)];
          acc = (v1 > acc || v1 != v1) ? v1 : acc;
        }
        t0[r * 1 + 0] = acc;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      SVDQ_VECTORIZE
      for (int64_t i2 = 0; i2 < 64; ++i2) {
        const float v1 = b0[(i2 + o0 * s1)];
        const float v2 = t0[r * 1 + 0];
        const float v3 = v1 - v2;
        const float v4 = svdq::exp(v3);
        t1[r * 64 + i2] = v4;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      {
        float acc = 0;
        SVDQ_VECTORIZE_SUM
        for (int64_t i2 = 0; i2 < 64; ++i2) {
          const float v1 = t1[r * 64 + i2];
          acc += v1;
        }
        t2[r * 1 + 0] = acc;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o0 = (row_begin + r);
      SVDQ_VECTORIZE
      for (int64_t i2 = 0; i2 < 64; ++i2) {
        const float v1 = t1[r * 64 + i2];
        const float v2 = t2[r * 1 + 0];
        const float v3 = v1 / v2;
        b1[(i2 + o0 * s1)] = v3;
      }
    }
  }
}
