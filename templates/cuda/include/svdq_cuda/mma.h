// mma.h: products of small matrices by a whole warp, D = A B + C.
//
// All 32 lanes call together, with g = lane / 4 and t = lane % 4. A is 16 rows, B 8 columns; the
// result has rows g (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2 t and 2 t + 1. Operand registers
// hold, low bits first, elements of consecutive k:
//
//   function     k   a[0], a[1]: rows g, g + 8   a[2], a[3]: likewise      b[0]    b[1]
//   mma_s4_k32   32  8 codes from k = 8 t        -                         8 t     -
//   mma_s4_k64   64  8 codes from k = 8 t        8 codes from 32 + 8 t     8 t     32 + 8 t
//   mma_s8       32  4 codes from k = 4 t        4 codes from 16 + 4 t     4 t     16 + 4 t
//   mma_e4m3     32  as mma_s8
//   mma_bf16     16  2 values from k = 2 t       2 values from 8 + 2 t     2 t     8 + 2 t
//   mma_f16      16  as mma_bf16
//   mma_e2m1     64  as mma_s4_k64, each 16 k scaled by an E4M3 of A's row and one of B's column
//
// Columns of B are g. mma_e2m1<A_PAIR, B_LANE> takes the four scales of a row in one register: of
// row g from lanes with t = 2 A_PAIR, of row g + 8 from the next ones; of column g from t = B_LANE.
// So a register serves two tiles of rows, or four of columns.
//
// Integers are exact (mod 2^32); UNSIGNED says that A's codes are unsigned. Products of floats are
// exact and summed in f32: on the host from c by rising k, each addition rounded to nearest; tensor
// cores add in an order of their own and may truncate. Any order's error is below
// k * 2^-22 * (|c| + sum of the products' magnitudes), which is what tests assume.
//
// ldmatrix_x4 loads four 8 x 8 matrices of 16-bit elements: lane 8 i + r gives the address of row r
// of matrix i (16 bytes in shared memory), and gets in r[i] elements 2 t and 2 t + 1 of row g;
// with `trans`, elements g of rows 2 t and 2 t + 1.
//
// Availability: s4 on sm_75..89 (on later ones it is emulated, and refused here); bf16 from sm_80;
// e4m3 from sm_89; e2m1 on sm_120a. Turing's smaller shapes are put together to these.
#ifndef SVDQ_CUDA_MMA_H
#define SVDQ_CUDA_MMA_H

#include "svdq_cuda/intrinsics.h"

#if defined(SVDQ_CUDA_HOST)
#include "svdq_cuda/host/mma.h"
#else
#include "svdq_cuda/ptx/mma.h"
#endif

#endif  // SVDQ_CUDA_MMA_H
