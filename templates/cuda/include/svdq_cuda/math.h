// math.h: the functions that generated element expressions call. They are those of the CPU target,
// so that a value has the same bits on both: no approximate instruction, no fused product.
#ifndef SVDQ_CUDA_MATH_H
#define SVDQ_CUDA_MATH_H

#include "svdq_cuda/intrinsics.h"

#define SVDQ_MATH_BASE
#if defined(SVDQ_CUDA_HOST)
#define SVDQ_LIBM(function) __builtin_##function
#else
#define SVDQ_LIBM(function) ::function
#endif

#include "svdq_cpu/element.h"

#endif  // SVDQ_CUDA_MATH_H
