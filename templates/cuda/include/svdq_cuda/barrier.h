// barrier.h: mbarriers in shared memory, and bulk copies that report to them (sm_90a and later).
//
//   uint64_t* b, aligned to 8, in shared memory. A phase of it ends when `arrivals` threads arrived
//   and every byte that was announced has come; then the next begins. Phases have parity 0, 1, 0 …
//
//   mbarrier_init(b, arrivals)      one thread; then mbarrier_init_fence() and a cta_sync
//   mbarrier_arrive(b)              this thread came
//   mbarrier_arrive_expect(b, n)    it came, and announces n bytes of bulk copies in this phase
//   mbarrier_wait(b, parity)        until the phase of that parity has ended (of a fresh barrier
//                                   phase 0 has not, what would be phase 1 before it has)
//   bulk_copy(shared, global, n, b) begin copying n bytes, a multiple of 16, both sides aligned to
//                                   16; they count for b when they are there
//   async_fence()                   what this thread wrote to shared memory becomes visible to
//                                   wgmma and bulk copies of threads that it then synchronises with
#ifndef SVDQ_CUDA_BARRIER_H
#define SVDQ_CUDA_BARRIER_H

#include "svdq_cuda/intrinsics.h"

#if defined(SVDQ_CUDA_HOST)
#include "svdq_cuda/host/barrier.h"
#else
#include "svdq_cuda/ptx/barrier.h"
#endif

#endif  // SVDQ_CUDA_BARRIER_H
