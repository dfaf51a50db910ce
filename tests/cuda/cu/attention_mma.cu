// Attention on tensor cores for the shapes of tests/cuda/test_attention_mma.py, which defines
// KERNELS(X) before this text; X(name, head dim, v dim, queries, keys, parts, masked).
#include "svdq_cuda/attention_mma.h"
#include "svdq_cuda/kernel.h"

// buffers: q, k, v, mask, out [q_len, v_dim]; scalars: q_len, kv_len, row strides of q, k,
// v, column stride of v, row stride of mask, mask (0 none, 1 bytes, 2 f32), whether causal, the
// bits of scale.
template <class Attention, int HEAD_DIM, int V_DIM, int QUERIES>
SVDQ_INLINE void run(const svdq::KernelArgs<5, 10>& args) {
  svdq::AttentionArgs attention{};
  attention.q = static_cast<const float*>(args.buffers[0]);
  attention.k = static_cast<const float*>(args.buffers[1]);
  attention.v = static_cast<const float*>(args.buffers[2]);
  attention.q_len = args.scalars[0];
  attention.kv_len = args.scalars[1];
  attention.q_row = args.scalars[2];
  attention.k_row = args.scalars[3];
  attention.v_row = args.scalars[4];
  attention.q_col = attention.k_col = 1;
  attention.v_col = args.scalars[5];
  attention.mask_row = args.scalars[6];
  attention.mask_col = 1;
  if (args.scalars[7] == 1) {
    attention.mask_bool = static_cast<const uint8_t*>(args.buffers[3]);
  } else if (args.scalars[7] == 2) {
    attention.mask_f32 = static_cast<const float*>(args.buffers[3]);
  }
  attention.scale = svdq::float_of(static_cast<uint32_t>(args.scalars[9]));
  attention.causal = args.scalars[8] != 0;
  const int64_t begin = static_cast<int64_t>(svdq::cta_id()) * QUERIES;
  const int64_t rows = svdq::min_i64(QUERIES, attention.q_len - begin);
  float* const out = static_cast<float*>(args.buffers[4]);
  Attention::run(attention, begin, rows, svdq::shared_memory(),
                 [&](int64_t r, int d, float value)
                     SVDQ_LAMBDA { out[(begin + r) * V_DIM + d] = value; });
}

#define TEST_KERNEL(name, head, v, queries, keys, parts, masked)                                 \
  using name##_attention = svdq::MmaAttention<head, v, queries, keys, parts, masked>;            \
  SVDQ_CUDA_KERNEL(name, name##_attention::kThreads, 0, name##_attention::kSharedBytes, 5, 10) { \
    run<name##_attention, head, v, queries>(args);                                               \
  }
KERNELS(TEST_KERNEL)
