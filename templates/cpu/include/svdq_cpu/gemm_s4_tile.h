/* One register tile of the 4-bit product, for each instruction set: MR rows times NR panels over
 * some groups of k, svdq::detail::multiply_tile<GROUP, LARGEST, W, MR, NR>. gemm_s4.h cuts a
 * product into such tiles. W says what nibbles stand for. */
#ifndef SVDQ_CPU_GEMM_S4_TILE_H
#define SVDQ_CPU_GEMM_S4_TILE_H

#include <type_traits>

#include "svdq_cpu/isa.h"
#include "svdq_cpu/nibbles.h"

namespace svdq {
namespace detail {

#if SVDQ_ISA_AVX512
constexpr int kMaxTileRows = 6;
constexpr int kPanelsAtOnce = 2;
#elif SVDQ_ISA_AVX2
constexpr int kMaxTileRows = 6;
constexpr int kPanelsAtOnce = 1;
#else
constexpr int kMaxTileRows = 4;
constexpr int kPanelsAtOnce = 1;
#endif

/* A packed row tile, per group:
 *
 *   codes          [GROUP / 4][MR][4] int8
 *   minus_sums     [MR] int32               -W::kZero * sum of the codes: what weights w + kZero
 * add too much scales         [MR] f32
 */
template <int GROUP>
constexpr int64_t packed_group_bytes(int mr) {
  return static_cast<int64_t>(mr) * (GROUP + 8);
}

SVDQ_INLINE int32_t load_i32(const void* p) {
  int32_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

SVDQ_INLINE float load_f32(const void* p) {
  float value;
  memcpy(&value, p, sizeof value);
  return value;
}

/* Weights and output of one tile: NR panels, each `w_stride` bytes and `scale_stride` scales after
 * the one before. Where W multiplies, `groups` is all of k: sums are scaled at their end. */
struct TileArgs {
  int64_t groups;
  const int8_t* packed;
  const uint8_t* w;
  int64_t w_stride;
  const void* w_scale;  // of W::Scale
  int64_t scale_stride;
  const uint16_t* channel_scale;  // bf16, 16 a panel, where W multiplies
  float* out;
  int64_t ldo;
  bool accumulate;
  const uint8_t* prefetch;  // weights to bring into the second-level cache meanwhile, or null
};

/* to (+)= sum * w_scale * x_scale, for the integer sums of all of k of one row of a panel. */
SVDQ_INLINE void add_scaled(float* to, bool accumulate, f32x16 sum, const uint16_t* w_scale,
                            float x_scale) {
  const f32x16 before = accumulate ? load(to) : zero();
  store(to, fma(sum * load_bf16(w_scale), set1(x_scale), before));
}

}  // namespace detail
}  // namespace svdq

#if SVDQ_ISA_AVX512
#include "svdq_cpu/gemm_s4_tile_avx512.h"
#elif SVDQ_ISA_AVX2
#include "svdq_cpu/gemm_s4_tile_avx2.h"
#else
#include "svdq_cpu/gemm_s4_tile_portable.h"
#endif

#endif
