// gemm_nvfp4.h: the product of E2M1 codes under E4M3 scales, by the block-scaled tensor cores of
// sm_120a.
//
//   acc[m, n] += unit * sum_g x_scale[m, g] * w_scale[n, g] * sum_{k in g} x[m, k] * w[n, k]
//
//   Nvfp4Gemm<Tile> gemm(shared)   as gemm_int.h's: load, start, add_low_rank, multiply, store_slab
//
// All operands in global memory, 16-byte aligned; groups g are 16 k, what is past k is zero:
//   x_codes  [rows, K / 2, rounded up to 32] bytes, the low nibble first
//   x_scale  [rows, K / 16, rounded up to 16] E4M3
//   w        "e2m1_mma", blocks of 32 columns by 64 k: [N/32, K/64, 2, 32 lanes, 16 bytes], bytes:
//            b[0], b[1] of mma_e2m1 for 8 columns, then for the next 8
//   w_scale  "e4m3_scale_mma": [N/32, K/64, 32 lanes, 4]: in lane (g, t) the four of column 8 t + g
//   unit     a power of two, given by its exponent: those of both sides' scales
//
// Tensor cores apply the scales and sum in f32, onto what the sums began with, over `unit`; blocks
// of 64 k come in rising order.
#ifndef SVDQ_CUDA_GEMM_NVFP4_H
#define SVDQ_CUDA_GEMM_NVFP4_H

#include "svdq_cuda/gemm_tile.h"

namespace svdq {

struct Nvfp4Operands {
  const void* x_codes;  // at the tile's first row
  const void* x_scale;  // at the tile's first row
  int64_t rows;         // of the tile that exist, at most BM
  const void* w;
  const void* w_scale;
  int64_t column;   // the tile's first
  int64_t columns;  // of the whole weight
  int64_t k;
  int64_t unit_exponent;
};

template <class Tile>
struct Nvfp4Gemm : Accumulators<Tile> {
  using Base = Accumulators<Tile>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBk = 128, kSteps = kBk / 64;  // k of a stage
  static constexpr int kRowBytes = kBk / 2, kChunks = kRowBytes / 16;
  // A stage: x_codes, then x_scale [BM, 8 bytes]. Two CTAs share an SM.
  static constexpr int kXScale = Tile::BM * kRowBytes;
  static constexpr int kStageBytes = kXScale + Tile::BM * 8;
  static constexpr int kLoadBytes = kStageBytes * Tile::STAGES;
  static constexpr int kSharedBytes = kLoadBytes > Tile::kSlabBytes ? kLoadBytes : Tile::kSlabBytes;
  static constexpr int kRows = kThreads / kChunks;  // copied at a time
  static constexpr int kBlockBytes = 1024, kBlockScales = 128;
  static constexpr int kPairs =
      (Tile::MT + 1) / 2;  // of row tiles, which share registers of scales
  static_assert(kRows % 8 == 0, "rows of a thread have the same swizzle");
  static_assert(kSteps == 2, "weights of two steps are held, and two words of scales are copied");

  struct Weights {
    uint4 codes[Tile::kPanels][2];
    uint32_t scales[Tile::kPanels];
  };

  char* const shared;
  const char *x_codes, *x_scale;
  const char *w[Tile::kPanels], *w_scale[Tile::kPanels];
  int64_t row_bytes, scale_bytes;
  int64_t unit_exponent;
  int rows, num_blocks, num_tiles;

  SVDQ_METHOD explicit Nvfp4Gemm(char* memory) : shared(memory) {}

  SVDQ_METHOD void load(const Nvfp4Operands& from) {
    rows = static_cast<int>(from.rows);
    unit_exponent = from.unit_exponent;
    num_blocks = static_cast<int>(ceil_div(from.k, 64));
    num_tiles = (num_blocks + kSteps - 1) / kSteps;
    row_bytes = num_blocks * 32;
    scale_bytes = ceil_div(from.k, 256) * 16;
    x_codes = static_cast<const char*>(from.x_codes);
    x_scale = static_cast<const char*>(from.x_scale);
    const int64_t warp_column = from.column + Base::warp_column * Tile::NT * 8;
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) {
      const int64_t block = panel_at(warp_column, p, from.columns) * num_blocks;
      w[p] = static_cast<const char*>(from.w) + block * kBlockBytes + lane_id() * 16;
      w_scale[p] = static_cast<const char*>(from.w_scale) + block * kBlockScales + lane_id() * 4;
    }
    SVDQ_UNROLL
    for (int stage = 0; stage < Tile::STAGES - 1; ++stage) load_tile(stage, stage);
  }

