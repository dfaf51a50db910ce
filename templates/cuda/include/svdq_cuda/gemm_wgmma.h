// gemm_wgmma.h: the product of 8-bit activations and 8-bit weights by Hopper's warpgroups, and how
// operands come to shared memory, which gemm_wgmma_s4.h shares.
//
//   y[m, n] = x_scale[m] * w_scale[n] * sum_k x_codes[m, k] * w_codes[n, k] + bias[n]
//             (+ a low-rank branch, by the caller)
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
// Two warpgroups multiply; one warp of the third copies. Activations are row-major and come by
// cp.async, 16 bytes a copy, into core matrices (wgmma.h); weights by bulk copies. What copies runs
// ahead into the next tile while this one is stored. Integer sums are exact while K < 2^17.
//
// Sums that are added to others every stage leave the tensor cores to the other warpgroup
// meanwhile. One CTA has an SM. Of its 168 registers a thread the third warpgroup gives to the
// others: they have sums of both kinds, and what the epilogue needs (of 256 columns, too little).
#ifndef SVDQ_CUDA_GEMM_WGMMA_H
#define SVDQ_CUDA_GEMM_WGMMA_H

#include "svdq_cuda/gemm_tile.h"
#include "svdq_cuda/gemm_wgmma_codes.h"
#include "svdq_cuda/tile_order.h"

namespace svdq {

struct WgmmaX {
  const void* codes;   // bytes [rows, k], 16-byte aligned, k % 16 == 0
  const float* scale;  // [rows]
  int64_t rows, k;
};

// What a tile is computed from.
struct WgmmaSource {
  WgmmaX x;
  WgmmaW w;
  TilePlace place;
};

// The ring of stages, and the warp that fills it.
template <class Tile_, class Codes>
struct WgmmaFeed {
  using Tile = Tile_;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  static constexpr int kRegisters = (3 * 168 - Codes::kFeeders) / 16 * 8;  // of 64 K
  static constexpr int kBk = 128, kStages = Tile::STAGES, kLag = kStages - 2;
  static constexpr int kCore = 128, kRow8 = kBk / 16 * kCore;  // bytes of a matrix, of 8 rows
  // A stage: activations, then weights.
  static constexpr int kPieces = Tile::BN / Codes::kPiece;
  static constexpr int kXBytes = Tile::BM * kBk;
  static constexpr int kStageBytes = kXBytes + kPieces * Codes::kPieceBytes;
  static constexpr int kBarrierBytes = 128;
  static constexpr int kSlabRows = 64, kSlabs = Tile::BM / kSlabRows;
  static constexpr int kSlabAt = kStages * kStageBytes + kBarrierBytes;
  static constexpr int kSlabBytes = kSlabRows * Tile::kLd * 4;
  static constexpr int kSharedBytes = kSlabAt + kSlabBytes;
  static_assert(kStageBytes % 128 == 0, "bulk copies and core matrices are aligned");
  static_assert(kStages >= 3 && 2 * 8 * kStages <= kBarrierBytes, "barriers");

  char* const stages;
  uint64_t *const full, *const empty;

  SVDQ_METHOD explicit WgmmaFeed(char* shared)
      : stages(shared),
        full(reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes)),
        empty(full + kStages) {}

  SVDQ_METHOD bool multiplies() const { return thread_id() < kConsumers; }
  SVDQ_METHOD float* tile() const { return reinterpret_cast<float*>(stages + kSlabAt); }
  SVDQ_METHOD static void sync() { barrier_sync(1, kConsumers); }

  SVDQ_METHOD void begin() {
    if (thread_id() == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        mbarrier_init(full + stage, 32 + 1);  // the copying lanes, and once for the weights
        mbarrier_init(empty + stage, kConsumers / 32);
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
    if (thread_id() < kConsumers + 32) copy(tiles, steps, source_of);
  }

 protected:
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

  SVDQ_METHOD static int before(int stage) { return stage == 0 ? kStages - 1 : stage - 1; }
  SVDQ_METHOD void release(int stage) {
    if (lane_id() == 0) mbarrier_arrive(empty + stage);
  }

  // The copying warp. Activations of a step are announced when the copies of kLag later ones are
  // under way; one stage more is what the warpgroups multiply, and one what they multiplied last.
  template <class SourceOf>
  SVDQ_METHOD void copy(uint32_t tiles, int steps, const SourceOf& source_of) {
    const int piece = static_cast<int>(lane_id()) % kPieces;
    Place announced;
    int ahead = 0;
    SVDQ_NO_UNROLL
    for (uint32_t tile = cta_id(); tile < tiles; tile += num_ctas()) {
      const auto [x, w, place] = source_of(tile);
      const char* const codes = static_cast<const char*>(x.codes) + place.row * x.k;
      const typename Codes::Piece weights(w, place.column + piece * Codes::kPiece, x.k);
      SVDQ_NO_UNROLL
      for (int step = 0; step < steps; ++step) {
        mbarrier_wait(empty + now.stage, now.parity ^ 1);
        copy_weights(weights, step);
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
  // Where nothing is copied `from` stands for an address: one that all lanes share would be held in
  // a register for each copy.
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
                    valid ? from + i * 8 * whole_k + half * 64 : from, valid);
      }
    }
  }

