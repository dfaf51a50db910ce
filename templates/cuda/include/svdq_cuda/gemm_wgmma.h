// gemm_wgmma.h: the product of int8 codes by Hopper's warpgroups, for one scale per token and one
// per output column.
//
//   y[m, n] = x_scale[m] * w_scale[n] * sum_k x_codes[m, k] * w_codes[n, k] + bias[n]
//             (+ a low-rank branch, by the caller)
//
//   WgmmaGemm<Tile> gemm(shared)   Tile = GemmTile<128, 128, 8, 1, STAGES, 1>; kThreads = 288
//   threads:
//                                  8 warps multiply, one copies; kSharedBytes, aligned to 128
//   gemm.multiply(x, w)            all threads
//   gemm.scale(x, w, columns, bias)   sums become floats
//   gemm.multiplies()              whether this thread holds sums: what adds to them asks first
//   gemm.store_slab(0, tile)       as Accumulators', by all threads; `tile` may be `shared`
//
// Activations are row-major and come by cp.async, 16 bytes a copy, into core matrices (wgmma.h).
// Weights lie in memory as core matrices already ("s8_wgmma": [N/8, K/16, 8, 16], N and K padded to
// 128 with zeros) and come by bulk copies of 1 KiB. Sums are exact while K < 2^17.
//
// One CTA has an SM: two would need 96 registers a thread, and the low-rank branch spills there.
#ifndef SVDQ_CUDA_GEMM_WGMMA_H
#define SVDQ_CUDA_GEMM_WGMMA_H

#include "svdq_cuda/barrier.h"
#include "svdq_cuda/gemm_tile.h"
#include "svdq_cuda/wgmma.h"

namespace svdq {

struct WgmmaX {
  const int8_t* codes;  // [rows, k], at the tile's first row; 16-byte aligned, k % 16 == 0
  const float* scale;   // [rows]
  int64_t rows, k;
};

struct WgmmaW {
  const int8_t* codes;    // "s8_wgmma"
  const uint16_t* scale;  // bf16 [columns], at the tile's first column
  int64_t column;         // the tile's first
};

template <class Tile_>
struct WgmmaGemm : Accumulators<Tile_> {
  using Tile = Tile_;
  using Base = Accumulators<Tile>;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 32;
  static constexpr int kBk = 128, kStages = Tile::STAGES, kLag = kStages - 2;
  static constexpr int kCore = 128, kGroup = kBk / 16 * kCore;  // bytes of a matrix, of 8 rows
  static constexpr int kABytes = Tile::BM * kBk, kBBytes = Tile::BN * kBk;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kBarrierBytes = 128;
  static constexpr int kSharedBytes = kStages * kStageBytes + kBarrierBytes;
  static_assert(Tile::BM == 128 && Tile::BN == 128 && Tile::kThreads == kConsumers,
                "two warpgroups of 64 x 128");
  static_assert(Tile::WARPS_M == 8 && Tile::kSlabs == 1 && Tile::kSlabBytes <= kSharedBytes,
                "a warp has 16 rows, as wgmma's results do");
  static_assert(kStages >= 3 && 2 * 8 * kStages <= kBarrierBytes, "barriers");

  char* const stages;
  uint64_t *const full, *const empty;

  SVDQ_METHOD explicit WgmmaGemm(char* shared)
      : stages(shared),
        full(reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes)),
        empty(full + kStages) {}

  SVDQ_METHOD bool multiplies() const { return thread_id() < kConsumers; }

