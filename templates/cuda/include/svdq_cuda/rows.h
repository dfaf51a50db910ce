// rows.h: what generated row programs use beside math.h: reductions by a warp or a whole CTA.
//
//   warp_fold(acc, combine)              over the lanes of a warp; in all of them
//   cta_fold<THREADS>(acc, partials, combine)
//                                        over all threads, in all of them; every thread must call
//                                        it. partials: THREADS / 32 values of shared memory
//
// combine(a, b) must not ask for an order of its operands. The order of the fold is fixed: a tree
// over the lanes (distance 1, 2, 4, 8, 16), then the warps in rising order.
#ifndef SVDQ_CUDA_ROWS_H
#define SVDQ_CUDA_ROWS_H

#include "svdq_cuda/math.h"

namespace svdq {

template <typename T, class Combine>
SVDQ_INLINE T warp_fold(T acc, const Combine& combine) {
  SVDQ_UNROLL
  for (uint32_t distance = 1; distance < kWarp; distance *= 2) {
    if constexpr (sizeof(T) < 4) {
      acc = combine(acc, static_cast<T>(shuffle_xor(static_cast<int32_t>(acc), distance)));
    } else {
      acc = combine(acc, shuffle_xor(acc, distance));
    }
  }
  return acc;
}

template <int THREADS, typename T, class Combine>
SVDQ_INLINE T cta_fold(T acc, T* partials, const Combine& combine) {
  acc = warp_fold(acc, combine);
  if (lane_id() == 0) partials[warp_id()] = acc;
  cta_sync();
  acc = partials[0];
  for (int warp = 1; warp < THREADS / 32; ++warp) acc = combine(acc, partials[warp]);
  cta_sync();  // until then nobody may write the next partial
  return acc;
}

}  // namespace svdq

#endif  // SVDQ_CUDA_ROWS_H
