// intrinsics.h: the thin layer between kernels and the machine, with two back ends of one meaning:
// PTX for nvcc, and a host one in which every CUDA thread is a fibre (tests, no GPU needed).
// README.md in this folder lists every function. Tensor cores are in mma.h and wgmma.h.
#ifndef SVDQ_CUDA_INTRINSICS_H
#define SVDQ_CUDA_INTRINSICS_H

#include "svdq_cuda/base.h"

#if defined(SVDQ_CUDA_HOST)
#include "svdq_cuda/host/convert.h"
#include "svdq_cuda/host/cta.h"
#include "svdq_cuda/host/memory.h"
#include "svdq_cuda/host/shuffle.h"
#else
#include "svdq_cuda/ptx/convert.h"
#include "svdq_cuda/ptx/cta.h"
#include "svdq_cuda/ptx/memory.h"
#include "svdq_cuda/ptx/shuffle.h"
#endif

#endif  // SVDQ_CUDA_INTRINSICS_H
