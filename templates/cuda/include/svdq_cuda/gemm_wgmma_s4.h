// gemm_wgmma_s4.h: the product of 8-bit activations and 4-bit weights by Hopper's warpgroups.
//
//   y[m, n] = x_scale[m] * w_scale[n] * sum_k x_codes[m, k] * w[n, k] + bias[n]
//             (+ a low-rank branch), w[n, k] = w_codes[n, k] * multiplier[n, k / GROUP], an int8
//
//   WgmmaGemmS4<Tile, Codes> gemm(shared)   Codes: WgmmaS8S4<GROUP>; Tile: WgmmaTile<M, stages>.
//                           As WgmmaGemm
//   add_low_rank(gemm, ...) as that of gemm_low_rank.h
//
// The product is computed transposed: weights are the left operand, which wgmma takes from
// registers. So they are widened there, and never lie in shared memory as bytes, which moves 128
// bytes a clock: of 128 k of 192 rows by 128 columns 88 KB (activations come once and are read
// twice, codes come and are read), in 704 of the tensor cores' 768 clocks. With bytes written there
// and read by both warpgroups, 128 rows by 192 columns move 128 KB, in 1024.
//
// A warp has 16 columns, all rows of the tile. While one 64 k are multiplied it widens the next;
// integer sums are exact while K < 2^17 (127 * 120 each).
#ifndef SVDQ_CUDA_GEMM_WGMMA_S4_H
#define SVDQ_CUDA_GEMM_WGMMA_S4_H

#include "svdq_cuda/gemm_low_rank.h"
#include "svdq_cuda/gemm_wgmma.h"
#include "svdq_cuda/nibbles_s8.h"

namespace svdq {

template <int M, int STAGES_>
struct WgmmaTile {
  static constexpr int BM = M, BN = 128, STAGES = STAGES_;
  // Lanes (g, t) store row 2 t and column g: 8 t + g are 32 banks.
  static constexpr int kLd = BN + 4;
};

template <class Tile, class Codes>
struct WgmmaGemmS4 : WgmmaFeed<Tile, Codes> {
  using Feed = WgmmaFeed<Tile, Codes>;
  static constexpr int kNT = Tile::BM / 8;

  // In row row_of(j) + i of the tile: [4 j + i] of column_of(0), [4 j + 2 + i] of column_of(1).
  float acc[kNT * 4];

  SVDQ_METHOD explicit WgmmaGemmS4(char* shared) : Feed(shared) {}

  SVDQ_METHOD static int row_of(int j) { return j * 8 + static_cast<int>(lane_id()) % 4 * 2; }
  SVDQ_METHOD static int column_of(int half) {
    return static_cast<int>(warp_id() * 16 + lane_id() / 4) + half * 8;
  }

  SVDQ_METHOD void multiply(int64_t k) {
    const int steps = static_cast<int>(ceil_div(k, Feed::kBk));
    const uint64_t x = wgmma_operand(Feed::stages, Feed::kCore, Feed::kRow8);
    int32_t sums[kNT * 4] = {};
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = static_cast<uint32_t>(Feed::now.stage) * Feed::kStageBytes;
      const uint64_t x_of_stage = wgmma_advance(x, stage);
      mbarrier_wait(Feed::full + Feed::now.stage, Feed::now.parity);
      SVDQ_UNROLL
      for (int block = 0; block < 2; ++block) {
        uint32_t w[2][4];
        widen(Feed::stages + stage + Feed::kXBytes, block, w);
        wgmma_fence();
        SVDQ_UNROLL
        for (int i = 0; i < 2; ++i) {
          const uint32_t at = (2 * block + i) * 2 * Feed::kCore;
          wgmma_s8<Tile::BM>(sums, w[i], wgmma_advance(x_of_stage, at), true);
        }
        wgmma_commit();
        wgmma_wait<1>();  // what was widened before is free
        if (block == 0 && step > 0) Feed::release(Feed::before(Feed::now.stage));
      }
      Feed::now.next();
    }
    wgmma_wait<0>();
    Feed::release(Feed::before(Feed::now.stage));
    SVDQ_UNROLL
    for (int i = 0; i < kNT * 4; ++i) acc[i] = static_cast<float>(sums[i]);
  }

