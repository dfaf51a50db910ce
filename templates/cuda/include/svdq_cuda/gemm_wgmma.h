// gemm_wgmma.h: the product of 8-bit activations and coded weights by Hopper's warpgroups.
//
//   y[m, n] = x_scale[m] * w_scale[n] * sum_k x_codes[m, k] * w_codes[n, k] + bias[n]
//             (+ a low-rank branch, by the caller); where weights are scaled by group, w_scale[n,
//             g] times the sum of each
//
//   WgmmaGemm<Tile, Codes> gemm(shared)   Codes: gemm_wgmma_codes.h; Tile: GemmTile<128, 128, 8, 1,
//                                  Codes::kStages, 1>; kThreads threads; kSharedBytes, aligned to
//                                  128
//   gemm.multiply(x, w)            all threads
//   gemm.scale(x, w, columns, bias)   sums become results
//   gemm.multiplies()              whether this thread holds sums: what adds to them asks first
//   gemm.store_slab(0, tile)       as Accumulators', by all threads; `tile` may be `shared`
//
// Eight warps multiply, one copies, and where weights have 4 bits two widen them in shared memory.
// Activations are row-major and come by cp.async, 16 bytes a copy, into core matrices (wgmma.h);
// weights by bulk copies. Integer sums are exact while K < 2^17.
//
// Sums that are added to others every kPart of k leave the tensor cores to the other warpgroup
// meanwhile. One CTA has an SM: two would need 96 registers a thread, and the low-rank branch
// spills there. With 288 or 352 threads each may have 224 or 184 registers, so setmaxnreg has
// nothing to give.
#ifndef SVDQ_CUDA_GEMM_WGMMA_H
#define SVDQ_CUDA_GEMM_WGMMA_H

#include "svdq_cuda/barrier.h"
#include "svdq_cuda/gemm_tile.h"
#include "svdq_cuda/gemm_wgmma_codes.h"

namespace svdq {

struct WgmmaX {
  const void* codes;   // bytes [rows, k], at the tile's first row; 16-byte aligned, k % 16 == 0
  const float* scale;  // [rows]
  int64_t rows, k;
};

struct WgmmaW {
  const void* codes;      // in Codes' layout
  const uint16_t* scale;  // bf16 [columns], at the tile's first column; by group: "scale_wgmma"
  int64_t column;         // the tile's first
  int64_t groups;         // of k, if scaled by group
};

template <class Tile_, class Codes>
struct WgmmaGemm : Accumulators<Tile_> {
  using Tile = Tile_;
  using Base = Accumulators<Tile>;
  static constexpr bool kByGroup = Codes::kGroup != 0, kPromotes = Codes::kPart != 0;
  static constexpr int kConsumers = 256, kWideners = kByGroup ? 64 : 0;
  static constexpr int kThreads = kConsumers + 32 + kWideners;
  static constexpr int kBk = 128, kStages = Tile::STAGES, kLag = kStages - 2;
  static constexpr int kCore = 128, kRow8 = kBk / 16 * kCore;  // bytes of a matrix, of 8 rows
  // A stage: activations, weights as multiplied, as stored, scales as multiplied, as stored.
  static constexpr int kABytes = Tile::BM * kBk, kBBytes = Tile::BN * kBk;
  static constexpr int kScales = kByGroup ? kBk / (kByGroup ? Codes::kGroup : 1) * Tile::BN : 0;
  static constexpr int kNibbles = kABytes + kBBytes, kNibbleBytes = kByGroup ? kBBytes / 2 : 0;
  static constexpr int kFloats = kNibbles + kNibbleBytes, kStored = kFloats + 4 * kScales;
  static constexpr int kStageBytes = kStored + 2 * kScales;
  static constexpr int kBarrierBytes = 128;
  static constexpr int kSharedBytes = kStages * kStageBytes + kBarrierBytes;
  static_assert(Tile::BM == 128 && Tile::BN == 128 && Tile::kThreads == kConsumers,
                "two warpgroups of 64 x 128");
  static_assert(Tile::WARPS_M == 8 && Tile::kSlabs == 1 && Tile::kSlabBytes <= kSharedBytes,
                "a warp has 16 rows, as wgmma's results do");
  static_assert(kStages >= 3 && 3 * 8 * kStages <= kBarrierBytes, "barriers");

  char* const stages;
  uint64_t *const full, *const empty, *const stored;  // stored: what is to be widened has come

  SVDQ_METHOD explicit WgmmaGemm(char* shared)
      : stages(shared),
        full(reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes)),
        empty(full + kStages),
        stored(empty + kStages) {}

  SVDQ_METHOD bool multiplies() const { return thread_id() < kConsumers; }

