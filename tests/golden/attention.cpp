// scaled_dot_product_attention → copy
#include <limits>

#include "svdq_kernel.h"
#include "svdq_cpu/rows.h"
#include "svdq_cpu/attention.h"
extern "C" SVDQ_KERNEL_EXPORT void attention_f32_d32__192_1bbf2db4(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end) {
  char* const scratch = static_cast<char*>(args->scratch);
  const float* const b0 = static_cast<const float*>(args->buffers[0]);
  float* const b1 = static_cast<float*>(args->buffers[1]);
  const int64_t s0 = args->scalars[0];
  const int64_t s1 = args->scalars[1];
  const int64_t s2 = args->scalars[2];
  const int64_t s3 = args->scalars[3];
  const int64_t s4 = args->scalars[4];
  const int64_t s5 = args->scalars[5];
  float* const tile = reinterpret_cast<float*>(scratch + 0);
  void* const attention_scratch = scratch + 24576;
  (void)scratch;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t blocks = svdq::ceil_div(s3, 192);
    const int64_t query_begin = task % blocks * 192;
    const int64_t rows = svdq::min_i64(192, s3 - query_begin);
    const int64_t row_begin = task / blocks * s3 + query_begin;
    int64_t lead = task / blocks;
    const int64_t l1 = lead % s1;
    lead /= s1;
    const int64_t l0 = lead % s2;
    lead /= s2;
    (void)l0; (void)l1;
    {
      static_assert(svdq::attention_scratch_bytes(32, 32) <= 280064);
      svdq::AttentionArgs attention{};
      attention.q = b0 + l1 * s4;
      attention.k = b0 + l1 * s4;
      attention.v = b0 + l1 * s4;
      attention.out = tile - query_begin * 32;
      attention.q_len = s3;
      attention.kv_len = s3;
      attention.head_dim = 32;
      attention.v_dim = 32;
      attention.q_row = 64;
      attention.k_row = 64;
      attention.v_row = 64;
      attention.out_row = 32;
      attention.q_col = 1;
      attention.k_col = 1;
      attention.v_col = 1;
      attention.scale = 0.1767766952966369f;
      attention.causal = false;
      svdq::attention_f32(attention, query_begin, query_begin + rows, attention_scratch);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o1 = (row_begin + r) % s3;
      const int64_t o0 = (row_begin + r) / s3;
      SVDQ_VECTORIZE
      for (int64_t i2 = 0; i2 < 32; ++i2) {
        const float v1 = tile[r * 32 + i2];
        b1[(i2 + o0 * s5 + o1 * s4)] = v1;
      }
    }
  }
}
