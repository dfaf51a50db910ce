// One product per kind of code, group and tile, with bias, low-rank branch and a plain store: what
// tests/cuda/test_gemm_int.py runs on the host back end and compiles for every architecture.
// The test defines KERNELS(X) and MATH before this text; X(name, codes, group (0: the whole of k),
// k of a stage, tile...).
#include "svdq_cuda/gemm_int.h"
#include "svdq_cuda/gemm_low_rank.h"
#include "svdq_cuda/kernel.h"

// buffers: x_codes, x_scale, w, w_scale, bias or null, low, up, out, multipliers of w; scalars:
// rows, columns, k, rank, row stride of out. Task t is column tile t % n of row tile t / n.
template <class Gemm, class Tile, int GROUP, int X_BITS>
SVDQ_INLINE void run(const svdq::KernelArgs<9, 5>& args) {
  const int64_t m = args.scalars[0], n = args.scalars[1], k = args.scalars[2];
  const int64_t rank = args.scalars[3], ldo = args.scalars[4];
  const uint32_t column_tiles = (static_cast<uint32_t>(n) + Tile::BN - 1) / Tile::BN;
  const int64_t row = int64_t{svdq::cta_id() / column_tiles} * Tile::BM;
  const int64_t column = int64_t{svdq::cta_id() % column_tiles} * Tile::BN;
  Gemm gemm(svdq::shared_memory());
  gemm.load({static_cast<const char*>(args.buffers[0]) + row * k * X_BITS / 8,
             static_cast<const float*>(args.buffers[1]) +
                 row * (GROUP == 0 ? 1 : k / (GROUP == 0 ? 1 : GROUP)),
             svdq::min_i64(Tile::BM, m - row), args.buffers[2],
             static_cast<const uint16_t*>(args.buffers[3]), column, n, k,
             static_cast<const int8_t*>(args.buffers[8])});
  const float* const bias = static_cast<const float*>(args.buffers[4]);
  const auto of_column = [&](int64_t c) SVDQ_LAMBDA { return bias[column + c]; };
  const int64_t with_bias = bias == nullptr ? 0 : n - column;
  if constexpr (Gemm::kPromotes) {
    gemm.start();
    gemm.multiply();
    gemm.add(with_bias, of_column);
  } else {
    gemm.start(with_bias, of_column);
  }
  svdq::add_low_rank<svdq::MATH<svdq::Stored::BF16>, svdq::Stored::BF16>(
      gemm, static_cast<const float*>(args.buffers[5]) + row * rank, m - row, rank, args.buffers[6],
      column, n);
  if constexpr (!Gemm::kPromotes) gemm.multiply();
  float* const tile = reinterpret_cast<float*>(svdq::shared_memory());
  float* const out = static_cast<float*>(args.buffers[7]);
  SVDQ_NO_UNROLL
  for (int slab = 0; slab < Tile::kSlabs; ++slab) {
    const int64_t first = row + slab * Tile::kSlabRows;
    if (first >= m) break;
    gemm.store_slab(slab, tile);
    const int64_t rows = svdq::min_i64(Tile::kSlabRows, m - first);
    for (int64_t i = svdq::thread_id(); i < rows * Tile::BN; i += Tile::kThreads) {
      const int64_t r = i / Tile::BN, c = i % Tile::BN;
      if (column + c < n) out[(first + r) * ldo + column + c] = tile[r * Tile::kLd + c];
    }
  }
}

#define TEST_KERNEL(name, codes, group, bk, ...)                                      \
  using name##_tile = svdq::GemmTile<__VA_ARGS__>;                                    \
  using name##_gemm = svdq::IntGemm<name##_tile, svdq::codes, group, bk>;             \
  SVDQ_CUDA_KERNEL(name, name##_tile::kThreads, 1, name##_gemm::kSharedBytes, 9, 5) { \
    run<name##_gemm, name##_tile, group, svdq::codes::kA>(args);                      \
  }
KERNELS(TEST_KERNEL)
