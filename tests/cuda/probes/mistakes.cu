// Kernels with one mistake each, which the host back end must report. Buffer: out [64] i32.
#include "svdq_cuda/kernel.h"

using namespace svdq;

SVDQ_CUDA_KERNEL(waits_alone, 64, 1, 0, 1, 0) {
  if (thread_id() < 32) cta_sync();
}

SVDQ_CUDA_KERNEL(diverges, 64, 1, 0, 1, 0) {
  if (lane_id() < 16) {
    warp_sync();
  } else {
    static_cast<int32_t*>(args.buffers[0])[thread_id()] = shuffle(1, 0);
  }
}

SVDQ_CUDA_KERNEL(overlapping_masks, 32, 1, 0, 1, 0) { warp_sync(lane_id() < 16 ? 0xffffu : ~0u); }

SVDQ_CUDA_KERNEL(writes_outside, 64, 1, 64, 1, 0) { shared_memory()[64 + thread_id()] = 1; }

SVDQ_CUDA_KERNEL(copies_outside, 64, 1, 64, 1, 0) {
  cp_async_16(shared_memory() + 16 * thread_id(), args.buffers[0]);
}

SVDQ_CUDA_KERNEL(misaligned, 64, 1, 4096, 1, 0) {
  cp_async_16(shared_memory() + 8 * thread_id(), args.buffers[0]);
}

SVDQ_CUDA_KERNEL(barriers_disagree, 64, 1, 0, 1, 0) { barrier_sync(3, warp_id() == 0 ? 32 : 64); }

SVDQ_CUDA_KERNEL(gives_up, 64, 1, 0, 1, 0) { trap("scale is not a number"); }

// Not an error, but what it reads is not there yet.
SVDQ_CUDA_KERNEL(reads_too_early, 64, 1, 1024, 1, 0) {
  int32_t* const shared = reinterpret_cast<int32_t*>(shared_memory());
  cp_async<4>(shared + thread_id(), static_cast<int32_t*>(args.buffers[0]) + thread_id());
  cp_async_commit();
  static_cast<int32_t*>(args.buffers[0])[thread_id()] = shared[thread_id()];
}

// A missing barrier: the result depends on who runs first.
SVDQ_CUDA_KERNEL(misses_a_barrier, 64, 1, 1024, 1, 0) {
  int32_t* const shared = reinterpret_cast<int32_t*>(shared_memory());
  shared[thread_id()] = static_cast<int32_t>(thread_id());
  static_cast<int32_t*>(args.buffers[0])[thread_id()] = shared[63 - thread_id()];
}
