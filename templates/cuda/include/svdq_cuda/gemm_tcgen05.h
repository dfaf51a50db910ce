// gemm_tcgen05.h: the product of E2M1 codes under E4M3 scales, by Blackwell's tcgen05 (sm_100a).
//
//   acc[m, n] += unit * sum_g x_scale[m, g] * w_scale[n, g] * sum_{k in g} x[m, k] * w[n, k]
//
//   Tcgen05Gemm<Tile> gemm(shared)   Tile = GemmTile<128, 128 or 64, 4, 2, STAGES, 2>, or, for few
//                                    rows, <128, 32, 4, 1, STAGES, 2>; kSharedBytes, aligned to 128
//   load, start, add_low_rank, multiply, store_slab(0, tile)   as gemm_int.h's
//
// x is that of gemm_nvfp4.h. Weights lie in memory as core matrices (tcgen05.h), N padded to 128
// and K to 64 with zeros, and come by bulk copies:
//   w        "e2m1_tcgen05", [N/128, K/64, 16, 2, 8, 16 bytes]
//   w_scale  "e4m3_scale_tcgen05", [N/128, K/64, 32, 4, 4 bytes]
//
// What the sums begin with goes to tensor memory, over `unit`, and stays there until the products
// are done: while they run a thread keeps no sums. Row 64 i + 16 w + j of a tile is row
// 32 w + 16 i + j of the product, so that its sums are where Accumulators has them.
//
// Scales have columns of tensor memory per stage, since a copy to them is not ordered behind
// products that read them but by the stage's barriers.
//
// All warps copy, and a lane of the first issues the products. With 128 registers a thread two CTAs
// share an SM: one multiplies while the other makes its first sums or stores its last. Few rows
// are bound by reading the weight, which more processors do at a time in narrow tiles; more stages
// keep as many bytes under way. Never run on a GPU.
#ifndef SVDQ_CUDA_GEMM_TCGEN05_H
#define SVDQ_CUDA_GEMM_TCGEN05_H

#include "svdq_cuda/gemm_nvfp4.h"
#include "svdq_cuda/tcgen05.h"

namespace svdq {

template <class Tile_>
struct Tcgen05Gemm : Accumulators<Tile_> {
  using Tile = Tile_;
  using Base = Accumulators<Tile>;
  static constexpr int kThreads = Tile::kThreads, kWarps = kThreads / 32;
  static constexpr int kBlocks = 4;  // of 64 k in a stage
  static constexpr int kStages = Tile::STAGES, kAhead = kStages - 1;
  static constexpr int kCodes = 128 * 32, kScales = 128 * 4;  // bytes of a block of 128 rows
  static constexpr int kTileCodes = Tile::BN * 32;            // of the tile's columns
  // A stage: x_codes, w_codes, x_scale, w_scale (room for 128 columns, whatever the tile has).
  static constexpr int kWCodes = kBlocks * kCodes, kXScale = kWCodes + kBlocks * kTileCodes;
  static constexpr int kWScale = kXScale + kBlocks * kScales;
  static constexpr int kStageBytes = kWScale + kBlocks * kScales;
  static constexpr int kBarrierBytes = 128;
  static constexpr int kSharedBytes = kStages * kStageBytes + kBarrierBytes;
  static constexpr int kColumns = 256;  // of tensor memory: sums, then 4 + 4 for each block
  static_assert(Tile::BM == 128 && Tile::WARPS_M == 4, "warps of 32 rows reach tensor memory so");
  static_assert(Tile::BN == 128 || Tile::BN == 64 || Tile::BN == 32, "columns of weights");
  static_assert(Tile::WARPS_N == (Tile::BN == 32 ? 1 : 2), "what a warp copies");
  // Scales of 64 columns or more are multiplied where they lie among those of 128; of 32 they are
  // copied by themselves.
  static constexpr bool kAllScales = Tile::BN >= 64;
  static constexpr int kPieces = 16 / kWarps;  // of 8 rows of codes, and of blocks of scales
  static_assert(Tile::kSlabs == 1 && Tile::kSlabBytes <= kStages * kStageBytes, "a slab");
  static_assert(Tile::BN + kStages * kBlocks * 8 <= kColumns, "columns for every stage's scales");
  static_assert(kBlocks * 64 == 256, "x_scale has whole pieces of 16 bytes");
  static_assert(kStages >= 3 && 8 * (2 * kStages + 1) + 4 <= kBarrierBytes, "barriers");