  SVDQ_METHOD void multiply(const WgmmaX& x, const WgmmaW& w) {
    if (thread_id() == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        // The copying lanes, and those that widen or once more for the weights' copy.
        mbarrier_init(full + stage, 32 + (kByGroup ? kWideners : 1));
        mbarrier_init(empty + stage, kConsumers / 32);
        if constexpr (kByGroup) mbarrier_init(stored + stage, 1);
      }
      mbarrier_init_fence();
    }
    cta_sync();
    const int steps = static_cast<int>(ceil_div(x.k, kBk));
    if (multiplies()) {
      sum(steps);
    } else if (thread_id() < kConsumers + 32) {
      copy(steps, x, w);
    } else {
      if constexpr (kByGroup) widen(steps);
    }
  }

  template <class Bias>
  SVDQ_METHOD void scale(const WgmmaX& x, const WgmmaW& w, int64_t columns, const Bias& bias) {
    if (!multiplies()) return;
    const int row = Base::row_of(0);
    const float upper = (row < x.rows ? x.scale[row] : 0.0f) * Codes::kUnit;
    const float lower = (row + 8 < x.rows ? x.scale[row + 8] : 0.0f) * Codes::kUnit;
    SVDQ_UNROLL
    for (int j = 0; j < Tile::NT; ++j) {
      float (&acc)[4] = Base::acc[0][j];
      if constexpr (!kPromotes) {
        SVDQ_UNROLL
        for (int c = 0; c < 4; ++c) acc[c] = static_cast<float>(sums[4 * j + c]);
      }
      SVDQ_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int column = Base::column_of(j) + i;
        const bool inside = column < columns;
        const float of_column = kByGroup || !inside ? 1.0f : bf16_to_f32(w.scale[column]);
        const float added = inside ? bias(column) : 0.0f;
        acc[i] = mad(acc[i], upper * of_column, added);
        acc[2 + i] = mad(acc[2 + i], lower * of_column, added);
      }
    }
  }

  SVDQ_METHOD void store_slab(int, float* tile) const {
    cta_sync();
    if (multiplies()) {
      float* const to = tile + Base::row_of(0) * Tile::kLd;
      SVDQ_UNROLL
      for (int j = 0; j < Tile::NT; ++j) {
        const float (&acc)[4] = Base::acc[0][j];
        float* const at = to + Base::column_of(j);
        *reinterpret_cast<float2*>(at) = make_float2(acc[0], acc[1]);
        *reinterpret_cast<float2*>(at + 8 * Tile::kLd) = make_float2(acc[2], acc[3]);
      }
    }
    cta_sync();
  }

 private:
  using Sum = typename Codes::Sum;
  Sum sums[Tile::NT * 4];

  // A stage of the ring, and the parity of the phase that its barriers are in.
  struct Place {
    int stage = 0;
    uint32_t parity;
    SVDQ_METHOD explicit Place(uint32_t first) : parity(first) {}
    SVDQ_METHOD void next() {
      stage = stage + 1 == kStages ? 0 : stage + 1;
      parity ^= stage == 0;
    }
  };

  // The two warpgroups: 64 rows each, all columns.
  SVDQ_METHOD void sum(int steps) {
    const uint32_t rows = warp_uniform(warp_id()) / 4 * (64 / 8) * kRow8;
    const uint64_t a = wgmma_operand(stages + rows, kCore, kRow8);
    const uint64_t b = wgmma_operand(stages + kABytes, kCore, kRow8);
    if constexpr (kPromotes) Base::start();
    Place at(0);
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = static_cast<uint32_t>(at.stage) * kStageBytes;
      mbarrier_wait(full + at.stage, at.parity);
      if constexpr (kPromotes) {
        const float* scales = reinterpret_cast<const float*>(stages + stage + kFloats);
        SVDQ_NO_UNROLL
        for (uint32_t part = 0; part < kBk / kPartK; ++part) {
          const uint32_t k = stage + part * (kPartK / 16 * kCore);
          multiply_part<kPartK>(wgmma_advance(a, k), wgmma_advance(b, k), false);
          wgmma_wait<0>();
          if (!kByGroup) release(at.stage);
          promote(scales);
          scales += Tile::BN;
        }
        if (kByGroup) release(at.stage);
      } else {
        multiply_part<kBk>(wgmma_advance(a, stage), wgmma_advance(b, stage), step > 0);
        wgmma_wait<1>();  // the step before this one: its stage is free
        if (step > 0) release(at.stage == 0 ? kStages - 1 : at.stage - 1);
      }
      at.next();
    }
    wgmma_wait<0>();
  }

  static constexpr int kPartK = kPromotes ? Codes::kPart : kBk;

  template <int K>
  SVDQ_METHOD void multiply_part(uint64_t a, uint64_t b, bool onto) {
    wgmma_fence();
    SVDQ_UNROLL
    for (int i = 0; i < K / 32; ++i) {
      Codes::template multiply<Tile::BN>(sums, wgmma_advance(a, i * 2 * kCore),
                                         wgmma_advance(b, i * 2 * kCore), onto || i > 0);
    }
    wgmma_commit();
  }

  // scales: of a group, by column, in scale_wgmma's order.
  SVDQ_METHOD void promote(const float* scales) {
    float4 of_columns = {1.0f, 1.0f, 1.0f, 1.0f};
    SVDQ_UNROLL
    for (int j = 0; j < Tile::NT; ++j) {
      float (&acc)[4] = Base::acc[0][j];
      if (kByGroup && j % 2 == 0) {
        of_columns = *reinterpret_cast<const float4*>(scales + j * 8 + lane_id() % 4 * 4);
      }
      const float left = j % 2 == 0 ? of_columns.x : of_columns.z;
      const float right = j % 2 == 0 ? of_columns.y : of_columns.w;
      SVDQ_UNROLL
      for (int c = 0; c < 4; ++c) {
        const float sum = static_cast<float>(sums[4 * j + c]);
        acc[c] = kByGroup ? mad(sum, c % 2 == 0 ? left : right, acc[c]) : acc[c] + sum;
      }
    }
  }

  SVDQ_METHOD void release(int stage) {
    if (lane_id() == 0) mbarrier_arrive(empty + stage);
  }

  // The copying warp. Activations of a step are announced when the copies of kLag later ones are
  // under way; one stage more is what the warpgroups multiply, and one what they multiplied last.
  SVDQ_METHOD void copy(int steps, const WgmmaX& x, const WgmmaW& w) {
    const int lane = static_cast<int>(lane_id());
    // Eight lanes copy from eight rows, so that they write different banks.
    const int row = lane % 8, part = lane / 8;
    const char* const codes = static_cast<const char*>(x.codes);
    const char* const from = codes + row * x.k + part * 16;
    char* const to = stages + part * kCore + row * 16;
    const char* weights = static_cast<const char*>(w.codes) +
                          w.column / Tile::BN * steps * (kByGroup ? kNibbleBytes : kBBytes);
    const char* scales = reinterpret_cast<const char*>(
        w.scale + (kByGroup ? w.column / Tile::BN * round_up(w.groups, 4) * Tile::BN : 0));
    Place at(1);
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps + kLag; ++step) {
      if (step < steps) {
        mbarrier_wait(empty + at.stage, at.parity);
        char* const stage = stages + at.stage * kStageBytes;
        if (lane == 0) copy_weights(stage, at.stage, weights, scales);
        warp_sync();
        weights += kByGroup ? kNibbleBytes : kBBytes;
        scales += 2 * kScales;
        SVDQ_UNROLL
        for (int i = 0; i < Tile::BM / 8; ++i) {
          SVDQ_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int64_t k = static_cast<int64_t>(step) * kBk + half * 64;
            const bool valid = i * 8 + row < x.rows && k + part * 16 < x.k;
            cp_async_16(to + at.stage * kStageBytes + i * kRow8 + half * 4 * kCore,
                        valid ? from + i * 8 * x.k + k : codes, valid);
          }
        }
        at.next();
      }
      cp_async_commit();
      if (step >= kLag) {
        cp_async_wait<kLag>();
        async_fence();
        mbarrier_arrive(full + (step - kLag) % kStages);
      }
    }
  }

  SVDQ_METHOD void copy_weights(char* stage, int at, const char* weights, const char* scales) {
    if constexpr (kByGroup) {
      mbarrier_arrive_expect(stored + at, kNibbleBytes + 2 * kScales);
      bulk_copy(stage + kNibbles, weights, kNibbleBytes, stored + at);
      bulk_copy(stage + kStored, scales, 2 * kScales, stored + at);
    } else {
      mbarrier_arrive_expect(full + at, kBBytes);
      bulk_copy(stage + kABytes, weights, kBBytes, full + at);
    }
  }

  // The widening warps: a nibble becomes the high half of a byte, a scale f32.
  SVDQ_METHOD void widen(int steps) {
    const int thread = static_cast<int>(thread_id()) - kConsumers - 32;
    Place at(0);
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      char* const stage = stages + at.stage * kStageBytes;
      mbarrier_wait(stored + at.stage, at.parity);
      SVDQ_UNROLL
      for (int i = 0; i < kNibbleBytes / 16 / kWideners; ++i) {
        // A piece is row `piece % 8` of core matrices 2 (piece / 8) and one more.
        const int piece = thread + i * kWideners;
        const uint4 pairs = reinterpret_cast<const uint4*>(stage + kNibbles)[piece];
        uint4* const to =
            reinterpret_cast<uint4*>(stage + kABytes + piece / 8 * 2 * kCore) + piece % 8;
        to[0] = high_nibbles(pairs, 4);
        to[kCore / 16] = high_nibbles(pairs, 0);
      }
      const uint16_t* const scales = reinterpret_cast<const uint16_t*>(stage + kStored);
      SVDQ_UNROLL
      for (int i = thread; i < kScales + thread; i += kWideners) {
        reinterpret_cast<float*>(stage + kFloats)[i] = bf16_to_f32(scales[i]);
      }
      async_fence();
      mbarrier_arrive(full + at.stage);
      at.next();
    }
  }

  SVDQ_METHOD static uint4 high_nibbles(const uint4& pairs, int shift) {
    constexpr uint32_t kHigh = 0xf0f0f0f0u;
    return make_uint4(pairs.x << shift & kHigh, pairs.y << shift & kHigh, pairs.z << shift & kHigh,
                      pairs.w << shift & kHigh);
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_WGMMA_H
