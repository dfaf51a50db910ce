/* Which instruction set a kernel is compiled for, and a vector of 16 floats that is the same on
 * each.
 *
 *   SVDQ_ISA_AVX512     AVX512 F, BW, VL, DQ, VNNI     f32x16 is one zmm
 *   SVDQ_ISA_AVX2       AVX2, FMA, F16C                f32x16 is two ymm
 *   SVDQ_ISA_PORTABLE   any GCC or Clang target        f32x16 is what the compiler makes of 64
 * bytes
 *
 * Exactly one is 1, by the compiler's own macros, that is, its -m flags. SVDQ_BF16_DOT is 1 where
 * AVX512-BF16 is there too.
 *
 * Never compile with -ffast-math. Under -ffp-contract=fast the compiler may fuse `a * b + c`; where
 * bits matter (4-bit codes flip when a product is rounded differently) as_rounded(a * b) forbids
 * it.
 */
#ifndef SVDQ_CPU_ISA_H
#define SVDQ_CPU_ISA_H

#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define SVDQ_ISA_AVX512 1
#define SVDQ_ISA_AVX2 0
#define SVDQ_ISA_PORTABLE 0
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SVDQ_ISA_AVX512 0
#define SVDQ_ISA_AVX2 1
#define SVDQ_ISA_PORTABLE 0
#else
#define SVDQ_ISA_AVX512 0
#define SVDQ_ISA_AVX2 0
#define SVDQ_ISA_PORTABLE 1
#endif

#if SVDQ_ISA_AVX512 && defined(__AVX512BF16__)
#define SVDQ_BF16_DOT 1
#else
#define SVDQ_BF16_DOT 0
#endif

#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // the _mm512_undefined_* of GCC 12
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored \
    "-Wpsabi"  // vectors of 64 bytes are only ever passed to inlined functions
#endif

#define SVDQ_INLINE static inline __attribute__((always_inline))
#define SVDQ_NOINLINE static __attribute__((noinline, unused))
#define SVDQ_UNROLL _Pragma("GCC unroll 32")
#define SVDQ_RESTRICT __restrict__

namespace svdq {

constexpr int64_t kLanes = 16;  // of f32x16, and columns of a weight panel

/* unroll<N>(f): f(0), ..., f(N - 1) with constant arguments, so that arrays of vectors become
 * registers. A loop under `GCC unroll` is unrolled too late for that: the arrays are then in
 * memory. Write f as [&](auto i) SVDQ_LAMBDA {...}. */
#define SVDQ_LAMBDA __attribute__((always_inline))

template <typename F, int... I>
SVDQ_INLINE void unroll_over(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}

template <int N, typename F>
SVDQ_INLINE void unroll(F&& f) {
  unroll_over(std::make_integer_sequence<int, N>{}, f);
}

/* ---- scalars ---- */

SVDQ_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SVDQ_INLINE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

SVDQ_INLINE float bf16_to_f32(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }

/* Round to nearest, ties to even; NaN becomes a quiet NaN. */
SVDQ_INLINE uint16_t f32_to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

SVDQ_INLINE float f16_to_f32(uint16_t half) {
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
  return _cvtsh_ss(half);
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Subnormals too: the exponent of 2^112 rebases, and the multiply normalises exactly.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
#endif
}

/* Round to nearest, ties to even; overflow gives infinity. */
SVDQ_INLINE uint16_t f32_to_f16(float x) {
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
  return static_cast<uint16_t>(_cvtss_sh(x, 0));
#else
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude <
      0x38800000u) {  // below 2^-14: adding 1/2 aligns the last place of a subnormal half, 2^-24
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
  return static_cast<uint16_t>(
      sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
#endif
}

}  // namespace svdq

#if SVDQ_ISA_AVX512
#include "svdq_cpu/f32x16_avx512.h"
#elif SVDQ_ISA_AVX2
#include "svdq_cpu/f32x16_avx2.h"
#else
#include "svdq_cpu/f32x16_portable.h"
#endif

namespace svdq {

SVDQ_INLINE f32x16 zero() { return set1(0.0f); }

/* The same value, which the compiler must have in full: a product passed through is never fused
 * into a later sum. */
SVDQ_INLINE f32x16 as_rounded(f32x16 a) {
#if SVDQ_ISA_AVX512
  __asm__("" : "+v"(a.v));
#elif SVDQ_ISA_AVX2
  __asm__("" : "+x"(a.lo), "+x"(a.hi));
#else
  __asm__("" : "+m"(a.v));
#endif
  return a;
}

}  // namespace svdq

#endif
