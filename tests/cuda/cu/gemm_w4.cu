// Few rows times a weight of 4-bit codes: what tests/cuda/test_gemm_w4.py runs. The test defines
// KERNELS(X) before this text; X(name, math, codes, group, row tiles).
#include "svdq_cuda/gemm_w4.h"
#include "svdq_cuda/kernel.h"

// buffers: x, codes, w_scale, bias, out; scalars: rows, columns, k.
template <class Gemm>
SVDQ_INLINE void run(const svdq::KernelArgs<5, 3>& args) {
  const int64_t m = args.scalars[0], n = args.scalars[1], k = args.scalars[2];
  const uint32_t column_tiles = (static_cast<uint32_t>(n) + Gemm::kColumns - 1) / Gemm::kColumns;
  const int64_t row = int64_t{svdq::cta_id() / column_tiles} * Gemm::kRows;
  const int64_t column = int64_t{svdq::cta_id() % column_tiles} * Gemm::kColumns;
  const int64_t rows = svdq::min_i64(Gemm::kRows, m - row);
  const float* const x = static_cast<const float*>(args.buffers[0]) + row * k;
  const float* const bias = static_cast<const float*>(args.buffers[3]) + column;
  Gemm gemm(svdq::shared_memory());
  gemm.multiply(
      {args.buffers[1], args.buffers[2], column, n, rows, k},
      [&](int64_t r, int64_t i, float (&four)[4]) SVDQ_LAMBDA {
        const uint4 bits = svdq::load_16(x + r * k + i);
        four[0] = svdq::float_of(bits.x);
        four[1] = svdq::float_of(bits.y);
        four[2] = svdq::float_of(bits.z);
        four[3] = svdq::float_of(bits.w);
      },
      [&](int64_t c) SVDQ_LAMBDA { return bias[c]; });
  float* const out = static_cast<float*>(args.buffers[4]);
  for (int64_t i = svdq::thread_id(); i < rows * Gemm::kColumns; i += Gemm::kThreads) {
    const int64_t r = i / Gemm::kColumns, c = i % Gemm::kColumns;
    if (column + c < n) out[(row + r) * n + column + c] = gemm.tile()[r * Gemm::kLd + c];
  }
}

#define TEST_KERNEL(name, math, codes, group, row_tiles)                               \
  using name##_gemm = svdq::W4Gemm<svdq::math, svdq::Codes4::codes, group, row_tiles>; \
  SVDQ_CUDA_KERNEL(name, name##_gemm::kThreads, 1, name##_gemm::kSharedBytes, 5, 3) {  \
    run<name##_gemm>(args);                                                            \
  }
KERNELS(TEST_KERNEL)
