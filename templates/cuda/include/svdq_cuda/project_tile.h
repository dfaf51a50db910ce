// project_tile.h: what columns of a tile add to the down-projection of its rows, on 16-bit tensor
// cores.
//
//   parts[m, r] = sum_k  x_hat[m, k] * down[r, k_begin + k],  k < columns
//
//   x_hat  [rows, columns] f32 in shared memory, row stride ldx, even; it may be read up to the
//          next multiple of 16 rows. columns and k_begin are multiples of 16. X: what Runs its rows
//          are, of multiples of 16
//   down   "bf16_mma", "f16_mma" or "f32_mma" [rank, whole_k]
//   parts  [rows, rank] f32 in global memory, row stride ldp
//
// Math (gemm_float_math.h) says how exact. A warp computes 16 rows by 32 of the rank at a time, k
// in rising order. Every thread of the CTA calls it, with a cta_sync before.
#ifndef SVDQ_CUDA_PROJECT_TILE_H
#define SVDQ_CUDA_PROJECT_TILE_H

#include "svdq_cuda/gemm_float_math.h"

namespace svdq {

template <class Math, Stored W, int THREADS, class X>
SVDQ_INLINE void project_tile(int64_t rows, int64_t columns, const float* x_hat, int ldx,
                              const void* down, int64_t k_begin, int64_t whole_k, int64_t rank,
                              float* parts, int64_t ldp) {
  const int lane = static_cast<int>(lane_id()), g = lane / 4, t = lane % 4;
  const int steps = static_cast<int>(columns / 16), panels = static_cast<int>(ceil_div(rank, 32));
  const int tasks = static_cast<int>(ceil_div(rows, 16)) * panels;
  SVDQ_NO_UNROLL
  for (int task = static_cast<int>(warp_id()); task < tasks; task += THREADS / 32) {
    const int row = task / panels * 16 + g, panel = task % panels;
    const float* const x = x_hat + row * ldx + 2 * t;
    const char* at = static_cast<const char*>(down) + FloatPanel<W>::lane_offset() +
                     (panel * (whole_k / 16) + k_begin / 16) * FloatPanel<W>::kBytes;
    float sums[4][4] = {};
    SVDQ_NO_UNROLL
    for (int step = 0; step < steps; ++step, at += FloatPanel<W>::kBytes) {
      const int at_k = static_cast<int>(X::place(step * 16));
      float eight[8];
      SVDQ_UNROLL
      for (int pair = 0; pair < 4; ++pair) {
        const float2 two =
            *reinterpret_cast<const float2*>(x + pair / 2 * 8 * ldx + at_k + pair % 2 * 8);
        eight[2 * pair] = two.x;
        eight[2 * pair + 1] = two.y;
      }
      typename Math::A a;
      Math::split_a(eight, a);
      FloatPanel<W> of_down;
      of_down.load(at);
      SVDQ_UNROLL
      for (int j = 0; j < 4; ++j) {
        typename Math::B b;
        of_down.template split<Math>(j, b);
        Math::multiply(sums[j], a, b);
      }
    }
    SVDQ_UNROLL
    for (int j = 0; j < 4; ++j) {
      SVDQ_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int to_row = row + c / 2 * 8, r = panel * 32 + j * 8 + 2 * t + c % 2;
        if (to_row < rows && r < rank) parts[to_row * ldp + r] = sums[j][c];
      }
    }
  }
}

}  // namespace svdq

#endif  // SVDQ_CUDA_PROJECT_TILE_H
