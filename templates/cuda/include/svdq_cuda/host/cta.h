// host/cta.h: who a thread is, and how the threads of a CTA wait for each other; see ptx/cta.h.
#ifndef SVDQ_CUDA_HOST_CTA_H
#define SVDQ_CUDA_HOST_CTA_H

#include "svdq_cuda/host/fibre.h"

namespace svdq {

SVDQ_INLINE uint32_t thread_id() { return host::cta().current; }
SVDQ_INLINE uint32_t num_threads() { return host::cta().num_threads; }
SVDQ_INLINE uint32_t lane_id() { return thread_id() % kWarp; }
SVDQ_INLINE uint32_t warp_id() { return thread_id() / kWarp; }
SVDQ_INLINE uint32_t cta_id() { return host::cta().cta_id; }
SVDQ_INLINE uint32_t num_ctas() { return host::cta().num_ctas; }

SVDQ_INLINE char* shared_memory() { return host::cta().shared; }
SVDQ_INLINE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const char*>(shared) - host::cta().shared);
}

namespace host {

// One thread comes to barrier `id`; it stays until `threads` came, unless it only arrives.
inline bool meet(const char* what, uint32_t id, uint32_t threads, bool stays, bool flag) {
  Cta& here = cta();
  if (id >= 16 || threads == 0 || threads % kWarp != 0 || threads > here.num_threads) {
    here.fail(std::string(what) + ": barrier " + std::to_string(id) + " of " +
              std::to_string(threads) + " threads");
  }
  Barrier& barrier = here.barriers[id];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
  } else if (barrier.expected != threads) {
    here.fail(std::string(what) + ": barrier " + std::to_string(id) + " expects " +
              std::to_string(barrier.expected) + " threads, and here " + std::to_string(threads));
  }
  barrier.flag |= flag;
  ++barrier.arrived;
  const uint32_t thread = here.current;
  if (barrier.arrived == barrier.expected) {
    barrier.result = barrier.flag;
    barrier.flag = false;
    barrier.arrived = 0;
    for (uint32_t warp = 0; warp < here.num_warps; ++warp) {
      here.release(warp, barrier.waiting[warp]);
      barrier.waiting[warp] = 0;
    }
  } else if (stays) {
    barrier.waiting[thread / kWarp] |= 1u << thread % kWarp;
    here.wait(what);
  }
  return barrier.result;
}

}  // namespace host

SVDQ_INLINE void cta_sync() { host::meet("cta_sync", 0, host::cta().num_threads, true, false); }
SVDQ_INLINE bool cta_any(bool flag) {
  return host::meet("cta_any", 0, host::cta().num_threads, true, flag);
}
SVDQ_INLINE void barrier_sync(uint32_t id, uint32_t threads) {
  host::meet("barrier_sync", id, threads, true, false);
}
SVDQ_INLINE void barrier_arrive(uint32_t id, uint32_t threads) {
  host::meet("barrier_arrive", id, threads, false, false);
}
SVDQ_INLINE void warp_sync(uint32_t mask = kFullWarp) {
  char nothing = 0;
  host::warp_collective("warp_sync", nothing, [](char**) {}, mask);
}

[[noreturn]] SVDQ_INLINE void trap(const char* text) { host::cta().fail(text); }

}  // namespace svdq

#endif  // SVDQ_CUDA_HOST_CTA_H