  template <class Bias>
  SVDQ_METHOD void scale(const WgmmaX& x, const WgmmaW& w, const TilePlace& place,
                         const Bias& bias) {
    float of_column[2], added[2];
    SVDQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t column = place.column + column_of(half);
      const bool inside = column < w.columns;
      of_column[half] = inside ? bf16_to_f32(w.scale[column]) : 0.0f;
      added[half] = inside ? bias(column) : 0.0f;
    }
    SVDQ_UNROLL
    for (int j = 0; j < kNT; ++j) {
      // There are no registers to load the scales of all rows ahead.
      if (j % 8 == 0) warp_sync();
      SVDQ_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int64_t row = place.row + row_of(j) + i;
        const float of_row = row < x.rows ? x.scale[row] : 0.0f;
        SVDQ_UNROLL
        for (int half = 0; half < 2; ++half) {
          float& sum = acc[4 * j + 2 * half + i];
          sum = mad(sum, of_row * of_column[half], added[half]);
        }
      }
    }
  }

  SVDQ_METHOD void store_slab(int slab, float* tile) const {
    Feed::sync();
    SVDQ_UNROLL
    for (int j = 0; j < kNT; ++j) {
      if (j * 8 / Feed::kSlabRows != slab) continue;
      float* const to = tile + row_of(j) % Feed::kSlabRows * Tile::kLd;
      SVDQ_UNROLL
      for (int c = 0; c < 4; ++c) to[c % 2 * Tile::kLd + column_of(c / 2)] = acc[4 * j + c];
    }
    Feed::sync();
  }

 private:
  // The warp's 16 columns by 64 k of a stage, as two left operands of 32 k.
  SVDQ_METHOD static void widen(const char* weights, int block, uint32_t (&w)[2][4]) {
    constexpr int kGroups = 64 / (Codes::kGroup < 64 ? Codes::kGroup : 64);  // of the 64 k
    const uint32_t warp = warp_id(), lane = lane_id();
    const uint4 codes =
        *reinterpret_cast<const uint4*>(weights + warp / 2 * Codes::kCodeBytes +
                                        block * Codes::kBlockBytes + warp % 2 * 512 + lane * 16);
    const uint32_t upper[2] = {codes.x, codes.y}, lower[2] = {codes.z, codes.w};
    const char* const multipliers = weights + Feed::kPieces * Codes::kCodeBytes +
                                    warp / 2 * Codes::kMultiplierBytes + lane / 4 * 4 +
                                    warp % 2 * 2;
    SVDQ_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int group = (block * 64 + i * (64 / kGroups) % 64) / Codes::kGroup;
      const int8_t* const of_group = reinterpret_cast<const int8_t*>(multipliers + group * 32);
      const NibbleFactor up = nibble_factor(of_group[0]), down = nibble_factor(of_group[1]);
      w[i][0] = up.low(upper[i]);
      w[i][1] = down.low(lower[i]);
      w[i][2] = up.high(upper[i]);
      w[i][3] = down.high(lower[i]);
    }
  }
};

// Four of a row of `low`, zeros outside.
SVDQ_INLINE float4 low_quad(const float* low, int64_t row, int64_t rows, int64_t r, int64_t rank) {
  if (rank % 4 == 0) {
    const bool inside = row < rows && r < rank;
    const uint4 bits = inside ? load_16(low + row * rank + r) : make_uint4(0, 0, 0, 0);
    return make_float4(float_of(bits.x), float_of(bits.y), float_of(bits.z), float_of(bits.w));
  }
  const float2 first = low_pair(low, row, rows, r, rank);
  const float2 second = low_pair(low, row, rows, r + 2, rank);
  return make_float4(first.x, first.y, second.x, second.y);
}

