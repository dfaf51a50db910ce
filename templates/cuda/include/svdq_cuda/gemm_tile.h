// gemm_tile.h: the output tile of a CTA in a product, in registers, and how an epilogue sees it.
//
//   GemmTile<BM, BN, WARPS_M, WARPS_N, STAGES, SLAB_TILES>
//     BM x BN elements of the result by WARPS_M * WARPS_N warps, STAGES tiles of the left operand
//     in flight. Warps take their 16-row tiles in turn (tile i of warp row w begins at row 16 (i
//     WARPS_M + w)), so that rows leave the registers in order: slab s is rows [s * kSlabRows, (s +
//     1) * kSlabRows), all columns.
//
//   Accumulators<Tile>
//     start(), start(columns, value)  sums are 0, or those of column c value(c), such as the bias
//     add(columns, value)     adds it; 0 from `columns`
//     promote(sums)           adds sums of the same shape, and sets them to 0
//     store_slab(s, tile)     writes slab s as f32 [kSlabRows, kLd] to shared memory, between two
//                             barriers of the CTA: what lay there may be overwritten, and on return
//                             every thread may read. Call for s = 0, 1, ... kSlabs - 1.
//
// kLd = BN + 8 keeps the pairs that a warp stores on different banks.
#ifndef SVDQ_CUDA_GEMM_TILE_H
#define SVDQ_CUDA_GEMM_TILE_H

#include "svdq_cuda/mma.h"

namespace svdq {

template <int BM_, int BN_, int WARPS_M_, int WARPS_N_, int STAGES_, int SLAB_TILES_>
struct GemmTile {
  static constexpr int BM = BM_, BN = BN_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
  static constexpr int STAGES = STAGES_, SLAB_TILES = SLAB_TILES_;
  static constexpr int MT = BM / (16 * WARPS_M), NT = BN / (8 * WARPS_N);
  static constexpr int kThreads = 32 * WARPS_M * WARPS_N;
  static constexpr int kSlabRows = 16 * WARPS_M * SLAB_TILES, kSlabs = BM / kSlabRows;
  static constexpr int kLd = BN + 8;
  static constexpr int kSlabBytes = kSlabRows * kLd * 4;
  static constexpr int kPanels = NT / 4;  // of 32 columns, for a warp
  static_assert(BM % kSlabRows == 0 && BN % (32 * WARPS_N) == 0 && STAGES >= 2, "tile");
};

template <class Tile>
struct Accumulators {
  static constexpr int kMT = Tile::MT, kNT = Tile::NT;
  float acc[kMT][kNT][4];
  int warp_row, warp_column, first_row, first_column;

  SVDQ_METHOD Accumulators() {
    const int warp = static_cast<int>(warp_id()), lane = static_cast<int>(lane_id());
    warp_row = warp % Tile::WARPS_M;
    warp_column = warp / Tile::WARPS_M;
    first_row = warp_row * 16 + lane / 4;
    first_column = warp_column * kNT * 8 + lane % 4 * 2;
  }

  // Of acc[i][j][0] in the tile; [1] is the next column, [2] and [3] lie 8 rows below.
  SVDQ_METHOD int row_of(int i) const { return i * Tile::WARPS_M * 16 + first_row; }
  SVDQ_METHOD int column_of(int j) const { return j * 8 + first_column; }

  template <class Value>
  SVDQ_METHOD void add(int64_t columns, const Value& value) {
    SVDQ_UNROLL
    for (int j = 0; j < kNT; ++j) {
      const int column = column_of(j);
      const float left = column < columns ? value(column) : 0.0f;
      const float right = column + 1 < columns ? value(column + 1) : 0.0f;
      SVDQ_UNROLL
      for (int i = 0; i < kMT; ++i) {
        acc[i][j][0] += left;
        acc[i][j][1] += right;
        acc[i][j][2] += left;
        acc[i][j][3] += right;
      }
    }
  }
  SVDQ_METHOD void start() {
    for_each_sum([](float& sum, int, int, int) SVDQ_LAMBDA { sum = 0.0f; });
  }
  template <class Value>
  SVDQ_METHOD void start(int64_t columns, const Value& value) {
    start();
    add(columns, value);
  }
  SVDQ_METHOD void promote(float (&sums)[kMT][kNT][4]) {
    for_each_sum([&](float& sum, int i, int j, int c) SVDQ_LAMBDA {
      sum += sums[i][j][c];
      sums[i][j][c] = 0.0f;
    });
  }
  template <class Visit>
  SVDQ_METHOD void for_each_sum(const Visit& visit) {
    SVDQ_UNROLL
    for (int i = 0; i < kMT; ++i) {
      SVDQ_UNROLL
      for (int j = 0; j < kNT; ++j) {
        SVDQ_UNROLL
        for (int c = 0; c < 4; ++c) visit(acc[i][j][c], i, j, c);
      }
    }
  }

  SVDQ_METHOD void store_slab(int slab, float* tile) const {
    cta_sync();
    SVDQ_UNROLL
    for (int i = 0; i < kMT; ++i) {
      if (i / Tile::SLAB_TILES != slab) continue;
      float* const to = tile + (row_of(i) - slab * Tile::kSlabRows) * Tile::kLd;
      SVDQ_UNROLL
      for (int j = 0; j < kNT; ++j) {
        const int column = column_of(j);
        *reinterpret_cast<float2*>(to + column) = make_float2(acc[i][j][0], acc[i][j][1]);
        *reinterpret_cast<float2*>(to + 8 * Tile::kLd + column) =
            make_float2(acc[i][j][2], acc[i][j][3]);
      }
    }
    cta_sync();
  }
};

// Panels of 32 columns that a warp reads: past the last one, the last again (its sums go nowhere).
SVDQ_INLINE int64_t panel_at(int64_t column, int panel, int64_t columns) {
  return min_i64(column / 32 + panel, ceil_div(columns, 32) - 1);
}

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_TILE_H
