// pack_f32.h: activations into the layouts that the matrix kernels read.
//
//   pack_b            b [k, n], any strides      -> f32  [ceil(n/16)][k][16], zero padded in n
//   round_rows_bf16   x [rows, k]                -> bf16 [rows][ldo], zero padded to an even k
#ifndef SVDQ_CPU_PACK_F32_H
#define SVDQ_CPU_PACK_F32_H

#include "svdq_cpu/scalar.h"

namespace svdq {

namespace detail {

// out[j * out_stride + i] = b[i * stride + j] for i, j < 16.
#if SVDQ_ISA_AVX512
SVDQ_INLINE void transpose16(const float* b, int64_t stride, float* out, int64_t out_stride) {
  __m512 r[16], s[16];
  unroll<16>([&](auto i) SVDQ_LAMBDA { r[i] = _mm512_loadu_ps(b + i * stride); });
  // Within each quarter of a row: 4 x 4 blocks; then the quarters, two levels of them.
  unroll<4>([&](auto q) SVDQ_LAMBDA {
    const __m512 a = _mm512_unpacklo_ps(r[4 * q], r[4 * q + 1]);
    const __m512 c = _mm512_unpackhi_ps(r[4 * q], r[4 * q + 1]);
    const __m512 e = _mm512_unpacklo_ps(r[4 * q + 2], r[4 * q + 3]);
    const __m512 g = _mm512_unpackhi_ps(r[4 * q + 2], r[4 * q + 3]);
    s[4 * q] = _mm512_shuffle_ps(a, e, 0x44);
    s[4 * q + 1] = _mm512_shuffle_ps(a, e, 0xee);
    s[4 * q + 2] = _mm512_shuffle_ps(c, g, 0x44);
    s[4 * q + 3] = _mm512_shuffle_ps(c, g, 0xee);
  });
  unroll<4>([&](auto j) SVDQ_LAMBDA {
    const __m512 a = _mm512_shuffle_f32x4(s[j], s[4 + j], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(s[8 + j], s[12 + j], 0x88);
    const __m512 e = _mm512_shuffle_f32x4(s[j], s[4 + j], 0xdd);
    const __m512 g = _mm512_shuffle_f32x4(s[8 + j], s[12 + j], 0xdd);
    _mm512_storeu_ps(out + j * out_stride, _mm512_shuffle_f32x4(a, c, 0x88));
    _mm512_storeu_ps(out + (4 + j) * out_stride, _mm512_shuffle_f32x4(e, g, 0x88));
    _mm512_storeu_ps(out + (8 + j) * out_stride, _mm512_shuffle_f32x4(a, c, 0xdd));
    _mm512_storeu_ps(out + (12 + j) * out_stride, _mm512_shuffle_f32x4(e, g, 0xdd));
  });
}
#elif SVDQ_ISA_AVX2
SVDQ_INLINE void transpose8(const float* b, int64_t stride, float* out, int64_t out_stride) {
  __m256 r[8], s[8];
  unroll<8>([&](auto i) SVDQ_LAMBDA { r[i] = _mm256_loadu_ps(b + i * stride); });
  unroll<2>([&](auto q) SVDQ_LAMBDA {
    const __m256 a = _mm256_unpacklo_ps(r[4 * q], r[4 * q + 1]);
    const __m256 c = _mm256_unpackhi_ps(r[4 * q], r[4 * q + 1]);
    const __m256 e = _mm256_unpacklo_ps(r[4 * q + 2], r[4 * q + 3]);
    const __m256 g = _mm256_unpackhi_ps(r[4 * q + 2], r[4 * q + 3]);
    s[4 * q] = _mm256_shuffle_ps(a, e, 0x44);
    s[4 * q + 1] = _mm256_shuffle_ps(a, e, 0xee);
    s[4 * q + 2] = _mm256_shuffle_ps(c, g, 0x44);
    s[4 * q + 3] = _mm256_shuffle_ps(c, g, 0xee);
  });
  unroll<4>([&](auto j) SVDQ_LAMBDA {
    _mm256_storeu_ps(out + j * out_stride, _mm256_permute2f128_ps(s[j], s[4 + j], 0x20));
    _mm256_storeu_ps(out + (4 + j) * out_stride, _mm256_permute2f128_ps(s[j], s[4 + j], 0x31));
  });
}
SVDQ_INLINE void transpose16(const float* b, int64_t stride, float* out, int64_t out_stride) {
  transpose8(b, stride, out, out_stride);
  transpose8(b + 8, stride, out + 8 * out_stride, out_stride);
  transpose8(b + 8 * stride, stride, out + 8, out_stride);
  transpose8(b + 8 * stride + 8, stride, out + 8 * out_stride + 8, out_stride);
}
#else
SVDQ_INLINE void transpose16(const float* b, int64_t stride, float* out, int64_t out_stride) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) out[j * out_stride + i] = b[i * stride + j];
  }
}
#endif

}  // namespace detail

// Only panels [panel_begin, panel_end) of b's ceil(n/16); the first of them is written at out.
SVDQ_OUTLINE void pack_b_panels(int64_t k, int64_t n, const float* b, int64_t stride_k,
                                int64_t stride_n, int64_t panel_begin, int64_t panel_end,
                                float* out) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel, out += k * kLanes) {
    const float* source = b + panel * kLanes * stride_n;
    const int64_t width = min_i64(kLanes, n - panel * kLanes);
    int64_t kk = 0;
    if (stride_n == 1) {
      if (width == kLanes) {
        for (; kk < k; ++kk) store(out + kk * kLanes, load(source + kk * stride_k));
      } else {
        for (; kk < k; ++kk) store(out + kk * kLanes, load_tail(source + kk * stride_k, width));
      }
    } else if (stride_k == 1 && width == kLanes) {
      for (; kk + 16 <= k; kk += 16)
        detail::transpose16(source + kk, stride_n, out + kk * kLanes, kLanes);
    }
    for (; kk < k; ++kk) {
      for (int64_t j = 0; j < width; ++j)
        out[kk * kLanes + j] = source[kk * stride_k + j * stride_n];
      for (int64_t j = width; j < kLanes; ++j) out[kk * kLanes + j] = 0.0f;
    }
  }
}

SVDQ_INLINE void pack_b(int64_t k, int64_t n, const float* b, int64_t stride_k, int64_t stride_n,
                        float* out) {
  pack_b_panels(k, n, b, stride_k, stride_n, 0, ceil_div(n, kLanes), out);
}

// Round to nearest even. ldo >= round_up(k, 2); the element after an odd k is 0.
SVDQ_OUTLINE void round_rows_bf16(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                  uint16_t* out, int64_t ldo) {
  for (int64_t row = 0; row < rows; ++row, x += ldx, out += ldo) {
    int64_t kk = 0;
    for (; kk + kLanes <= k; kk += kLanes) store_bf16(out + kk, load(x + kk));
    for (; kk < k; ++kk) out[kk] = f32_to_bf16(x[kk]);
    if (k & 1) out[k] = 0;
  }
}

}  // namespace svdq

#endif  // SVDQ_CPU_PACK_F32_H