  char* const stages;
  uint64_t *const full, *const empty, *const done;
  uint32_t* const held;  // the address of the tensor memory
  // What this thread copies: of kPieces rows 16 bytes of codes in two pairs of blocks, and as many
  // words of scales. Rows that do not exist are zeros.
  const char *x_codes[kPieces], *x_scale;
  bool has_codes[kPieces], has_scale;
  char *to_codes, *to_scale;
  const char *w, *w_scale;
  Nvfp4Operands operands;
  int num_blocks, num_steps;
  uint32_t tensor;
  bool issues;  // whether this is the warp that issues products and copies weights

  SVDQ_METHOD explicit Tcgen05Gemm(char* shared)
      : stages(shared),
        full(reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes)),
        empty(full + kStages),
        done(empty + kStages),
        held(reinterpret_cast<uint32_t*>(done + 1)),
        issues(warp_uniform(warp_id()) == 0) {}

  SVDQ_METHOD void load(const Nvfp4Operands& from) {
    operands = from;
    num_blocks = static_cast<int>(ceil_div(from.k, 64));
    num_steps = (num_blocks + kBlocks - 1) / kBlocks;
    if (thread_id() == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        mbarrier_init(full + stage, kWarps + 1);  // the warps, and once more for the weights
        mbarrier_init(empty + stage, 1);
      }
      mbarrier_init(done, 1);
      mbarrier_init_fence();
    }
    if (issues) tcgen05_alloc<kColumns>(held);
    tcgen05_fence_before();
    cta_sync();
    tcgen05_fence_after();
    tensor = *held;
    seek(0);
    for (int step = 0; step < kAhead; ++step) copy(step, step);
  }

  SVDQ_METHOD void multiply() {
    scale_sums(power_of_two(-operands.unit_exponent));
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) tcgen05_store(Base::acc[i], sums_of(i));
    tcgen05_wait_store();
    tcgen05_fence_before();
    cta_sync();
    tcgen05_fence_after();
    seek(kAhead);  // anew: there are no registers to keep it in while the first sums are made
    int slot = 0, next = kAhead;
    uint32_t full_parity = 0, empty_parity = 1;
    SVDQ_NO_UNROLL
    for (int step = 0; step < num_steps; ++step) {
      cp_async_wait<kAhead - 1>();
      async_fence();
      warp_sync();
      if (lane_id() == 0) mbarrier_arrive(full + slot);
      if (issues) issue(step, slot, full_parity);
      // The stage that is copied to next was read by the step before, this one's products wait.
      if (step + kAhead < num_steps) mbarrier_wait(empty + next, empty_parity);
      copy(step + kAhead, next);
      slot = slot + 1 == kStages ? 0 : slot + 1;
      next = next + 1 == kStages ? 0 : next + 1;
      full_parity ^= slot == 0;
      empty_parity ^= next == 0;
    }
    if (issues && tcgen05_elect()) tcgen05_commit(done);
  }

  SVDQ_METHOD void store_slab(int, float* tile) {
    mbarrier_wait(done, 0);  // then nothing reads or writes the stages any more
    warp_sync();
    tcgen05_fence_after();
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) tcgen05_load(Base::acc[i], sums_of(i));
    tcgen05_wait_load();
    scale_sums(power_of_two(operands.unit_exponent));
    tcgen05_fence_before();
    Base::store_slab(0, tile);  // the CTA meets
    tcgen05_fence_after();
    if (issues) tcgen05_free<kColumns>(tensor);
  }

 private:
  // Where the sums of a warp's 16-row tile i begin.
  SVDQ_METHOD uint32_t sums_of(int i) const {
    const uint32_t lane = static_cast<uint32_t>(Base::warp_row * 32 + i * 16);
    return tensor + (lane << 16) + static_cast<uint32_t>(Base::warp_column * Tile::NT * 8);
  }

  SVDQ_METHOD uint32_t scales_of(int slot, int block) const {
    return tensor + static_cast<uint32_t>(Tile::BN + (slot * kBlocks + block) * 8);
  }

  // The tile's first of the 128 columns that lie together.
  SVDQ_METHOD int first_column() const { return static_cast<int>(operands.column) % 128; }

  // The row of the tile that is row `row` of the product.
  SVDQ_METHOD static int tile_row(int row) { return row / 16 % 2 * 64 + row / 32 * 16 + row % 16; }

  SVDQ_METHOD int blocks_of(int step) const {
    const int left = num_blocks - step * kBlocks;
    return left < kBlocks ? left : kBlocks;
  }

  // What this thread copies from `step` on.
  SVDQ_METHOD void seek(int step) {
    const int64_t block = operands.column / 128 * num_blocks + step * kBlocks;
    const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(warp_id());
    w = static_cast<const char*>(operands.w) + block * kCodes + first_column() * 32;
    w_scale = static_cast<const char*>(operands.w_scale) + block * kScales;
    if constexpr (!kAllScales) w_scale += warp * kScales + lane * 16 + first_column() / 32 * 4;
    // Eight lanes copy from eight rows, so that they write different banks.
    const int part = lane / 8;
    SVDQ_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      const int row = tile_row((warp + i * kWarps) * 8 + lane % 8);
      has_codes[i] = row < operands.rows;
      x_codes[i] = static_cast<const char*>(operands.x_codes) + step * kBlocks * 32 + part * 16;
      if (has_codes[i]) x_codes[i] += row * static_cast<int64_t>(num_blocks * 32);
    }
    to_codes = stages + part / 2 * kCodes + warp * 256 + part % 2 * 128 + lane % 8 * 16;
    const int word = static_cast<int>(thread_id()) % 128;
    const int row = tile_row(word / 4 + word % 4 * 32);
    has_scale = row < operands.rows;
    x_scale = static_cast<const char*>(operands.x_scale) + step * kBlocks * 4 + warp / 4 * 4;
    if (has_scale) x_scale += row * static_cast<int64_t>(num_steps * 16);
    to_scale = stages + kXScale + warp / 4 * kScales + word * 4;
  }

  // Begin to copy a step's operands to stage `slot`; nothing past the last step. Steps in order.
  SVDQ_METHOD void copy(int step, int slot) {
    if (step < num_steps) {
      const int ahead = slot * kStageBytes, blocks = blocks_of(step);
      const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(warp_id());
      if (issues && tcgen05_elect()) {
        char* const stage = stages + ahead;
        constexpr int kBytes = kTileCodes + (kAllScales ? kScales : 0);
        mbarrier_arrive_expect(full + slot, static_cast<uint32_t>(blocks * kBytes));
        if constexpr (kTileCodes == kCodes) {
          bulk_copy(stage + kWCodes, w, static_cast<uint32_t>(blocks * kCodes), full + slot);
        } else {
          SVDQ_NO_UNROLL
          for (int block = 0; block < blocks; ++block) {
            bulk_copy(stage + kWCodes + block * kTileCodes, w + block * kCodes, kTileCodes,
                      full + slot);
          }
        }
        if constexpr (kAllScales) {
          bulk_copy(stage + kWScale, w_scale, static_cast<uint32_t>(blocks * kScales), full + slot);
        }
      }
      SVDQ_UNROLL
      for (int half = 0; half < 2; ++half) {
        SVDQ_UNROLL
        for (int i = 0; i < kPieces; ++i) {
          cp_async_16(to_codes + ahead + half * 2 * kCodes + i * kWarps * 256,
                      x_codes[i] + half * 64, has_codes[i] && half * 2 + lane / 16 < blocks);
        }
      }
      SVDQ_UNROLL
      for (int i = 0; i < kPieces; ++i) {
        const int block = i * (kWarps / 4);  // and as many more
        cp_async<4>(to_scale + ahead + block * kScales, x_scale + block * 4,
                    has_scale && block + warp / 4 < blocks);
      }
      if constexpr (!kAllScales) {
        cp_async<4>(stages + ahead + kWScale + warp * kScales + lane * 16, w_scale, warp < blocks);
      }
      w += kBlocks * kCodes;
      w_scale += kBlocks * kScales;
      SVDQ_UNROLL
      for (int i = 0; i < kPieces; ++i) x_codes[i] += kBlocks * 32;
      x_scale += kBlocks * 4;
    }
    cp_async_commit();
  }

  // The first warp: a step's products, when every warp has announced its copies.
  SVDQ_METHOD void issue(int step, int slot, uint32_t parity) {
    mbarrier_wait(full + slot, parity);
    tcgen05_fence_after();
    const uint32_t stage = static_cast<uint32_t>(slot * kStageBytes);
    const int blocks = blocks_of(step);
    if (tcgen05_elect()) {
      const uint64_t codes = tcgen05_operand(stages, 128, 256);
      const uint64_t scales = tcgen05_operand(stages, 0, 128);
      SVDQ_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        if (block >= blocks) break;
        const uint32_t to = scales_of(slot, block);
        const uint32_t b_scales =
            to + 4 + (kAllScales ? static_cast<uint32_t>(first_column()) / 32 : 0u);
        tcgen05_scales(to, tcgen05_at(scales, stage + kXScale + block * kScales));
        tcgen05_scales(to + 4, tcgen05_at(scales, stage + kWScale + block * kScales));
        tcgen05_e2m1<Tile::BN>(tensor, tcgen05_at(codes, stage + block * kCodes),
                               tcgen05_at(codes, stage + kWCodes + block * kTileCodes), to,
                               b_scales);
      }
      tcgen05_commit(empty + slot);
    }
    warp_sync();
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

#endif  // SVDQ_CUDA_GEMM_TCGEN05_H
