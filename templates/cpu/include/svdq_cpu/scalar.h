// scalar.h: scalar helpers of the 16/32-bit kernels, beside those of isa.h.
#ifndef SVDQ_CPU_SCALAR_H
#define SVDQ_CPU_SCALAR_H

#include <stdint.h>
#include <string.h>

#include "svdq_cpu/isa.h"

// A function that is called, not inlined; a translation unit need not use it.
#define SVDQ_OUTLINE static __attribute__((noinline, unused))

// A function of the C library that the compiler knows and expands in place where it can.
#define SVDQ_LIBM(function) __builtin_##function

namespace svdq {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

SVDQ_INLINE uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SVDQ_INLINE double double_of(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// a * b + c: one rounding where the machine has fma, two where it has not (never a library call).
SVDQ_INLINE float mad(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

SVDQ_INLINE double mad(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Sum of the lanes in one fixed tree (distance 8, 4, 2, 1), the same on every instruction set.
SVDQ_INLINE float reduce_add(f32x16 x) {
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
#if SVDQ_ISA_AVX512
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
#else
  const __m256 eight = _mm256_add_ps(x.lo, x.hi);
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float lane[kLanes];
  store(lane, x);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
#endif
}

}  // namespace svdq

#endif  // SVDQ_CPU_SCALAR_H
