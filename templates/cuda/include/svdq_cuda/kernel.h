// kernel.h: the frame of every generated kernel.
//
//   SVDQ_CUDA_KERNEL(name, threads, min_ctas, shared_bytes, NB, NS) {
//     ... args.buffers[i], args.scalars[i], svdq::cta_id(), svdq::shared_memory() ...
//   }
//
// threads: of a CTA, a multiple of 32; min_ctas: resident per multiprocessor, for ptxas' register
// budget (0: no bound); shared_bytes: dynamic shared memory of the launch; NB, NS: of the Launch
// record.
//
// nvcc: extern "C" __global__ name(KernelArgs<NB, NS>).
// host: extern "C" void name(const void* params, uint32_t grid_x), and name_info, which says what
// the kernel was compiled for.
#ifndef SVDQ_CUDA_KERNEL_H
#define SVDQ_CUDA_KERNEL_H

#include "svdq_cuda/intrinsics.h"

#if defined(SVDQ_CUDA_HOST)

#include "svdq_cuda/host/grid.h"

#define SVDQ_CUDA_KERNEL(name, threads, min_ctas, shared_bytes, NB, NS)                           \
  static_assert((threads) % 32 == 0 && (threads) >= 32 && (threads) <= 1024, "threads of a CTA"); \
  static void name##_body(const svdq::KernelArgs<NB, NS>& args);                                  \
  extern "C" SVDQ_HOST_EXPORT const svdq::host::KernelInfo name##_info;                           \
  extern "C" const svdq::host::KernelInfo name##_info = {threads, shared_bytes, NB, NS};          \
  extern "C" SVDQ_HOST_EXPORT void name(const void* params, uint32_t grid_x) {                    \
    const auto body = [](const void* block) {                                                     \
      name##_body(*static_cast<const svdq::KernelArgs<NB, NS>*>(block));                          \
    };                                                                                            \
    svdq::host::run_grid(#name, name##_info, body, params, grid_x);                               \
  }                                                                                               \
  static void name##_body([[maybe_unused]] const svdq::KernelArgs<NB, NS>& args)

#else

#define SVDQ_CUDA_KERNEL(name, threads, min_ctas, shared_bytes, NB, NS)                           \
  static_assert((threads) % 32 == 0 && (threads) >= 32 && (threads) <= 1024, "threads of a CTA"); \
  static_assert((shared_bytes) <= 227 * 1024, "shared memory of a CTA");                          \
  extern "C" __global__ void __launch_bounds__(threads, min_ctas)                                 \
      name(const __grid_constant__ svdq::KernelArgs<NB, NS> args)

#endif

#endif  // SVDQ_CUDA_KERNEL_H
