// gemm_wgmma.h: the product of 8-bit activations and coded weights by Hopper's warpgroups.
//
//   y[m, n] = x_scale[m] * w_scale[n] * sum_k x_codes[m, k] * w_codes[n, k] + bias[n]
//             (+ a low-rank branch, by the caller); where weights are scaled by group, w_scale[n,
//             g] times the sum of each
//
// A CTA computes one tile after another: numbers cta_id(), cta_id() + num_ctas(), ... below
// `tiles`. They may be tiles of several products of one k, each with its own operands (group.h).
//
//   WgmmaGemm<Tile, Codes> gemm(shared)   Codes: gemm_wgmma_codes.h; Tile: GemmTile<128, N, 8, 1,
//                           stages, 1>, N 128 or 192. kThreads; kSharedBytes, aligned to 128
//   gemm.begin()            all threads
//   gemm.multiplies()       whether this thread holds sums. The others call
//   gemm.feed(tiles, k, source_of)  for all tiles; source_of(number) is its WgmmaSource; these
//   gemm.take()             once, and for each tile:
//   gemm.multiply(k)
//   gemm.scale(x, w, place, bias)   sums become results
//   gemm.store_slab(s, gemm.tile())   for s < kSlabs: kSlabRows rows to shared memory, until all
//                           that exist are; as Accumulators'
//   gemm.sync()             in place of cta_sync
//
// Two warpgroups multiply. Of the third one warp copies, and where weights have 4 bits the others
// widen them in shared memory. Activations are row-major and come by cp.async, 16 bytes a copy,
// into core matrices (wgmma.h); weights by bulk copies. What copies runs ahead into the next tile
// while this one is stored. Integer sums are exact while K < 2^17.
//
// Sums that are added to others every kPart of k leave the tensor cores to the other warpgroup
// meanwhile. One CTA has an SM. Of its 168 registers a thread the third warpgroup gives to the
// others: they have sums of both kinds, and what the epilogue needs (of 256 columns, too little).
#ifndef SVDQ_CUDA_GEMM_WGMMA_H
#define SVDQ_CUDA_GEMM_WGMMA_H

#include "svdq_cuda/barrier.h"
#include "svdq_cuda/gemm_tile.h"
#include "svdq_cuda/gemm_wgmma_codes.h"

namespace svdq {

struct WgmmaX {
  const void* codes;   // bytes [rows, k], 16-byte aligned, k % 16 == 0
  const float* scale;  // [rows]
  int64_t rows, k;
};

struct WgmmaW {
  const void* codes;      // in Codes' layout
  const uint16_t* scale;  // bf16 [columns]; by group: "scale_wgmma"
  int64_t columns;
  int64_t groups;  // of k, if scaled by group
};

// What a tile is computed from.
struct WgmmaSource {
  WgmmaX x;
  WgmmaW w;
  TilePlace place;
};

template <class Tile_, class Codes>
struct WgmmaGemm : Accumulators<Tile_> {
  using Tile = Tile_;
  using Base = Accumulators<Tile>;
  using Sum = typename Codes::Sum;
  static constexpr bool kByGroup = Codes::kGroup != 0, kPromotes = Codes::kPart != 0;
  static constexpr int kConsumers = 256, kWideners = 96, kThreads = kConsumers + 32 + kWideners;
  static constexpr int kRegisters = (3 * 168 - Codes::kFeeders) / 16 * 8;  // of 64 K
  static constexpr int kBk = 128, kStages = Tile::STAGES, kLag = kStages - 2;
  static constexpr int kCore = 128, kRow8 = kBk / 16 * kCore;  // bytes of a matrix, of 8 rows
  // A stage: activations, weights as multiplied, as stored, scales as multiplied, as stored.
  static constexpr int kABytes = Tile::BM * kBk, kBBytes = Tile::BN * kBk;
  static constexpr int kScales = kByGroup ? kBk / (kByGroup ? Codes::kGroup : 1) * Tile::BN : 0;
  static constexpr int kNibbles = kABytes + kBBytes, kNibbleBytes = kByGroup ? kBBytes / 2 : 0;
  static constexpr int kFloats = kNibbles + kNibbleBytes, kStored = kFloats + 4 * kScales;
  static constexpr int kStageBytes = kStored + 2 * kScales;
  static constexpr int kBarrierBytes = 128;
  static constexpr int kSlabs = 2, kSlabRows = Tile::BM / kSlabs;  // a warpgroup's
  static constexpr int kSlabAt = kStages * kStageBytes + kBarrierBytes;
  static constexpr int kSharedBytes = kSlabAt + kSlabRows * Tile::kLd * 4;
  static_assert(Tile::BM == 128 && Tile::kThreads == kConsumers, "two warpgroups of 64 rows");
  static_assert(Tile::BN == 128 || !kByGroup, "scales lie 128 columns together");
  static_assert(Tile::WARPS_M == 8, "a warp has 16 rows, as wgmma's results do");
  static_assert(kStages >= 3 && 3 * 8 * kStages <= kBarrierBytes, "barriers");

