// Products of coded operands by warpgroups, one kernel per kind of code: what
// tests/cuda/test_gemm_wgmma.py runs. The test defines KERNELS(X) before this text; X(name,
// product, codes, tile...).
#include "svdq_cuda/gemm_low_rank.h"
#include "svdq_cuda/gemm_wgmma.h"
#include "svdq_cuda/gemm_wgmma_s4.h"
#include "svdq_cuda/kernel.h"

// buffers: x codes, x scale, w codes, w scale, low, up, bias, out, multipliers of w; scalars: rows,
// columns, k, rank, row stride of out.
template <class Gemm>
SVDQ_INLINE void run(const svdq::KernelArgs<9, 5>& args) {
  using Tile = typename Gemm::Tile;
  const int64_t m = args.scalars[0], n = args.scalars[1], k = args.scalars[2];
  const int64_t rank = args.scalars[3], ldo = args.scalars[4];
  const svdq::WgmmaX x{args.buffers[0], static_cast<const float*>(args.buffers[1]), m, k};
  const svdq::WgmmaW w{args.buffers[2], static_cast<const uint16_t*>(args.buffers[3]), n,
                       static_cast<const int8_t*>(args.buffers[8])};
  const float* const bias = static_cast<const float*>(args.buffers[6]);
  const svdq::TileOrder<Tile::BM, Tile::BN, 2> order(m, n);
  Gemm gemm(svdq::shared_memory());
  gemm.begin();
  if (!gemm.multiplies()) {
    gemm.feed(order.tiles, k, [&](uint32_t number) SVDQ_LAMBDA -> svdq::WgmmaSource {
      return {x, w, order.place(number)};
    });
    return;
  }
  gemm.take();
  SVDQ_NO_UNROLL
  for (uint32_t number = svdq::cta_id(); number < order.tiles; number += svdq::num_ctas()) {
    const svdq::TilePlace place = order.place(number);
    gemm.multiply(k);
    gemm.scale(x, w, place, [&](int64_t c) SVDQ_LAMBDA { return bias[c]; });
    if (rank > 0) {
      svdq::add_low_rank<svdq::Bf16Math<svdq::Stored::BF16>, svdq::Stored::BF16>(
          gemm, static_cast<const float*>(args.buffers[4]) + place.row * rank, m - place.row, rank,
          args.buffers[5], place.column, n);
    }
    SVDQ_NO_UNROLL
    for (int slab = 0; slab < Gemm::kSlabs; ++slab) {
      const int64_t row = place.row + slab * Gemm::kSlabRows;
      const int64_t rows = svdq::min_i64(Gemm::kSlabRows, m - row);
      if (rows <= 0) break;
      gemm.store_slab(slab, gemm.tile());
      for (int64_t i = svdq::thread_id(); i < rows * Tile::BN; i += Gemm::kConsumers) {
        const int64_t r = i / Tile::BN, c = i % Tile::BN, column = place.column + c;
        if (column < n) {
          static_cast<float*>(args.buffers[7])[(row + r) * ldo + column] =
              gemm.tile()[r * Tile::kLd + c];
        }
      }
    }
  }
}

#define TEST_KERNEL(name, product, codes, ...)                                        \
  using name##_gemm = svdq::product<svdq::__VA_ARGS__, svdq::codes>;                  \
  SVDQ_CUDA_KERNEL(name, name##_gemm::kThreads, 1, name##_gemm::kSharedBytes, 9, 5) { \
    run<name##_gemm>(args);                                                           \
  }
KERNELS(TEST_KERNEL)
