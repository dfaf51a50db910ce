// gemm_simt.h: a product in f32 without tensor cores, of operands given element by element. For
// what no tuned kernel takes: odd strides, views, types; and it says what the others must compute.
//
//   SimtGemm<TM, TN> gemm(shared)        256 threads, kSharedBytes of shared memory
//   gemm.start(bias)                     acc[m, n]  = bias(n)
//   gemm.multiply(rows, columns, k, a, b)
//                                        acc[m, n]  = fma(a(m, i), b(n, i), acc[m, n]), i rising
//   gemm.multiply_groups(rows, columns, k, group, a, b, x_scale, w_scale)
//                                        acc[m, n]  = fma(sum * w_scale(n, g), x_scale(m, g),
//                                        acc[m, n]) with sum = sum_{i in g} a(m, i) * b(n, i):
//                                        exact for codes
//   gemm.store(tile, ld)                 tile[m * ld + n], then the CTA meets
//
// Columns n are counted from the tile's first. a and b are called for m < rows, n < columns, i < k.
// A thread has rows thread / 16 + 16 i and columns thread % 16 + 16 j.
#ifndef SVDQ_CUDA_GEMM_SIMT_H
#define SVDQ_CUDA_GEMM_SIMT_H

#include "svdq_cuda/math.h"

namespace svdq {

template <int TM, int TN>
struct SimtGemm {
  static constexpr int kThreads = 256, kSlice = 16;
  static constexpr int kRows = TM / 16, kColumns = TN / 16;
  static constexpr int kSharedBytes = kSlice * (TM + TN + 2) * 4;
  float acc[kRows][kColumns];
  float* const a_slice;
  float* const b_slice;
  int row, column;

  SVDQ_METHOD explicit SimtGemm(char* shared)
      : a_slice(reinterpret_cast<float*>(shared)), b_slice(a_slice + kSlice * (TM + 1)) {
    row = static_cast<int>(thread_id()) / 16;
    column = static_cast<int>(thread_id()) % 16;
  }

  template <class Bias>
  SVDQ_METHOD void start(int64_t columns, const Bias& bias) {
    SVDQ_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const int n = column + 16 * j;
      const float value = n < columns ? bias(n) : 0.0f;
      SVDQ_UNROLL
      for (int i = 0; i < kRows; ++i) acc[i][j] = value;
    }
  }

  template <class A, class B>
  SVDQ_METHOD void multiply(int64_t rows, int64_t columns, int64_t k, const A& a, const B& b) {
    for (int64_t k0 = 0; k0 < k; k0 += kSlice) {
      load(rows, columns, k0, min_i64(k, k0 + kSlice), a, b);
      add_slice(acc);
    }
  }

  template <class A, class B, class XScale, class WScale>
  SVDQ_METHOD void multiply_groups(int64_t rows, int64_t columns, int64_t k, int64_t group,
                                   const A& a, const B& b, const XScale& x_scale,
                                   const WScale& w_scale) {
    for (int64_t g = 0; g * group < k; ++g) {
      float sum[kRows][kColumns] = {};
      for (int64_t k0 = g * group; k0 < (g + 1) * group; k0 += kSlice) {
        load(rows, columns, k0, min_i64((g + 1) * group, k0 + kSlice), a, b);
        add_slice(sum);
      }
      SVDQ_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        const int n = column + 16 * j;
        const float of_w = n < columns ? w_scale(n, g) : 0.0f;
        SVDQ_UNROLL
        for (int i = 0; i < kRows; ++i) {
          const int m = row + 16 * i;
          const float of_x = m < rows ? x_scale(m, g) : 0.0f;
          acc[i][j] = mad(sum[i][j] * of_w, of_x, acc[i][j]);
        }
      }
    }
  }

  SVDQ_METHOD void store(float* tile, int64_t ld) {
    SVDQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      SVDQ_UNROLL
      for (int j = 0; j < kColumns; ++j) tile[(row + 16 * i) * ld + column + 16 * j] = acc[i][j];
    }
    cta_sync();
  }

 private:
  template <class A, class B>
  SVDQ_METHOD void load(int64_t rows, int64_t columns, int64_t k0, int64_t end, const A& a,
                        const B& b) {
    cta_sync();  // the slice before was read
    const int i = static_cast<int>(thread_id()) % kSlice;
    SVDQ_UNROLL
    for (int m = static_cast<int>(thread_id()) / kSlice; m < TM; m += kThreads / kSlice) {
      a_slice[i * (TM + 1) + m] = m < rows && k0 + i < end ? a(m, k0 + i) : 0.0f;
    }
    SVDQ_UNROLL
    for (int n = static_cast<int>(thread_id()) / kSlice; n < TN; n += kThreads / kSlice) {
      b_slice[i * (TN + 1) + n] = n < columns && k0 + i < end ? b(n, k0 + i) : 0.0f;
    }
    cta_sync();
  }

  SVDQ_METHOD void add_slice(float (&to)[kRows][kColumns]) const {
    SVDQ_UNROLL
    for (int i = 0; i < kSlice; ++i) {
      float of_a[kRows], of_b[kColumns];
      SVDQ_UNROLL
      for (int m = 0; m < kRows; ++m) of_a[m] = a_slice[i * (TM + 1) + row + 16 * m];
      SVDQ_UNROLL
      for (int n = 0; n < kColumns; ++n) of_b[n] = b_slice[i * (TN + 1) + column + 16 * n];
      SVDQ_UNROLL
      for (int m = 0; m < kRows; ++m) {
        SVDQ_UNROLL
        for (int n = 0; n < kColumns; ++n) to[m][n] = mad(of_a[m], of_b[n], to[m][n]);
      }
    }
  }
};

// 4-bit codes, two a byte, the low nibble first: element i of a packed row, as f32.
SVDQ_INLINE float nibble_s4(const int8_t* packed, int64_t i) {
  const int32_t byte = packed[i / 2];
  const int32_t nibble = (i % 2 != 0 ? byte >> 4 : byte) & 15;
  return static_cast<float>((nibble ^ 8) - 8);
}
SVDQ_INLINE float nibble_u4(const int8_t* packed, int64_t i) {
  const int32_t byte = packed[i / 2];
  return static_cast<float>((i % 2 != 0 ? byte >> 4 : byte) & 15);
}

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_SIMT_H
