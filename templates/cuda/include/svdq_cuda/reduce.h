// reduce.h: sums, maxima and minima over aligned groups of 2, 4, ..., 32 lanes. Every lane of the
// group gets the result, and the order of the additions is a fixed tree (distance 1, 2, 4, ...),
// so the bits are the same in all lanes, on every architecture and on the host.
#ifndef SVDQ_CUDA_REDUCE_H
#define SVDQ_CUDA_REDUCE_H

#include "svdq_cuda/base.h"

namespace svdq {

template <int Lanes = 32, typename T>
SVDQ_INLINE T lanes_sum(T value, uint32_t mask = kFullWarp) {
  SVDQ_UNROLL
  for (uint32_t distance = 1; distance < Lanes; distance *= 2) {
    value = value + shuffle_xor(value, distance, mask);
  }
  return value;
}

template <int Lanes = 32, typename T>
SVDQ_INLINE T lanes_max(T value, uint32_t mask = kFullWarp) {
  SVDQ_UNROLL
  for (uint32_t distance = 1; distance < Lanes; distance *= 2) {
    const T other = shuffle_xor(value, distance, mask);
    value = value > other ? value : other;
  }
  return value;
}

template <int Lanes = 32, typename T>
SVDQ_INLINE T lanes_min(T value, uint32_t mask = kFullWarp) {
  SVDQ_UNROLL
  for (uint32_t distance = 1; distance < Lanes; distance *= 2) {
    const T other = shuffle_xor(value, distance, mask);
    value = value < other ? value : other;
  }
  return value;
}

}  // namespace svdq

#endif  // SVDQ_CUDA_REDUCE_H
