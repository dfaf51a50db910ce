// ptx/shuffle.h: values between the lanes of a warp, and sums over it in one fixed order.
#ifndef SVDQ_CUDA_PTX_SHUFFLE_H
#define SVDQ_CUDA_PTX_SHUFFLE_H

#include "svdq_cuda/base.h"

namespace svdq {

// T: float, double, int32_t, uint32_t, int64_t or uint64_t.
template <typename T>
SVDQ_INLINE T shuffle(T value, uint32_t lane, uint32_t mask = kFullWarp) {
  return __shfl_sync(mask, value, static_cast<int>(lane));
}
template <typename T>
SVDQ_INLINE T shuffle_xor(T value, uint32_t distance, uint32_t mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, static_cast<int>(distance));
}
template <typename T>
SVDQ_INLINE T shuffle_up(T value, uint32_t distance, uint32_t mask = kFullWarp) {
  return __shfl_up_sync(mask, value, distance);
}
template <typename T>
SVDQ_INLINE T shuffle_down(T value, uint32_t distance, uint32_t mask = kFullWarp) {
  return __shfl_down_sync(mask, value, distance);
}

// Tells the compiler that a value is the same in all lanes, which are all here: it may then sit in
// a uniform register, and branches on it are the warp's.
SVDQ_INLINE uint32_t warp_uniform(uint32_t value) { return __shfl_sync(kFullWarp, value, 0); }

SVDQ_INLINE uint32_t warp_ballot(bool flag, uint32_t mask = kFullWarp) {
  return __ballot_sync(mask, flag);
}
SVDQ_INLINE bool warp_any(bool flag, uint32_t mask = kFullWarp) { return __any_sync(mask, flag); }
SVDQ_INLINE bool warp_all(bool flag, uint32_t mask = kFullWarp) { return __all_sync(mask, flag); }

}  // namespace svdq

#include "svdq_cuda/reduce.h"

#endif  // SVDQ_CUDA_PTX_SHUFFLE_H