// Transposed like the sums: `up` is the left operand, from registers. 32 of the rank at a time, the
// halves of `low` lie as core matrices where slabs will.
template <class Math, Stored W, class Tile, class Codes>
SVDQ_INLINE void add_low_rank(WgmmaGemmS4<Tile, Codes>& gemm, const float* low, int64_t rows,
                              int64_t rank, const void* up, int64_t column, int64_t columns) {
  constexpr int kPart = 32, kCore = 128, kRow8 = kPart / 8 * kCore, kHalf = Tile::BM / 8 * kRow8;
  static_assert(2 * kHalf <= WgmmaFeed<Tile, Codes>::kSlabBytes, "halves lie where slabs do");
  const int64_t steps = ceil_div(rank, 16);
  const int warp = static_cast<int>(warp_uniform(warp_id())), lane = static_cast<int>(lane_id());
  char* const halves = reinterpret_cast<char*>(gemm.tile());
  const char* const panels = static_cast<const char*>(up) +
                             panel_at(column, warp / 2, columns) * steps * FloatPanel<W>::kBytes +
                             FloatPanel<W>::lane_offset();
  SVDQ_NO_UNROLL
  for (int64_t part = 0; part < rank; part += kPart) {
    gemm.sync();  // what lay there has been read
    SVDQ_UNROLL
    for (int n = 0; n < Tile::BM / 32; ++n) {  // eight warps: each 8 rows by 16 of the rank
      const int i = n * 8 + warp, row = i / 2 * 8 + lane % 8, r = i % 2 * 16 + lane / 8 * 4;
      const float4 four = low_quad(low, row, rows, part + r, rank);
      uint2 hi, lo;
      Bf16Math<Stored::F32>::split(four.x, four.y, hi.x, lo.x);
      Bf16Math<Stored::F32>::split(four.z, four.w, hi.y, lo.y);
      char* const to = halves + i / 2 * kRow8 + r / 8 * kCore + lane % 8 * 16 + r % 8 * 2;
      *reinterpret_cast<uint2*>(to) = hi;
      *reinterpret_cast<uint2*>(to + kHalf) = lo;
    }
    async_fence();
    gemm.sync();
    const uint64_t of_hi = wgmma_operand(halves, kCore, kRow8);
    const uint64_t of_lo = wgmma_advance(of_hi, kHalf);
    SVDQ_NO_UNROLL
    for (int step = 0; step < 2 && part + step * 16 < rank; ++step) {
      FloatPanel<W> panel;
      panel.load(panels + (part / 16 + step) * FloatPanel<W>::kBytes);
      uint32_t hi[4], lo[4];
      SVDQ_UNROLL
      for (int half = 0; half < 2; ++half) {
        // Which two of the panel's four are the warp's, of registers that are known when compiled.
        typename Math::B even, odd;
        panel.template split<Math>(half, even);
        panel.template split<Math>(2 + half, odd);
        SVDQ_UNROLL
        for (int i = 0; i < 2; ++i) {
          hi[2 * i + half] = warp % 2 == 0 ? even.hi[i] : odd.hi[i];
          if constexpr (Math::kLowB) lo[2 * i + half] = warp % 2 == 0 ? even.lo[i] : odd.lo[i];
        }
      }
      const uint32_t at = step * 2 * kCore;
      wgmma_fence();
      wgmma_bf16<Tile::BM>(gemm.acc, hi, wgmma_advance(of_lo, at), true);
      if constexpr (Math::kLowB) wgmma_bf16<Tile::BM>(gemm.acc, lo, wgmma_advance(of_hi, at), true);
      wgmma_bf16<Tile::BM>(gemm.acc, hi, wgmma_advance(of_hi, at), true);
      wgmma_commit();
      wgmma_wait<0>();
    }
  }
}

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_WGMMA_S4_H
