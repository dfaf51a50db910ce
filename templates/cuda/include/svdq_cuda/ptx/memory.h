// ptx/memory.h: copies from global to shared memory that run beside the computation, and loads and
// stores of 16 bytes.
#ifndef SVDQ_CUDA_PTX_MEMORY_H
#define SVDQ_CUDA_PTX_MEMORY_H

#include "svdq_cuda/ptx/cta.h"

namespace svdq {

// Global memory that no thread writes during the launch: through the read-only path.
SVDQ_INLINE uint4 load_16(const void* global) { return __ldg(static_cast<const uint4*>(global)); }
SVDQ_INLINE uint2 load_8(const void* global) { return __ldg(static_cast<const uint2*>(global)); }
SVDQ_INLINE uint32_t load_4(const void* global) {
  return __ldg(static_cast<const uint32_t*>(global));
}
// Read once: does not stay in the first-level cache.
SVDQ_INLINE uint4 load_16_streaming(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(global)));
  return v;
}
SVDQ_INLINE void store_16(void* global, uint4 value) { *static_cast<uint4*>(global) = value; }
SVDQ_INLINE void store_8(void* global, uint2 value) { *static_cast<uint2*>(global) = value; }

SVDQ_INLINE void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(global)));
}

// Bytes of 4, 8 or 16, aligned; where valid is false the destination is filled with zeros and
// global is not read. Turing has no such copy and loads and stores instead.
template <int Bytes>
SVDQ_INLINE void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "bytes of one copy");
#if __CUDA_ARCH__ >= 800
  const uint32_t size = valid ? Bytes : 0;
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(size)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "n"(Bytes), "r"(size)
                 : "memory");
  }
#else
  if constexpr (Bytes == 16) {
    *static_cast<uint4*>(shared) = valid ? load_16(global) : make_uint4(0, 0, 0, 0);
  } else if constexpr (Bytes == 8) {
    *static_cast<uint2*>(shared) = valid ? load_8(global) : make_uint2(0, 0);
  } else {
    *static_cast<uint32_t*>(shared) = valid ? load_4(global) : 0;
  }
#endif
}
SVDQ_INLINE void cp_async_16(void* shared, const void* global, bool valid = true) {
  cp_async<16>(shared, global, valid);
}

SVDQ_INLINE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most `Pending` of this thread's newest groups are under way. Other threads' copies are
// visible only after a barrier that follows.
template <int Pending>
SVDQ_INLINE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

}  // namespace svdq

#endif  // SVDQ_CUDA_PTX_MEMORY_H
