// host/memory.h: see ptx/memory.h. A copy that cp_async begins is made only when it is waited for,
// so that shared memory which is read too early is still poisoned.
#ifndef SVDQ_CUDA_HOST_MEMORY_H
#define SVDQ_CUDA_HOST_MEMORY_H

#include "svdq_cuda/host/cta.h"

namespace svdq {

namespace host {

template <typename T>
inline T load(const char* what, const void* global) {
  if (reinterpret_cast<uintptr_t>(global) % sizeof(T) != 0) {
    cta().fail(std::string(what) + ": the address is not aligned to " + std::to_string(sizeof(T)));
  }
  T value;
  memcpy(&value, global, sizeof value);
  return value;
}

template <typename T>
inline void store(const char* what, void* global, T value) {
  if (reinterpret_cast<uintptr_t>(global) % sizeof(T) != 0) {
    cta().fail(std::string(what) + ": the address is not aligned to " + std::to_string(sizeof(T)));
  }
  memcpy(global, &value, sizeof value);
}

// Make the copies of this thread's groups up to and including `group`.
inline void finish_copies(Thread& thread, uint32_t group) {
  size_t kept = 0;
  for (const AsyncCopy& copy : thread.copies) {
    if (copy.group > group) {
      thread.copies[kept++] = copy;
    } else if (copy.valid) {
      memcpy(copy.shared, copy.global, copy.bytes);
    } else {
      memset(copy.shared, 0, copy.bytes);
    }
  }
  thread.copies.resize(kept);
}

}  // namespace host

SVDQ_INLINE uint4 load_16(const void* global) { return host::load<uint4>("load_16", global); }
SVDQ_INLINE uint2 load_8(const void* global) { return host::load<uint2>("load_8", global); }
SVDQ_INLINE uint32_t load_4(const void* global) { return host::load<uint32_t>("load_4", global); }
SVDQ_INLINE uint4 load_16_streaming(const void* global) {
  return host::load<uint4>("load_16_streaming", global);
}
SVDQ_INLINE void store_16(void* global, uint4 value) { host::store("store_16", global, value); }
SVDQ_INLINE void store_8(void* global, uint2 value) { host::store("store_8", global, value); }
SVDQ_INLINE void prefetch_l2(const void*) {}

template <int Bytes>
SVDQ_INLINE void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "bytes of one copy");
  char* const to = host::checked_shared("cp_async", shared, Bytes, Bytes);
  if (valid && reinterpret_cast<uintptr_t>(global) % Bytes != 0) {
    host::cta().fail("cp_async: the global address is not aligned to the bytes of one copy");
  }
  host::Thread& thread = host::cta().threads[host::cta().current];
  thread.copies.push_back({to, static_cast<const char*>(global), Bytes, valid, thread.group});
}
SVDQ_INLINE void cp_async_16(void* shared, const void* global, bool valid = true) {
  cp_async<16>(shared, global, valid);
}
SVDQ_INLINE void cp_async_commit() { ++host::cta().threads[host::cta().current].group; }

template <int Pending>
SVDQ_INLINE void cp_async_wait() {
  host::Thread& thread = host::cta().threads[host::cta().current];
  if (thread.group > Pending) host::finish_copies(thread, thread.group - Pending - 1);
}

}  // namespace svdq

#endif  // SVDQ_CUDA_HOST_MEMORY_H
