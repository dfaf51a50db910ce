// Products of NVFP4 codes, one kernel per tile: what tests/cuda/test_gemm_nvfp4.py runs.
// The test includes gemm_nvfp4.h or gemm_tcgen05.h and defines KERNELS(X) before this text; X(name,
// Nvfp4Gemm or Tcgen05Gemm, tile...).
#include "svdq_cuda/gemm_low_rank.h"
#include "svdq_cuda/kernel.h"

// buffers: x_codes, x_scale, w, w_scale, bias, low, up, out; scalars: rows, columns, k, rank, row
// stride of out, exponent of the unit. Task t is column tile t % n of row tile t / n.
template <class Gemm, class Tile>
SVDQ_INLINE void run(const svdq::KernelArgs<8, 6>& args) {
  const int64_t m = args.scalars[0], n = args.scalars[1], k = args.scalars[2];
  const int64_t rank = args.scalars[3], ldo = args.scalars[4];
  const uint32_t column_tiles = static_cast<uint32_t>(svdq::ceil_div(n, Tile::BN));
  const int64_t row = svdq::cta_id() / column_tiles * Tile::BM;
  const int64_t column = svdq::cta_id() % column_tiles * Tile::BN;
  Gemm gemm(svdq::shared_memory());
  gemm.load({static_cast<const char*>(args.buffers[0]) + row * svdq::ceil_div(k, 64) * 32,
             static_cast<const char*>(args.buffers[1]) + row * svdq::ceil_div(k, 256) * 16,
             svdq::min_i64(Tile::BM, m - row), args.buffers[2], args.buffers[3], column, n, k,
             args.scalars[5]});
  const float* const bias = static_cast<const float*>(args.buffers[4]);
  gemm.start(n - column, [&](int64_t c) SVDQ_LAMBDA { return bias[column + c]; });
  svdq::add_low_rank<svdq::Bf16Math<svdq::Stored::BF16>, svdq::Stored::BF16>(
      gemm, static_cast<const float*>(args.buffers[5]) + row * rank, m - row, rank, args.buffers[6],
      column, n);
  gemm.multiply();
  float* const tile = reinterpret_cast<float*>(svdq::shared_memory());
  float* const out = static_cast<float*>(args.buffers[7]);
  SVDQ_NO_UNROLL
  for (int slab = 0; slab < Tile::kSlabs; ++slab) {
    const int64_t first = row + slab * Tile::kSlabRows;
    if (first >= m) break;
    gemm.store_slab(slab, tile);
    const int64_t rows = svdq::min_i64(Tile::kSlabRows, m - first);
    for (int64_t i = svdq::thread_id(); i < rows * Tile::BN; i += Gemm::kThreads) {
      const int64_t r = i / Tile::BN, c = i % Tile::BN;
      if (column + c < n) out[(first + r) * ldo + column + c] = tile[r * Tile::kLd + c];
    }
  }
}

#define TEST_KERNEL(name, gemm, ...)                                                  \
  using name##_tile = svdq::GemmTile<__VA_ARGS__>;                                    \
  using name##_gemm = svdq::gemm<name##_tile>;                                        \
  SVDQ_CUDA_KERNEL(name, name##_gemm::kThreads, 1, name##_gemm::kSharedBytes, 8, 6) { \
    run<name##_gemm, name##_tile>(args);                                              \
  }
KERNELS(TEST_KERNEL)
