// element.h: what generated element expressions use beside the functions of vec_math.h, on CPUs and
// GPUs: integer arithmetic, and how stored vectors become f32.
#ifndef SVDQ_CPU_ELEMENT_H
#define SVDQ_CPU_ELEMENT_H

#include "svdq_cpu/vec_math.h"

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
  SVDQ_INLINE float load(float x) { return x; }
};
struct StoredBf16 {
  using Type = uint16_t;
  SVDQ_INLINE float load(uint16_t x) { return bf16_to_f32(x); }
};
struct StoredF16 {
  using Type = uint16_t;
  SVDQ_INLINE float load(uint16_t x) { return f16_to_f32(x); }
};

}  // namespace svdq

#endif  // SVDQ_CPU_ELEMENT_H
