// fast_math.h: functions for the insides of sums, by one instruction where the GPU has it. Unlike
// math.h's their last bits may differ between architectures.
//
//   exp2_fast(x)    2^x, relative error below 2^-21; results below 2^-126 may be 0
//   reciprocal_fast(x)   1 / x within two units of the last place, for 2^-126 <= x < 2^126
//   larger(x, y)    the larger; y if x is NaN
//   magnitude(x)    |x|
#ifndef SVDQ_CUDA_FAST_MATH_H
#define SVDQ_CUDA_FAST_MATH_H

#include "svdq_cuda/intrinsics.h"

namespace svdq {

constexpr float kLog2E = 1.44269504088896340736f;

SVDQ_INLINE float exp2_fast(float x) {
#if defined(SVDQ_CUDA_HOST)
  return __builtin_exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

SVDQ_INLINE float reciprocal_fast(float x) {
#if defined(SVDQ_CUDA_HOST)
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

SVDQ_INLINE float larger(float x, float y) { return x > y ? x : y; }
SVDQ_INLINE float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

}  // namespace svdq

#endif  // SVDQ_CUDA_FAST_MATH_H