  SVDQ_METHOD void multiply(const WgmmaX& x, const WgmmaW& w) {
    if (thread_id() == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        mbarrier_init(full + stage, 32 + 1);  // the copying lanes, and once more for the weights
        mbarrier_init(empty + stage, kConsumers / 32);
      }
      mbarrier_init_fence();
    }
    cta_sync();
    const int steps = static_cast<int>(ceil_div(x.k, kBk));
    if (multiplies()) {
      sum(steps);
    } else {
      copy(steps, x, w);
    }
  }

  template <class Bias>
  SVDQ_METHOD void scale(const WgmmaX& x, const WgmmaW& w, int64_t columns, const Bias& bias) {
    if (!multiplies()) return;
    const int row = Base::row_of(0);
    const float upper = row < x.rows ? x.scale[row] : 0.0f;
    const float lower = row + 8 < x.rows ? x.scale[row + 8] : 0.0f;
    SVDQ_UNROLL
    for (int j = 0; j < Tile::NT; ++j) {
      SVDQ_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int column = Base::column_of(j) + i;
        const bool inside = column < columns;
        const float of_column = inside ? bf16_to_f32(w.scale[column]) : 0.0f;
        const float added = inside ? bias(column) : 0.0f;
        float (&sums)[4] = Base::acc[0][j];
        sums[i] = mad(static_cast<float>(codes[4 * j + i]), upper * of_column, added);
        sums[2 + i] = mad(static_cast<float>(codes[4 * j + 2 + i]), lower * of_column, added);
      }
    }
  }

  SVDQ_METHOD void store_slab(int, float* tile) const {
    cta_sync();
    if (multiplies()) {
      float* const to = tile + Base::row_of(0) * Tile::kLd;
      SVDQ_UNROLL
      for (int j = 0; j < Tile::NT; ++j) {
        const float (&sums)[4] = Base::acc[0][j];
        float* const at = to + Base::column_of(j);
        *reinterpret_cast<float2*>(at) = make_float2(sums[0], sums[1]);
        *reinterpret_cast<float2*>(at + 8 * Tile::kLd) = make_float2(sums[2], sums[3]);
      }
    }
    cta_sync();
  }

 private:
  int32_t codes[Tile::NT * 4];

  // The two warpgroups: 64 rows each, all columns.
  SVDQ_METHOD void sum(int steps) {
    const uint32_t rows = warp_uniform(warp_id()) / 4 * (64 / 8) * kGroup;
    int stage = 0;
    uint32_t parity = 0;
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      const char* const a = stages + stage * kStageBytes + rows;
      const char* const b = stages + stage * kStageBytes + kABytes;
      mbarrier_wait(full + stage, parity);
      wgmma_fence();
      SVDQ_UNROLL
      for (int part = 0; part < kBk / 32; ++part) {
        wgmma_s8<Tile::BN>(codes, wgmma_operand(a + part * 2 * kCore, kCore, kGroup),
                           wgmma_operand(b + part * 2 * kCore, kCore, kGroup),
                           step > 0 || part > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the step before this one: its stage is free
      if (step > 0) release(stage == 0 ? kStages - 1 : stage - 1);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      parity ^= stage == 0;
    }
    wgmma_wait<0>();
  }

  SVDQ_METHOD void release(int stage) {
    if (lane_id() == 0) mbarrier_arrive(empty + stage);
  }

  // The copying warp. A step is announced as full when the copies of kLag later ones are under way;
  // one stage more is what the warpgroups multiply, and one what they multiplied last.
  SVDQ_METHOD void copy(int steps, const WgmmaX& x, const WgmmaW& w) {
    const int lane = static_cast<int>(lane_id());
    // Eight lanes copy from eight rows, so that they write different banks.
    const int row = lane % 8, part = lane / 8;
    const int8_t* const from = x.codes + row * x.k + part * 16;
    char* const to = stages + part * kCore + row * 16;
    const int64_t k_padded = round_up(x.k, kBk);
    const int8_t* const weights = w.codes + w.column * k_padded;
    int stage = 0;
    uint32_t parity = 1;
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps + kLag; ++step) {
      if (step < steps) {
        mbarrier_wait(empty + stage, parity);
        char* const at = stages + stage * kStageBytes;
        if (lane == 0) mbarrier_arrive_expect(full + stage, kBBytes);
        warp_sync();
        if (lane < Tile::BN / 8) {
          bulk_copy(at + kABytes + lane * kGroup,
                    weights + lane * 8 * k_padded + static_cast<int64_t>(step) * kGroup, kGroup,
                    full + stage);
        }
        SVDQ_UNROLL
        for (int i = 0; i < Tile::BM / 8; ++i) {
          SVDQ_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int64_t k = static_cast<int64_t>(step) * kBk + half * 64;
            const bool valid = i * 8 + row < x.rows && k + part * 16 < x.k;
            cp_async_16(to + stage * kStageBytes + i * kGroup + half * 4 * kCore,
                        valid ? from + i * 8 * x.k + k : x.codes, valid);
          }
        }
        stage = stage + 1 == kStages ? 0 : stage + 1;
        parity ^= stage == 0;
      }
      cp_async_commit();
      if (step >= kLag) {
        cp_async_wait<kLag>();
        async_fence();
        mbarrier_arrive(full + (step - kLag) % kStages);
      }
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_WGMMA_H
