// wgmma.h: products by a warpgroup (four warps, 128 threads) with operands in shared memory, D += A
// B, for sm_90a.
//
// A is 64 rows, B N columns (64, 128, 192 or 256), both K-major: 32 bytes of k at once. An operand
// lies in shared memory as core matrices of 8 rows (columns) by 16 bytes, 128 bytes together:
//
//   byte k of row r is at  start + r / 8 * row_step + k / 16 * k_step + r % 8 * 16 + k % 16
//   wgmma_operand(start, k_step, row_step)   describes it; start and steps are multiples of 16
//   wgmma_advance(operand, bytes)   the same so many bytes further, a multiple of 16
//
// Warp w of the group has rows 16 w .. 16 w + 15; with g = lane / 4, t = lane % 4, d[4 j + 0, 1] is
// row g, columns 8 j + 2 t, + 1, and d[4 j + 2, 3] is row g + 8: mma.h's result, column tile by
// tile.
//
//   wgmma_s8<N>(d, a, b, accumulate)     int32 sums of int8, 32 k; exact
//   wgmma_e4m3<N>(d, a, b, accumulate)   f32 sums of E4M3, 32 k
//   wgmma_bf16<N>(d, a, b, accumulate)   f32 sums of bf16, 16 k
//   accumulate false: d is overwritten. `a` of s8 and bf16 may also be uint32_t[4]: registers, in
//   which a warp has its 16 rows as mma.h's fragment
//
//   give_registers<R>()   all of a warpgroup keep R registers, a multiple of 8, of those they have
//   take_registers<R>()   they get R, once others gave enough. Both where only they come by
//
// Products run beside the threads: wgmma_fence() before the first one that touches registers or
// shared memory just written; wgmma_commit() closes a group; wgmma_wait<P>() until at most P groups
// are under way. Registers of d and a must not be touched before. On the host a product is made at
// once.
#ifndef SVDQ_CUDA_WGMMA_H
#define SVDQ_CUDA_WGMMA_H

#include "svdq_cuda/intrinsics.h"

namespace svdq {
constexpr uint32_t kWarpgroup = 128;
}

#if defined(SVDQ_CUDA_HOST)
#include "svdq_cuda/host/wgmma.h"
#else
#include "svdq_cuda/ptx/wgmma.h"
#endif

#endif  // SVDQ_CUDA_WGMMA_H
