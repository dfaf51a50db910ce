// tcgen05.h: products of NVFP4 matrices in shared memory, summed in tensor memory, for sm_100a.
//
// Tensor memory is 128 lanes of 512 columns of 32 bits; an address is lane << 16 | column.
//
//   tcgen05_alloc<COLUMNS>(shared)  one warp; *shared gets the address of so many columns (a power
//                                   of two, at least 32), where there are as many
//   tcgen05_free<COLUMNS>(address)  the same warp, before the CTA ends
//
// By one thread, in order; they run beside the threads:
//
//   tcgen05_elect()                 in one lane of a whole warp, always the same: true
//   tcgen05_scales(to, operand)     copies the scales of 128 rows, of 64 k each: to 4 columns. Of
//                                   row r they are the word at 16 (r % 32) + 4 (r / 32) of 512
//                                   bytes
//   tcgen05_e2m1<N>(sums, a, b, a_scales, b_scales)
//                                   sums[m, n] += A B of 64 k: A has 128 rows, B N columns, of 16 k
//                                   with one E4M3 scale each. Row m is lane m of N columns.
//                                   Scales of 64 columns have 2 of the 4
//   tcgen05_commit(barrier)         arrives at the mbarrier when all of them before have ended
//
// Operands are K-major, in core matrices as wgmma.h's: byte k of row r (two codes, the lower k in
// the low nibble) is at start + r / 8 * row_step + k / 16 * k_step + r % 8 * 16 + k % 16.
// tcgen05_operand(start, k_step, row_step) describes it; scales: k_step 0, row_step 128. Further
// on, by a multiple of 16 bytes, it is tcgen05_at(operand, bytes).
//
// By the warps that hold sums: warp w of them reaches lanes 32 (w % 4) ... + 31.
//
//   tcgen05_load<N>(d, address)     16 lanes (their first in the address) of 8 N columns, N 4 or 8;
//   tcgen05_store<N>(d, address)    with g = lane / 4, t = lane % 4, d[j] is mma.h's result of
//                                   columns 8 j ..: lane g, columns 2 t, 2 t + 1, then lane g + 8
//   tcgen05_wait_load()  tcgen05_wait_store()   until those of this thread are done
//
// What one thread issued is ordered before what another issues by tcgen05_fence_before(), a
// barrier, tcgen05_fence_after(). Scales may be copied to columns again when the products that read
// them have ended: that order is not the instructions' own.
#ifndef SVDQ_CUDA_TCGEN05_H
#define SVDQ_CUDA_TCGEN05_H

#include "svdq_cuda/barrier.h"

namespace svdq {
// Its address is the low word's, in units of 16 bytes, and stays below 2^18.
SVDQ_INLINE uint64_t tcgen05_at(uint64_t operand, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(operand) + bytes / 16;
  return (operand & 0xffffffff00000000u) | low;
}

// PTX ISA, "Instruction descriptor" of .kind::mxf4nvf4: E2M1 twice (1 at bits 7 and 10), N / 8 at
// bit 17, M / 128 at bit 27; scales are E4M3, ids 0, K 64.
template <int N>
SVDQ_INLINE constexpr uint32_t tcgen05_shape() {
  static_assert(N % 16 == 0 && N >= 16 && N <= 256, "columns of tcgen05.mma");
  return 1u << 7 | 1u << 10 | static_cast<uint32_t>(N / 8) << 17 | 1u << 27;
}
}  // namespace svdq

#if defined(SVDQ_CUDA_HOST)
#include "svdq_cuda/host/tcgen05.h"
#else
#include "svdq_cuda/ptx/tcgen05.h"
#endif

#endif  // SVDQ_CUDA_TCGEN05_H
