// host/barrier.h: see barrier.h. A bulk copy, and the tensor cores' work, is done only when
// somebody waits for its barrier, so that memory which is read too early is still poisoned.
#ifndef SVDQ_CUDA_HOST_BARRIER_H
#define SVDQ_CUDA_HOST_BARRIER_H

#include <functional>
#include <vector>

#include "svdq_cuda/host/cta.h"

namespace svdq {

namespace host {

// What the eight bytes of a barrier hold.
struct BarrierState {
  int32_t missing_bytes;
  uint16_t arrivals;
  uint16_t missing : 15, phase : 1;
};
static_assert(sizeof(BarrierState) == 8, "a barrier is eight bytes");

struct BulkCopy {
  uint64_t* barrier;
  char* shared;
  const void* global;
  uint32_t bytes;
};

// What tensor cores do beside the threads, in order; then they arrive at the barrier.
struct LateWork {
  uint64_t* barrier;
  std::vector<std::function<void()>> steps;
};

// Of the CTA that this OS thread runs.
inline std::vector<LateWork>& late_work() {
  static thread_local std::vector<LateWork> work;
  return work;
}
inline std::vector<std::function<void()>>& uncommitted() {
  static thread_local std::vector<std::function<void()>> steps;
  return steps;
}
inline std::vector<BulkCopy>& bulk_copies() {
  static thread_local std::vector<BulkCopy> copies;
  return copies;
}

inline BarrierState& state_of(const char* what, uint64_t* barrier) {
  return *reinterpret_cast<BarrierState*>(checked_shared(what, barrier, 8, 8));
}

inline void end_phase_if_complete(BarrierState& state) {
  if (state.missing != 0 || state.missing_bytes != 0) return;
  state.phase ^= 1;
  state.missing = state.arrivals;
}

inline void arrive(const char* what, uint64_t* barrier, uint32_t bytes) {
  BarrierState& state = state_of(what, barrier);
  if (state.missing == 0) cta().fail(std::string(what) + ": more arrivals than the barrier has");
  state.missing_bytes += static_cast<int32_t>(bytes);
  --state.missing;
  end_phase_if_complete(state);
}

// Make the copies that report to a barrier.
inline void finish_bulk_copies(uint64_t* barrier) {
  std::vector<BulkCopy>& copies = bulk_copies();
  size_t kept = 0;
  for (const BulkCopy& copy : copies) {
    if (copy.barrier != barrier) {
      copies[kept++] = copy;
      continue;
    }
    memcpy(copy.shared, copy.global, copy.bytes);
    state_of("bulk_copy", barrier).missing_bytes -= static_cast<int32_t>(copy.bytes);
  }
  if (kept == copies.size()) return;
  copies.resize(kept);
  end_phase_if_complete(state_of("bulk_copy", barrier));
}

// Do the work that arrives at a barrier, and all that comes before it.
inline void finish_late_work(uint64_t* barrier) {
  std::vector<LateWork>& work = late_work();
  size_t count = work.size();
  while (count > 0 && work[count - 1].barrier != barrier) --count;
  for (size_t i = 0; i < count; ++i) {
    for (const std::function<void()>& step : work[i].steps) step();
    arrive("tcgen05_commit", work[i].barrier, 0);
  }
  work.erase(work.begin(), work.begin() + static_cast<ptrdiff_t>(count));
}

}  // namespace host

SVDQ_INLINE void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  const uint16_t count = static_cast<uint16_t>(arrivals);
  host::BarrierState& state = host::state_of("mbarrier_init", barrier);
  state.missing_bytes = 0;
  state.arrivals = count;
  state.missing = count & 0x7fffu;
  state.phase = 0;
  // Copies of a launch that failed.
  std::vector<host::BulkCopy>& copies = host::bulk_copies();
  for (size_t i = copies.size(); i-- > 0;) {
    if (copies[i].barrier == barrier) copies.erase(copies.begin() + static_cast<ptrdiff_t>(i));
  }
  std::vector<host::LateWork>& work = host::late_work();
  for (size_t i = work.size(); i-- > 0;) {
    if (work[i].barrier == barrier) work.erase(work.begin() + static_cast<ptrdiff_t>(i));
  }
}
SVDQ_INLINE void mbarrier_init_fence() {}
SVDQ_INLINE void mbarrier_arrive(uint64_t* barrier) { host::arrive("mbarrier_arrive", barrier, 0); }
SVDQ_INLINE void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  host::arrive("mbarrier_arrive_expect", barrier, bytes);
}
SVDQ_INLINE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  host::wait_until("mbarrier_wait", [barrier, parity] {
    host::finish_bulk_copies(barrier);
    if (host::state_of("mbarrier_wait", barrier).phase == parity) host::finish_late_work(barrier);
    return host::state_of("mbarrier_wait", barrier).phase != parity;
  });
}
SVDQ_INLINE void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  char* const to = host::checked_shared("bulk_copy", shared, bytes, 16);
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    host::cta().fail("bulk_copy: the global address or the size is no multiple of 16 bytes");
  }
  host::bulk_copies().push_back({barrier, to, global, bytes});
}
SVDQ_INLINE void async_fence() {}

}  // namespace svdq

#endif  // SVDQ_CUDA_HOST_BARRIER_H
