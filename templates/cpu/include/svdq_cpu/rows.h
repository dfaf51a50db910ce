// rows.h: what generated row programs use beside element.h: loop annotations, row fills.
#ifndef SVDQ_CPU_ROWS_H
#define SVDQ_CPU_ROWS_H

#include <stdint.h>
#include <string.h>

#include "svdq_cpu/element.h"
#include "svdq_cpu/isa.h"
#include "svdq_cpu/scalar.h"

// Iterations of generated loops are independent by construction.
#if defined(__clang__)
#define SVDQ_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#define SVDQ_VECTORIZE_SUM _Pragma("clang loop vectorize(enable)")
#else
#define SVDQ_VECTORIZE _Pragma("GCC ivdep")
#define SVDQ_VECTORIZE_SUM _Pragma("omp simd reduction(+ : acc)")
#endif

namespace svdq {

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
