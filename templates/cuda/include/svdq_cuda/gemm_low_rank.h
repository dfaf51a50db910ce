// gemm_low_rank.h: the up-projection of a low-rank branch, added to the sums of a tile.
//
//   acc[m, n] += sum_r  low[m, r] * up[n, r]
//
//   low  [rows, rank] f32 row-major, at the tile's first row; up  "bf16_mma", "f16_mma" or
//   "f32_mma" [columns, rank]. Math (gemm_float_math.h) says how exact: Bf16Math on sm_80 and
//   later, F16Math. rank may be any number; k from rank on is zero in `up` and not read of `low`.
#ifndef SVDQ_CUDA_GEMM_LOW_RANK_H
#define SVDQ_CUDA_GEMM_LOW_RANK_H

#include "svdq_cuda/gemm_float_math.h"
#include "svdq_cuda/gemm_tile.h"

namespace svdq {

// low[row, r .. r + 1], zeros outside.
SVDQ_INLINE float2 low_pair(const float* low, int64_t row, int64_t rows, int64_t r, int64_t rank) {
  const bool first = row < rows && r < rank, second = row < rows && r + 1 < rank;
  const float* const at = low + row * rank + r;
  return make_float2(first ? at[0] : 0.0f, second ? at[1] : 0.0f);
}

template <class Math, Stored W, class Tile>
SVDQ_INLINE void add_low_rank(Accumulators<Tile>& sums, const float* low, int64_t rows,
                              int64_t rank, const void* up, int64_t column, int64_t columns) {
  const int64_t steps = ceil_div(rank, 16);
  const int64_t warp_column = column + sums.warp_column * Tile::NT * 8;
  const int t = static_cast<int>(lane_id()) % 4;
  SVDQ_NO_UNROLL
  for (int64_t step = 0; step < steps; ++step) {
    typename Math::A a[Tile::MT];
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) {
      float x[8];
      SVDQ_UNROLL
      for (int pair = 0; pair < 4; ++pair) {
        const float2 two = low_pair(low, sums.row_of(i) + pair / 2 * 8, rows,
                                    step * 16 + pair % 2 * 8 + 2 * t, rank);
        x[2 * pair] = two.x;
        x[2 * pair + 1] = two.y;
      }
      Math::split_a(x, a[i]);
    }
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) {
      FloatPanel<W> panel;
      const int64_t block = panel_at(warp_column, p, columns) * steps + step;
      panel.load(static_cast<const char*>(up) + block * FloatPanel<W>::kBytes +
                 FloatPanel<W>::lane_offset());
      SVDQ_UNROLL
      for (int j = 0; j < 4; ++j) {
        typename Math::B b;
        panel.template split<Math>(j, b);
        SVDQ_UNROLL
        for (int i = 0; i < Tile::MT; ++i) Math::multiply(sums.acc[i][p * 4 + j], a[i], b);
      }
    }
  }
}

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_LOW_RANK_H
