// ptx/cta.h: who a thread is, and how the threads of a CTA wait for each other.
#ifndef SVDQ_CUDA_PTX_CTA_H
#define SVDQ_CUDA_PTX_CTA_H

#include "svdq_cuda/base.h"

namespace svdq {

// Dynamic shared memory is the only shared memory a kernel has; its size is the launch's.
extern __shared__ __align__(1024) char svdq_shared_memory[];

SVDQ_INLINE uint32_t thread_id() { return threadIdx.x; }
SVDQ_INLINE uint32_t num_threads() { return blockDim.x; }
SVDQ_INLINE uint32_t lane_id() { return threadIdx.x % kWarp; }
SVDQ_INLINE uint32_t cta_id() { return blockIdx.x; }
SVDQ_INLINE uint32_t num_ctas() { return gridDim.x; }

SVDQ_INLINE uint32_t warp_id() { return threadIdx.x / kWarp; }

SVDQ_INLINE char* shared_memory() { return svdq_shared_memory; }
SVDQ_INLINE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

SVDQ_INLINE void cta_sync() { __syncthreads(); }
SVDQ_INLINE bool cta_any(bool flag) { return __syncthreads_or(flag); }
SVDQ_INLINE void warp_sync(uint32_t mask = kFullWarp) { __syncwarp(mask); }

SVDQ_INLINE void barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SVDQ_INLINE void barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

[[noreturn]] SVDQ_INLINE void trap(const char*) {
  asm volatile("trap;");
  __builtin_unreachable();
}

}  // namespace svdq

#endif  // SVDQ_CUDA_PTX_CTA_H
