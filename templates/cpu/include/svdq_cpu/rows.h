// rows.h: what generated row programs use beside the math library: loop annotations, integer
// arithmetic, row fills.
#ifndef SVDQ_CPU_ROWS_H
#define SVDQ_CPU_ROWS_H

#include <stdint.h>
#include <string.h>

#include "svdq_cpu/isa.h"
#include "svdq_cpu/scalar.h"
#include "svdq_cpu/vec_math.h"

// Iterations of generated loops are independent by construction.
#if defined(__clang__)
#define SVDQ_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#define SVDQ_VECTORIZE_SUM _Pragma("clang loop vectorize(enable)")
#else
#define SVDQ_VECTORIZE _Pragma("GCC ivdep")
#define SVDQ_VECTORIZE_SUM _Pragma("omp simd reduction(+ : acc)")
#endif

namespace svdq {

// Integer forms of the scalar ops, with PyTorch's meaning: division and remainder round towards
// minus infinity.
SVDQ_INLINE int64_t floor_div(int64_t a, int64_t b) {
  if (b == 0) return 0;
  const int64_t q = a / b;
  return q * b != a && (a < 0) != (b < 0) ? q - 1 : q;
}
SVDQ_INLINE int64_t floor_mod(int64_t a, int64_t b) { return b == 0 ? 0 : a - floor_div(a, b) * b; }
SVDQ_INLINE int64_t floor_divide(int64_t a, int64_t b) { return floor_div(a, b); }
SVDQ_INLINE int32_t floor_divide(int32_t a, int32_t b) {
  return static_cast<int32_t>(floor_div(a, b));
}
SVDQ_INLINE float floor_divide(float a, float b) { return svdq::floor(a / b); }
SVDQ_INLINE double floor_divide(double a, double b) { return svdq::floor(a / b); }
SVDQ_INLINE int64_t remainder(int64_t a, int64_t b) { return floor_mod(a, b); }
SVDQ_INLINE int32_t remainder(int32_t a, int32_t b) {
  return static_cast<int32_t>(floor_mod(a, b));
}
SVDQ_INLINE int64_t fmod(int64_t a, int64_t b) { return b == 0 ? 0 : a % b; }
SVDQ_INLINE int32_t fmod(int32_t a, int32_t b) { return b == 0 ? 0 : a % b; }

#define SVDQ_INTEGER_OPS(T)                                                  \
  SVDQ_INLINE T min(T a, T b) { return a < b ? a : b; }                      \
  SVDQ_INLINE T max(T a, T b) { return a > b ? a : b; }                      \
  SVDQ_INLINE T abs(T a) { return static_cast<T>(a < 0 ? -a : a); }          \
  SVDQ_INLINE T sign(T a) { return static_cast<T>((a > 0) - (a < 0)); }      \
  SVDQ_INLINE T relu(T a) { return a > 0 ? a : static_cast<T>(0); }          \
  SVDQ_INLINE T floor(T a) { return a; }                                     \
  SVDQ_INLINE T ceil(T a) { return a; }                                      \
  SVDQ_INLINE T trunc(T a) { return a; }                                     \
  SVDQ_INLINE T round_even(T a) { return a; }                                \
  SVDQ_INLINE T pow(T base, T exponent) {                                    \
    T result = 1;                                                            \
    for (; exponent > 0; --exponent) result = static_cast<T>(result * base); \
    return result;                                                           \
  }
SVDQ_INTEGER_OPS(int8_t)
SVDQ_INTEGER_OPS(uint8_t)
SVDQ_INTEGER_OPS(int16_t)
SVDQ_INTEGER_OPS(int32_t)
SVDQ_INTEGER_OPS(int64_t)
#undef SVDQ_INTEGER_OPS

// How a stored vector becomes f32; bf16 and f16 are both held in uint16_t.
struct StoredF32 {
  using Type = float;
  static float load(float x) { return x; }
};
struct StoredBf16 {
  using Type = uint16_t;
  static float load(uint16_t x) { return bf16_to_f32(x); }
};
struct StoredF16 {
  using Type = uint16_t;
  static float load(uint16_t x) { return f16_to_f32(x); }
};

// Panels [panel, end) of `rows` rows become the bias, zero from column `count` on. `to` is panel's
// first column. Vectors are stored whole, since a following load of 16 lanes cannot be forwarded
// from narrower stores.
template <class S>
SVDQ_INLINE void fill_panels(int64_t rows, int64_t panel, int64_t end, int64_t count,
                             const typename S::Type* bias, float* to, int64_t ld) {
  for (int64_t p = panel; p < end; ++p) {
    alignas(64) float values[16];
    for (int64_t j = 0; j < 16; ++j)
      values[j] = p * 16 + j < count ? S::load(bias[p * 16 + j]) : 0.0f;
    const f32x16 whole = load(values);
    for (int64_t r = 0; r < rows; ++r) store(to + r * ld + (p - panel) * 16, whole);
  }
}

// tile[r] += values[0, count) for each row.
template <class S>
SVDQ_INLINE void add_to_rows(int64_t rows, int64_t count, const typename S::Type* values,
                             float* tile, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < count; ++j) tile[r * ld + j] += S::load(values[j]);
  }
}

}  // namespace svdq

#endif  // SVDQ_CPU_ROWS_H
