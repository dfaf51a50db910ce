// Products of coded operands by warpgroups, one kernel per kind of code: what
// tests/cuda/test_gemm_wgmma.py runs. The test defines KERNELS(X) before this text; X(name, codes).
#include "svdq_cuda/gemm_low_rank.h"
#include "svdq_cuda/gemm_wgmma.h"
#include "svdq_cuda/kernel.h"

using Tile = svdq::GemmTile<128, 128, 8, 1, 5, 1>;

// buffers: x codes, x scale, w codes, w scale, low, up, bias, out; scalars: rows, columns, k, rank,
// row stride of out, groups of k with a weight scale.
template <class Gemm>
SVDQ_INLINE void run(const svdq::KernelArgs<8, 6>& args) {
  const int64_t m = args.scalars[0], n = args.scalars[1], k = args.scalars[2];
  const int64_t rank = args.scalars[3], ldo = args.scalars[4];
  const uint32_t column_tiles = static_cast<uint32_t>(svdq::ceil_div(n, Tile::BN));
  const int64_t row = svdq::cta_id() / column_tiles * Tile::BM;
  const int64_t column = svdq::cta_id() % column_tiles * Tile::BN;
  const int64_t rows = svdq::min_i64(Tile::BM, m - row);
  const svdq::WgmmaX x{static_cast<const int8_t*>(args.buffers[0]) + row * k,
                       static_cast<const float*>(args.buffers[1]) + row, rows, k};
  const svdq::WgmmaW w{args.buffers[2],
                       static_cast<const uint16_t*>(args.buffers[3]) + (Gemm::kByGroup ? 0 : column),
                       column, args.scalars[5]};
  const float* const bias = static_cast<const float*>(args.buffers[6]) + column;
  Gemm gemm(svdq::shared_memory());
  gemm.multiply(x, w);
  gemm.scale(x, w, n - column, [&](int64_t c) SVDQ_LAMBDA { return bias[c]; });
  if (rank > 0 && gemm.multiplies()) {
    svdq::add_low_rank<svdq::Bf16Math<svdq::Stored::BF16>, svdq::Stored::BF16>(
        gemm, static_cast<const float*>(args.buffers[4]) + row * rank, rows, rank, args.buffers[5],
        column, n);
  }
  float* const tile = reinterpret_cast<float*>(svdq::shared_memory());
  gemm.store_slab(0, tile);
  float* const out = static_cast<float*>(args.buffers[7]) + row * ldo + column;
  for (int64_t i = svdq::thread_id(); i < rows * Tile::BN; i += Gemm::kThreads) {
    const int64_t r = i / Tile::BN, c = i % Tile::BN;
    if (column + c < n) out[r * ldo + c] = tile[r * Tile::kLd + c];
  }
}

#define TEST_KERNEL(name, codes)                                                      \
  using name##_gemm = svdq::WgmmaGemm<Tile, svdq::codes>;                             \
  SVDQ_CUDA_KERNEL(name, name##_gemm::kThreads, 1, name##_gemm::kSharedBytes, 8, 6) { \
    run<name##_gemm>(args);                                                           \
  }
KERNELS(TEST_KERNEL)