  // A lane copies a piece.
  SVDQ_METHOD void copy_weights(const typename Codes::Piece& weights, int step) {
    uint64_t* const come = full + now.stage;
    const int lane = static_cast<int>(lane_id());
    if (lane == 0) mbarrier_arrive_expect(come, kPieces * weights.num_bytes(step));
    warp_sync();
    if (lane < kPieces) {
      char* const to = stages + now.stage * kStageBytes + kXBytes;
      weights.copy(step, to, lane, kPieces, come);
    }
  }
};

template <class Tile, class Codes>
struct WgmmaGemm : WgmmaFeed<Tile, Codes>, Accumulators<Tile> {
  using Feed = WgmmaFeed<Tile, Codes>;
  using Base = Accumulators<Tile>;
  using Sum = typename Codes::Sum;
  static_assert(Tile::BM == 128 && Tile::kThreads == Feed::kConsumers, "two warpgroups of 64 rows");
  static_assert(Tile::WARPS_M == 8, "a warp has 16 rows, as wgmma's results do");

  SVDQ_METHOD explicit WgmmaGemm(char* shared) : Feed(shared) {}

  // The two warpgroups: 64 rows each, all columns.
  SVDQ_METHOD void multiply(int64_t k) {
    const int steps = static_cast<int>(ceil_div(k, Feed::kBk));
    const uint32_t rows = warp_uniform(warp_id()) / 4 * (64 / 8) * Feed::kRow8;
    const uint64_t a = wgmma_operand(Feed::stages + rows, Feed::kCore, Feed::kRow8);
    const uint64_t b = wgmma_operand(Feed::stages + Feed::kXBytes, Feed::kCore, Feed::kRow8);
    // From here on: they are not kept while the tile before is stored.
    Sum sums[Tile::NT * 4] = {};
    if constexpr (Codes::kPromotes) Base::start();
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = static_cast<uint32_t>(Feed::now.stage) * Feed::kStageBytes;
      mbarrier_wait(Feed::full + Feed::now.stage, Feed::now.parity);
      multiply_stage(sums, wgmma_advance(a, stage), wgmma_advance(b, stage));
      if constexpr (Codes::kPromotes) {
        wgmma_wait<0>();
        Feed::release(Feed::now.stage);
        Base::for_each_sum([&](float& acc, int, int j, int c)
                               SVDQ_LAMBDA { acc += sums[4 * j + c]; });
      } else {
        wgmma_wait<1>();  // the step before this one: its stage is free
        if (step > 0) Feed::release(Feed::before(Feed::now.stage));
      }
      Feed::now.next();
    }
    if constexpr (!Codes::kPromotes) {
      wgmma_wait<0>();
      Feed::release(Feed::before(Feed::now.stage));
      Base::for_each_sum([&](float& acc, int, int j, int c)
                             SVDQ_LAMBDA { acc = static_cast<float>(sums[4 * j + c]); });
    }
  }

  template <class Bias>
  SVDQ_METHOD void scale(const WgmmaX& x, const WgmmaW& w, const TilePlace& place,
                         const Bias& bias) {
    const int64_t row = place.row + Base::row_of(0);
    const float upper = row < x.rows ? x.scale[row] : 0.0f;
    const float lower = row + 8 < x.rows ? x.scale[row + 8] : 0.0f;
    SVDQ_UNROLL
    for (int j = 0; j < Tile::NT; ++j) {
      float (&acc)[4] = Base::acc[0][j];
      SVDQ_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int64_t column = place.column + Base::column_of(j) + i;
        const bool inside = column < w.columns;
        const float of_column = inside ? bf16_to_f32(w.scale[column]) : 0.0f;
        const float added = inside ? bias(column) : 0.0f;
        acc[i] = mad(acc[i], upper * of_column, added);
        acc[2 + i] = mad(acc[2 + i], lower * of_column, added);
      }
    }
  }

  SVDQ_METHOD void store_slab(int slab, float* tile) const {
    Feed::sync();
    if (Base::row_of(0) / Feed::kSlabRows == slab) {
      float* const to = tile + Base::row_of(0) % Feed::kSlabRows * Tile::kLd;
      SVDQ_UNROLL
      for (int j = 0; j < Tile::NT; ++j) {
        const float (&acc)[4] = Base::acc[0][j];
        float* const at = to + Base::column_of(j);
        *reinterpret_cast<float2*>(at) = make_float2(acc[0], acc[1]);
        *reinterpret_cast<float2*>(at + 8 * Tile::kLd) = make_float2(acc[2], acc[3]);
      }
    }
    Feed::sync();
  }

 private:
  SVDQ_METHOD void multiply_stage(Sum (&sums)[Tile::NT * 4], uint64_t a, uint64_t b) {
    wgmma_fence();
    SVDQ_UNROLL
    for (int i = 0; i < Feed::kBk / 32; ++i) {
      Codes::template multiply<Tile::BN>(sums, wgmma_advance(a, i * 2 * Feed::kCore),
                                         wgmma_advance(b, i * 2 * Feed::kCore),
                                         !Codes::kPromotes || i > 0);
    }
    wgmma_commit();
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_WGMMA_H