  char* const stages;
  uint64_t *const full, *const empty, *const stored;  // stored: what is to be widened has come

  SVDQ_METHOD explicit WgmmaGemm(char* shared)
      : stages(shared),
        full(reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes)),
        empty(full + kStages),
        stored(empty + kStages) {}

  SVDQ_METHOD bool multiplies() const { return thread_id() < kConsumers; }
  SVDQ_METHOD float* tile() const { return reinterpret_cast<float*>(stages + kSlabAt); }
  SVDQ_METHOD static void sync() { barrier_sync(1, kConsumers); }

  SVDQ_METHOD void begin() {
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
  }

  SVDQ_METHOD void take() { take_registers<kRegisters>(); }

  template <class SourceOf>
  SVDQ_METHOD void feed(uint32_t tiles, int64_t k, const SourceOf& source_of) {
    give_registers<Codes::kFeeders>();
    const int steps = static_cast<int>(ceil_div(k, kBk));
    if (thread_id() < kConsumers + 32) {
      copy(tiles, steps, source_of);
    } else if constexpr (kByGroup) {
      for (uint32_t tile = cta_id(); tile < tiles; tile += num_ctas()) widen(steps);
    }
  }

  // The two warpgroups: 64 rows each, all columns.
  SVDQ_METHOD void multiply(int64_t k) {
    const int steps = static_cast<int>(ceil_div(k, kBk));
    const uint32_t rows = warp_uniform(warp_id()) / 4 * (64 / 8) * kRow8;
    const uint64_t a = wgmma_operand(stages + rows, kCore, kRow8);
    const uint64_t b = wgmma_operand(stages + kABytes, kCore, kRow8);
    // From here on: they are not kept while the tile before is stored.
    Sum sums[Tile::NT * 4] = {};
    if constexpr (kPromotes) Base::start();
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = static_cast<uint32_t>(now.stage) * kStageBytes;
      mbarrier_wait(full + now.stage, now.parity);
      if constexpr (kPromotes) {
        const float* scales = reinterpret_cast<const float*>(stages + stage + kFloats);
        SVDQ_NO_UNROLL
        for (uint32_t part = 0; part < kBk / kPartK; ++part) {
          const uint32_t at = stage + part * (kPartK / 16 * kCore);
          multiply_part<kPartK>(sums, wgmma_advance(a, at), wgmma_advance(b, at), false);
          wgmma_wait<0>();
          if (!kByGroup) release(now.stage);
          promote(sums, scales);
          scales += Tile::BN;
        }
        if (kByGroup) release(now.stage);
      } else {
        multiply_part<kBk>(sums, wgmma_advance(a, stage), wgmma_advance(b, stage), true);
        wgmma_wait<1>();  // the step before this one: its stage is free
        if (step > 0) release(before(now.stage));
      }
      now.next();
    }
    if constexpr (!kPromotes) {
      wgmma_wait<0>();
      release(before(now.stage));
      Base::for_each_sum([&](float& acc, int, int j, int c)
                             SVDQ_LAMBDA { acc = static_cast<float>(sums[4 * j + c]); });
    }
  }

  template <class Bias>
  SVDQ_METHOD void scale(const WgmmaX& x, const WgmmaW& w, const TilePlace& place,
                         const Bias& bias) {
    const int64_t row = place.row + Base::row_of(0);
    const float upper = (row < x.rows ? x.scale[row] : 0.0f) * Codes::kUnit;
    const float lower = (row + 8 < x.rows ? x.scale[row + 8] : 0.0f) * Codes::kUnit;
    SVDQ_UNROLL
    for (int j = 0; j < Tile::NT; ++j) {
      float (&acc)[4] = Base::acc[0][j];
      SVDQ_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int64_t column = place.column + Base::column_of(j) + i;
        const bool inside = column < w.columns;
        const float of_column = kByGroup || !inside ? 1.0f : bf16_to_f32(w.scale[column]);
        const float added = inside ? bias(column) : 0.0f;
        acc[i] = mad(acc[i], upper * of_column, added);
        acc[2 + i] = mad(acc[2 + i], lower * of_column, added);
      }
    }
  }

  SVDQ_METHOD void store_slab(int slab, float* tile) const {
    sync();
    if (Base::row_of(0) / kSlabRows == slab) {
      float* const to = tile + Base::row_of(0) % kSlabRows * Tile::kLd;
      SVDQ_UNROLL
      for (int j = 0; j < Tile::NT; ++j) {
        const float (&acc)[4] = Base::acc[0][j];
        float* const at = to + Base::column_of(j);
        *reinterpret_cast<float2*>(at) = make_float2(acc[0], acc[1]);
        *reinterpret_cast<float2*>(at + 8 * Tile::kLd) = make_float2(acc[2], acc[3]);
      }
    }
    sync();
  }

 private:
  // A stage of the ring, and the parity of the phase that its barriers are in.
  struct Place {
    int stage = 0;
    uint32_t parity = 0;
    SVDQ_METHOD void next() {
      stage = stage + 1 == kStages ? 0 : stage + 1;
      parity ^= stage == 0;
    }
  };

  Place now;  // from tile to tile

  static constexpr int kPartK = kPromotes ? Codes::kPart : kBk;

  template <int K>
  SVDQ_METHOD void multiply_part(Sum (&sums)[Tile::NT * 4], uint64_t a, uint64_t b, bool onto) {
    wgmma_fence();
    SVDQ_UNROLL
    for (int i = 0; i < K / 32; ++i) {
      Codes::template multiply<Tile::BN>(sums, wgmma_advance(a, i * 2 * kCore),
                                         wgmma_advance(b, i * 2 * kCore), onto || i > 0);
    }
    wgmma_commit();
  }

  // scales: of a group, by column, in scale_wgmma's order.
  SVDQ_METHOD void promote(const Sum (&sums)[Tile::NT * 4], const float* scales) {
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

  SVDQ_METHOD static int before(int stage) { return stage == 0 ? kStages - 1 : stage - 1; }
  SVDQ_METHOD void release(int stage) {
    if (lane_id() == 0) mbarrier_arrive(empty + stage);
  }

  // The copying warp. Activations of a step are announced when the copies of kLag later ones are
  // under way; one stage more is what the warpgroups multiply, and one what they multiplied last.
  template <class SourceOf>
  SVDQ_METHOD void copy(uint32_t tiles, int steps, const SourceOf& source_of) {
    Place announced;
    int ahead = 0;
    SVDQ_NO_UNROLL
    for (uint32_t tile = cta_id(); tile < tiles; tile += num_ctas()) {
      const auto [x, w, place] = source_of(tile);
      const int64_t scales_of_tile = round_up(w.groups, 4) * Tile::BN * 2;
      const char* const codes = static_cast<const char*>(x.codes) + place.row * x.k;
      const char* weights = weights_of_lane(w, place.column, steps);
      const char* scales =
          reinterpret_cast<const char*>(w.scale) + place.column / Tile::BN * scales_of_tile;
      SVDQ_NO_UNROLL
      for (int step = 0; step < steps; ++step) {
        mbarrier_wait(empty + now.stage, now.parity ^ 1);
        copy_weights(now.stage, weights, scales);
        weights += 2 * kHalf;
        scales += 2 * kScales;
        copy_rows(codes, x.rows - place.row, x.k, int64_t{step} * kBk);
        cp_async_commit();
        now.next();
        if (++ahead <= kLag) continue;
        cp_async_wait<kLag>();
        announce(announced);
        --ahead;
      }
    }
    cp_async_wait<0>();
    for (; ahead > 0; --ahead) announce(announced);
  }

  SVDQ_METHOD void announce(Place& place) {
    async_fence();
    mbarrier_arrive(full + place.stage);
    place.next();
  }

  // 128 k of a tile's rows. Eight lanes copy from eight rows, so that they write different banks.
  SVDQ_METHOD void copy_rows(const char* codes, int64_t rows, int64_t whole_k, int64_t k) {
    const int lane = static_cast<int>(lane_id()), row = lane % 8, part = lane / 8;
    const char* const from = codes + row * whole_k + k + part * 16;
    char* const to = stages + now.stage * kStageBytes + part * kCore + row * 16;
    SVDQ_UNROLL
    for (int i = 0; i < Tile::BM / 8; ++i) {
      SVDQ_UNROLL
      for (int half = 0; half < 2; ++half) {
        const bool valid = i * 8 + row < rows && k + half * 64 + part * 16 < whole_k;
        cp_async_16(to + i * kRow8 + half * 4 * kCore,
                    valid ? from + i * 8 * whole_k + half * 64 : codes, valid);
      }
    }
  }

  // Weights lie 128 columns together; a lane copies 64 of a tile's, as there are.
  static constexpr int kHalf = 64 * kBk / (kByGroup ? 2 : 1);
  SVDQ_METHOD static const char* weights_of_lane(const WgmmaW& w, int64_t column, int steps) {
    const int64_t mine = column / 64 + lane_id() % (Tile::BN / 64);
    const int64_t half = min_i64(mine, ceil_div(w.columns, 128) * 2 - 1);
    return static_cast<const char*>(w.codes) + (half / 2 * steps * 2 + half % 2) * kHalf;
  }
  SVDQ_METHOD void copy_weights(int at, const char* weights, const char* scales) {
    char* const to = stages + at * kStageBytes + (kByGroup ? kNibbles : kABytes);
    uint64_t* const come = (kByGroup ? stored : full) + at;
    const uint32_t lane = lane_id();
    if (lane == 0) mbarrier_arrive_expect(come, Tile::BN / 64 * kHalf + 2 * kScales);
    warp_sync();
    if (lane < Tile::BN / 64) bulk_copy(to + lane * kHalf, weights, kHalf, come);
    if (kByGroup && lane == 0) {
      bulk_copy(stages + at * kStageBytes + kStored, scales, 2 * kScales, come);
    }
  }

  // The widening warps: a nibble becomes the high half of a byte, a scale f32.
  SVDQ_METHOD void widen(int steps) {
    const int thread = static_cast<int>(thread_id()) - kConsumers - 32;
    for (int step = 0; step < steps; ++step) {
      char* const stage = stages + now.stage * kStageBytes;
      mbarrier_wait(stored + now.stage, now.parity);
      SVDQ_UNROLL
      for (int piece = thread; piece < kNibbleBytes / 16; piece += kWideners) {
        // It is row `piece % 8` of core matrices 2 (piece / 8) and one more.
        const uint4 pairs = reinterpret_cast<const uint4*>(stage + kNibbles)[piece];
        uint4* const to =
            reinterpret_cast<uint4*>(stage + kABytes + piece / 8 * 2 * kCore) + piece % 8;
        to[0] = high_nibbles(pairs, 4);
        to[kCore / 16] = high_nibbles(pairs, 0);
      }
      const uint16_t* const scales = reinterpret_cast<const uint16_t*>(stage + kStored);
      SVDQ_UNROLL
      for (int i = thread; i < kScales; i += kWideners) {
        reinterpret_cast<float*>(stage + kFloats)[i] = bf16_to_f32(scales[i]);
      }
      async_fence();
      mbarrier_arrive(full + now.stage);
      now.next();
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