  SVDQ_METHOD void multiply() {
    scale_sums(power_of_two(-unit_exponent));
    Weights weights[2];  // of this step and the next
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) {
      load_weights(weights[0], p, 0);
      load_weights(weights[1], p, 1);
    }
    int slot = 0, next_slot = Tile::STAGES - 1;
    SVDQ_NO_UNROLL
    for (int tile = 0; tile < num_tiles; ++tile) {
      cp_async_wait<Tile::STAGES - 2>();
      cta_sync();
      load_tile(next_slot, tile + Tile::STAGES - 1);
      const char* const stage = shared + slot * kStageBytes;
      uint2 scales[kPairs];
      load_scales(stage, scales);
      SVDQ_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        multiply_step(stage, scales, step, tile * kSteps + step + 2, weights[step % 2]);
      }
      slot = slot + 1 == Tile::STAGES ? 0 : slot + 1;
      next_slot = next_slot + 1 == Tile::STAGES ? 0 : next_slot + 1;
    }
    cp_async_wait<0>();
    scale_sums(power_of_two(unit_exponent));
  }

 private:
  // As in gemm_int.h: 16-byte chunk c of a row of 64 bytes lies at chunk c ^ row / 2 % 4.
  SVDQ_METHOD static int place(int row, int chunk) {
    return row * kRowBytes + (chunk ^ row / 2 % 4) * 16;
  }

  // Stage `slot` gets tile `tile` of k, zeros outside; nothing past the last tile.
  SVDQ_METHOD void load_tile(int slot, int tile) {
    if (tile < num_tiles) {
      char* const stage = shared + slot * kStageBytes;
      const int thread = static_cast<int>(thread_id());
      const int row = thread / kChunks, chunk = thread % kChunks;
      const int64_t at = tile * kRowBytes + chunk * 16;
      const char* const x = x_codes + row * row_bytes + at;
      SVDQ_UNROLL
      for (int first = 0; first < Tile::BM; first += kRows) {
        if (first + kRows > Tile::BM && row + first >= Tile::BM) break;
        const bool valid = at < row_bytes && row + first < rows;
        cp_async_16(stage + place(row, chunk) + first * kRowBytes,
                    valid ? x + first * row_bytes : x_codes, valid);
      }
      SVDQ_UNROLL
      for (int first = 0; first < Tile::BM; first += kThreads) {
        const int of = first + thread;
        if (first + kThreads > Tile::BM && of >= Tile::BM) break;
        const bool valid = of < rows;
        cp_async<8>(stage + kXScale + of * 8,
                    valid ? x_scale + of * scale_bytes + tile * 8 : x_scale, valid);
      }
    }
    cp_async_commit();
  }

  // Lanes with t < 2 hold the scales of a tile's rows g and g + 8, the others those of the next
  // tile: a word for each step.
  SVDQ_METHOD void load_scales(const char* stage, uint2 (&scales)[kPairs]) const {
    const int lane = static_cast<int>(lane_id());
    SVDQ_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      const int next = lane % 4 / 2, i = 2 * pair + (2 * pair + 1 < Tile::MT ? next : 0);
      const int row = (i * Tile::WARPS_M + Base::warp_row) * 16 + lane / 4 + lane % 2 * 8;
      scales[pair] = *reinterpret_cast<const uint2*>(stage + kXScale + row * 8);
    }
  }

  // Past the end of k the last weights again: the activations there are zero.
  SVDQ_METHOD void load_weights(Weights& weights, int panel, int step) const {
    const int block = step < num_blocks ? step : num_blocks - 1;
    weights.codes[panel][0] = load_16(w[panel] + block * kBlockBytes);
    weights.codes[panel][1] = load_16(w[panel] + block * kBlockBytes + 512);
    weights.scales[panel] = load_4(w_scale[panel] + block * kBlockScales);
  }

  SVDQ_METHOD void multiply_step(const char* stage, const uint2 (&scales)[kPairs], int step,
                                 int next_step, Weights& weights) {
    const int lane = static_cast<int>(lane_id());
    uint32_t a[Tile::MT][4];
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) {
      const int row = (i * Tile::WARPS_M + Base::warp_row) * 16 + lane % 16;
      ldmatrix_x4(a[i], stage + place(row, step * 2 + lane / 16));
    }
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) {
      multiply_columns<0>(a, scales, step, p, weights);
      multiply_columns<1>(a, scales, step, p, weights);
      multiply_columns<2>(a, scales, step, p, weights);
      multiply_columns<3>(a, scales, step, p, weights);
      load_weights(weights, p, next_step);
    }
  }

  // Columns 8 J .. 8 J + 7 of a panel.
  template <int J>
  SVDQ_METHOD void multiply_columns(const uint32_t (&a)[Tile::MT][4], const uint2 (&scales)[kPairs],
                                    int step, int panel, const Weights& weights) {
    const uint4& words = weights.codes[panel][J / 2];
    const uint32_t b[2] = {J % 2 == 0 ? words.x : words.z, J % 2 == 0 ? words.y : words.w};
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) {
      const uint32_t of_rows = step == 0 ? scales[i / 2].x : scales[i / 2].y;
      float (&sums)[4] = Base::acc[i][panel * 4 + J];
      if (i % 2 == 0) {
        mma_e2m1<0, J>(sums, a[i], b, of_rows, weights.scales[panel]);
      } else {
        mma_e2m1<1, J>(sums, a[i], b, of_rows, weights.scales[panel]);
      }
    }
  }

  SVDQ_METHOD void scale_sums(float factor) {
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) {
      SVDQ_UNROLL
      for (int j = 0; j < Tile::NT; ++j) {
        SVDQ_UNROLL
        for (int c = 0; c < 4; ++c) Base::acc[i][j][c] *= factor;
      }
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_NVFP4_H
