// host/shuffle.h: values between the lanes of a warp; see ptx/shuffle.h.
#ifndef SVDQ_CUDA_HOST_SHUFFLE_H
#define SVDQ_CUDA_HOST_SHUFFLE_H

#include "svdq_cuda/host/fibre.h"

namespace svdq {

namespace host {

template <typename T>
struct Shuffled {
  T in, out;
  int32_t source;  // lane; outside 0..31: the lane itself
};

template <typename T>
inline T exchange(const char* what, T value, int32_t source, uint32_t mask) {
  Shuffled<T> mine{value, value, source};
  warp_collective(
      what, mine,
      [mask](Shuffled<T>** lane) {
        for (uint32_t i = 0; i < kWarp; ++i) {
          if ((mask >> i & 1u) == 0) continue;
          const int32_t from = lane[i]->source;
          if (from < 0 || from >= 32) continue;
          if ((mask >> from & 1u) == 0) cta().fail("shuffle: from a lane outside the mask");
          lane[i]->out = lane[from]->in;
        }
      },
      mask);
  return mine.out;
}

}  // namespace host

template <typename T>
SVDQ_INLINE T shuffle(T value, uint32_t lane, uint32_t mask = kFullWarp) {
  return host::exchange("shuffle", value, static_cast<int32_t>(lane % kWarp), mask);
}
template <typename T>
SVDQ_INLINE T shuffle_xor(T value, uint32_t distance, uint32_t mask = kFullWarp) {
  const uint32_t lane = host::cta().current % kWarp;
  return host::exchange("shuffle_xor", value, static_cast<int32_t>(lane ^ distance), mask);
}
template <typename T>
SVDQ_INLINE T shuffle_up(T value, uint32_t distance, uint32_t mask = kFullWarp) {
  const int32_t lane = static_cast<int32_t>(host::cta().current % kWarp);
  return host::exchange("shuffle_up", value, lane - static_cast<int32_t>(distance), mask);
}
template <typename T>
SVDQ_INLINE T shuffle_down(T value, uint32_t distance, uint32_t mask = kFullWarp) {
  const int32_t lane = static_cast<int32_t>(host::cta().current % kWarp);
  return host::exchange("shuffle_down", value, lane + static_cast<int32_t>(distance), mask);
}

SVDQ_INLINE uint32_t warp_uniform(uint32_t value) {
  const uint32_t first = host::exchange("warp_uniform", value, 0, kFullWarp);
  if (first != value) host::cta().fail("warp_uniform: the value differs between lanes");
  return value;
}

SVDQ_INLINE uint32_t warp_ballot(bool flag, uint32_t mask = kFullWarp) {
  uint32_t mine = flag;
  host::warp_collective(
      "warp_ballot", mine,
      [mask](uint32_t** lane) {
        uint32_t set = 0;
        for (uint32_t i = 0; i < kWarp; ++i) {
          if ((mask >> i & 1u) != 0 && *lane[i] != 0) set |= 1u << i;
        }
        for (uint32_t i = 0; i < kWarp; ++i) {
          if ((mask >> i & 1u) != 0) *lane[i] = set;
        }
      },
      mask);
  return mine;
}
SVDQ_INLINE bool warp_any(bool flag, uint32_t mask = kFullWarp) {
  return warp_ballot(flag, mask) != 0;
}
SVDQ_INLINE bool warp_all(bool flag, uint32_t mask = kFullWarp) {
  return warp_ballot(flag, mask) == mask;
}

}  // namespace svdq

#include "svdq_cuda/reduce.h"

#endif  // SVDQ_CUDA_HOST_SHUFFLE_H
