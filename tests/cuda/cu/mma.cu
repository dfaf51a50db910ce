// One warp, one tensor-core operation: what tests/cuda/test_mma.py checks against whole matrices.
// The test defines KERNELS(X) before this text; X(name, type of the sums, statement on d, a, b,
// scales).
#include "svdq_cuda/kernel.h"
#include "svdq_cuda/mma.h"

namespace svdq {
// Scales of the second row tile and of the third column tile of a register. X takes no commas.
#if defined(SVDQ_CUDA_HOST) || defined(__CUDA_ARCH_FEAT_SM120_ALL)
SVDQ_INLINE void mma_e2m1_next(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               uint32_t a_scales, uint32_t b_scales) {
  mma_e2m1<1, 2>(d, a, b, a_scales, b_scales);
}
#endif
}  // namespace svdq

// buffers, by lane: a [32, 4], b [32, 2], c [32, 4] 32-bit words, scales [32, 2], d [32, 4]
#define TEST_KERNEL(name, sum, statement)                                                \
  SVDQ_CUDA_KERNEL(name, 32, 1, 0, 5, 0) {                                               \
    const uint32_t lane = svdq::lane_id();                                               \
    const uint32_t* const words = static_cast<const uint32_t*>(args.buffers[0]);         \
    const uint32_t* const of_b = static_cast<const uint32_t*>(args.buffers[1]);          \
    const sum* const of_c = static_cast<const sum*>(args.buffers[2]);                    \
    const uint32_t* const scales = static_cast<const uint32_t*>(args.buffers[3]);        \
    uint32_t a[4], b[2] = {of_b[lane * 2], of_b[lane * 2 + 1]};                          \
    sum d[4];                                                                            \
    for (int i = 0; i < 4; ++i) {                                                        \
      a[i] = words[lane * 4 + i];                                                        \
      d[i] = of_c[lane * 4 + i];                                                         \
    }                                                                                    \
    const uint32_t a_scales = scales[lane * 2], b_scales = scales[lane * 2 + 1];         \
    (void)a_scales;                                                                      \
    (void)b_scales;                                                                      \
    svdq::statement;                                                                     \
    for (int i = 0; i < 4; ++i) static_cast<sum*>(args.buffers[4])[lane * 4 + i] = d[i]; \
  }
KERNELS(TEST_KERNEL)

// buffers: a [32, 16] bytes (four matrices of eight rows), d [32, 4]; trans or not.
template <bool TRANS>
SVDQ_INLINE void load(const svdq::KernelArgs<2, 0>& args) {
  const uint32_t lane = svdq::lane_id();
  uint4* const shared = reinterpret_cast<uint4*>(svdq::shared_memory());
  shared[lane] = svdq::load_16(static_cast<const uint4*>(args.buffers[0]) + lane);
  svdq::warp_sync();
  uint32_t d[4];
  if (TRANS) {
    svdq::ldmatrix_x4_trans(d, shared + lane);
  } else {
    svdq::ldmatrix_x4(d, shared + lane);
  }
  for (int i = 0; i < 4; ++i) static_cast<uint32_t*>(args.buffers[1])[lane * 4 + i] = d[i];
}
SVDQ_CUDA_KERNEL(matrices, 32, 1, 512, 2, 0) { load<false>(args); }
SVDQ_CUDA_KERNEL(matrices_trans, 32, 1, 512, 2, 0) { load<true>(args); }
