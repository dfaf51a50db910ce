// gemm_float.h: the product of f32 activations and float weights on 16-bit tensor cores.
//
//   acc[m, n] += sum_k x[m, k] * w[n, k]
//
//   FloatGemm<Tile, Math, W, BK> gemm(shared)   kSharedBytes of shared memory, 16-byte aligned
//   gemm.load({w, column, columns, k}, x)       the first tiles are under way
//   gemm.start(columns, bias)                   what the sums begin with (Accumulators)
//   gemm.multiply(x)
//   for each slab: gemm.store_slab(s, tile)     `tile` may be `shared` itself
//
// Math and W: gemm_float_math.h says how products are made of 16-bit ones, and how exact they are;
// sums are f32, over k in steps of 16 in rising order. w is "bf16_mma", "f16_mma" or "f32_mma"
// [columns, k].
//
// x gives the rows of a tile, one of
//   RowsX<BM, VECTOR>    rows of f32 in memory, row stride ldx; VECTOR: rows begin at multiples of
//                        16 bytes and k % 4 == 0, so copies are of 16 bytes
//   ElementX<BM, F>      f(r, k) for r < rows, computed by the threads: any view, type or prologue
#ifndef SVDQ_CUDA_GEMM_FLOAT_H
#define SVDQ_CUDA_GEMM_FLOAT_H

#include "svdq_cuda/gemm_float_math.h"
#include "svdq_cuda/gemm_tile.h"

namespace svdq {

template <int BM, bool VECTOR>
struct RowsX {
  const float* x;  // at the tile's first row
  int64_t ldx, rows, k;

  template <int BK, int LD, int THREADS>
  SVDQ_METHOD void load(float* stage, int64_t k0) const {
    constexpr int kWide = VECTOR ? 4 : 1, kAcross = BK / kWide, kDown = THREADS / kAcross;
    static_assert(THREADS % kAcross == 0 && BM % kDown == 0, "threads share the copies evenly");
    const int thread = static_cast<int>(thread_id());
    const int row = thread / kAcross, column = thread % kAcross * kWide;
    const bool inside = k0 + column < k;
    const float* const from = x + row * ldx + k0 + column;
    SVDQ_UNROLL
    for (int i = 0; i < BM / kDown; ++i) {
      const bool valid = inside && row + i * kDown < rows;
      cp_async<4 * kWide>(stage + (row + i * kDown) * LD + column,
                          valid ? from + i * kDown * ldx : x, valid);
    }
  }
};

template <int BM, class F>
struct ElementX {
  const F& f;
  int64_t rows, k;

  template <int BK, int LD, int THREADS>
  SVDQ_METHOD void load(float* stage, int64_t k0) const {
    SVDQ_NO_UNROLL
    for (int i = static_cast<int>(thread_id()); i < BM * BK; i += THREADS) {
      const int row = i / BK, column = i % BK;
      stage[row * LD + column] = row < rows && k0 + column < k ? f(row, k0 + column) : 0.0f;
    }
  }
};

struct FloatWeight {
  const void* w;
  int64_t column;   // the tile's first
  int64_t columns;  // of the whole weight
  int64_t k;
};

template <class Tile, template <Stored> class Math_, Stored W, int BK>
struct FloatGemm : Accumulators<Tile> {
  using Base = Accumulators<Tile>;
  using Math = Math_<W>;
  // Eight floats more than BK: the pairs that a warp reads of 8 rows lie on different banks.
  static constexpr int kLd = BK + 8;
  static constexpr int kStageBytes = Tile::BM * kLd * 4;
  static constexpr int kLoadBytes = kStageBytes * Tile::STAGES;
  static constexpr int kSharedBytes = kLoadBytes > Tile::kSlabBytes ? kLoadBytes : Tile::kSlabBytes;
  static constexpr int kSteps = BK / 16;
  static_assert(BK % 16 == 0, "k of a stage");

  using Panel = FloatPanel<W>;

  char* const shared;
  const char* w[Tile::kPanels];
  int num_steps, num_tiles;

  SVDQ_METHOD explicit FloatGemm(char* memory) : shared(memory) {}

  template <class X>
  SVDQ_METHOD void load(const FloatWeight& weight, const X& x) {
    num_steps = static_cast<int>(ceil_div(weight.k, 16));
    num_tiles = (num_steps + kSteps - 1) / kSteps;
    const int64_t warp_column = weight.column + Base::warp_column * Tile::NT * 8;
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) {
      w[p] = static_cast<const char*>(weight.w) +
             panel_at(warp_column, p, weight.columns) * num_steps * Panel::kBytes +
             Panel::lane_offset();
    }
    SVDQ_UNROLL
    for (int stage = 0; stage < Tile::STAGES - 1; ++stage) load_tile(stage, stage, x);
  }

  template <class X>
  SVDQ_METHOD void multiply(const X& x) {
    Panel panels[Tile::kPanels];
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) panels[p].load(w[p]);
    int slot = 0, next_slot = Tile::STAGES - 1;
    SVDQ_NO_UNROLL
    for (int tile = 0; tile < num_tiles; ++tile) {
      cp_async_wait<Tile::STAGES - 2>();
      cta_sync();
      load_tile(next_slot, tile + Tile::STAGES - 1, x);
      const float* const stage = reinterpret_cast<const float*>(shared + slot * kStageBytes);
      SVDQ_NO_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        multiply_step(stage + step * 16, tile * kSteps + step + 1, panels);
      }
      slot = slot + 1 == Tile::STAGES ? 0 : slot + 1;
      next_slot = next_slot + 1 == Tile::STAGES ? 0 : next_slot + 1;
    }
    cp_async_wait<0>();
  }

 private:
  template <class X>
  SVDQ_METHOD void load_tile(int slot, int tile, const X& x) {
    if (tile < num_tiles) {
      x.template load<BK, kLd, Tile::kThreads>(
          reinterpret_cast<float*>(shared + slot * kStageBytes), static_cast<int64_t>(tile) * BK);
    }
    cp_async_commit();
  }

  // A panel's next weights are loaded as soon as it was used. Past the end of k the last ones
  // again: the activations there are zero.
  SVDQ_METHOD void multiply_step(const float* stage, int next_step,
                                 Panel (&panels)[Tile::kPanels]) {
    const int next = next_step < num_steps ? next_step : num_steps - 1;
    const float* const at = stage + Base::first_row * kLd + lane_id() % 4 * 2;
    typename Math::A a[Tile::MT];
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) {
      float x[8];
      SVDQ_UNROLL
      for (int pair = 0; pair < 4; ++pair) {
        const int row = i * Tile::WARPS_M * 16 + pair / 2 * 8;
        const float2 two = *reinterpret_cast<const float2*>(at + row * kLd + pair % 2 * 8);
        x[2 * pair] = two.x;
        x[2 * pair + 1] = two.y;
      }
      Math::split_a(x, a[i]);
    }
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) {
      SVDQ_UNROLL
      for (int j = 0; j < 4; ++j) {
        typename Math::B b;
        panels[p].template split<Math>(j, b);
        SVDQ_UNROLL
        for (int i = 0; i < Tile::MT; ++i) Math::multiply(Base::acc[i][p * 4 + j], a[i], b);
      }
      panels[p].load(w[p] + static_cast<int64_t>(next) * Panel::kBytes);
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_FLOAT_H
