// gemm_float_math.h: products of f32 activations with float weights on 16-bit tensor cores, to
// nearly the accuracy of f32.
//
// A float is the sum of a 16-bit float near it, hi, and of what remains, lo, rounded again. Of
// (x_hi + x_lo) (w_hi + w_lo) the last product is dropped; bf16 weights have no lo.
//
//   Bf16Math<W>  hi, lo bf16: x keeps 16 bits. Each product x w of a sum is off by at most
//                2^-16 |x w|, bf16 weights: 2^-17. sm_80 and later
//   F16Math<W>   hi, lo f16, 22 bits: rows of x (and columns of w, where it is no f16) are first
//                multiplied by a power of two per 16 k that brings their largest to 2^14, for f16
//                has few exponents; sums are multiplied back. Products are off by at most
//                2^-20 times the largest |x| and |w| among their 16 k. For Turing
//
// W: what weights are stored as: uint16_t holds bf16 or f16 bits (Bits16::BF16, F16), else float.
//
//   split_a(x, a)   x[0..3]: row g at k = 2 t, 2 t + 1, 8 + 2 t, 9 + 2 t; x[4..7]: row g + 8
//   split_b(w, b)   w[0..3]: column g at the same k
//   multiply(d, a, b)   d += A B for 16 x 8 x 16
#ifndef SVDQ_CUDA_GEMM_FLOAT_MATH_H
#define SVDQ_CUDA_GEMM_FLOAT_MATH_H

#include "svdq_cuda/mma.h"

namespace svdq {

enum class Stored { F32, BF16, F16 };

template <Stored W>
struct Bf16Math {
  static constexpr bool kLowB = W != Stored::BF16;
  struct A {
    uint32_t hi[4], lo[4];
  };
  struct B {
    uint32_t hi[2], lo[2];
  };

  SVDQ_INLINE void split(float x, float y, uint32_t& hi, uint32_t& lo) {
    hi = pack_bf16x2(x, y);
    const float2 near = unpack_bf16x2(hi);
    lo = pack_bf16x2(x - near.x, y - near.y);
  }
  SVDQ_INLINE void split_a(const float (&x)[8], A& a) {
    SVDQ_UNROLL
    for (int i = 0; i < 4; ++i) {  // register i: rows alternate, then k
      const int first = i % 2 * 4 + i / 2 * 2;
      split(x[first], x[first + 1], a.hi[i], a.lo[i]);
    }
  }
  // Two words of 16-bit weights, or four floats.
  SVDQ_INLINE void split_b(const uint32_t (&w)[2], B& b) {
    if constexpr (W == Stored::BF16) {
      b.hi[0] = w[0];
      b.hi[1] = w[1];
    } else {
      SVDQ_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float2 pair = unpack_f16x2(w[i]);
        split(pair.x, pair.y, b.hi[i], b.lo[i]);
      }
    }
  }
  SVDQ_INLINE void split_b(const float (&w)[4], B& b) {
    split(w[0], w[1], b.hi[0], b.lo[0]);
    split(w[2], w[3], b.hi[1], b.lo[1]);
  }
  SVDQ_INLINE void multiply(float (&d)[4], const A& a, const B& b) {
    mma_bf16(d, a.lo, b.hi);
    if constexpr (kLowB) mma_bf16(d, a.hi, b.lo);
    mma_bf16(d, a.hi, b.hi);
  }
};

template <Stored W>
struct F16Math {
  static constexpr bool kLowB = W == Stored::F32;
  static constexpr bool kScaledB = W != Stored::F16;
  struct A {
    uint32_t hi[4], lo[4];
    float unit[2];  // of rows g and g + 8
  };
  struct B {
    uint32_t hi[2], lo[2];
    float unit[2];  // of columns 2 t and 2 t + 1
  };

  // The power of two that brings the largest of these, in the four lanes of a quad, to [2^14,
  // 2^15). Bits of magnitudes order as the magnitudes do.
  SVDQ_INLINE float factor(float x, float y, float z, float w, float& unit) {
    const uint32_t most =
        larger(larger(magnitude(x), magnitude(y)), larger(magnitude(z), magnitude(w)));
    const uint32_t exponent = lanes_max<4>(most) >> 23;
    const uint32_t within = exponent < 15 ? 15 : exponent > 254 ? 254 : exponent;
    unit = float_of((within - 14) << 23);
    return float_of((268 - within) << 23);
  }
  SVDQ_INLINE uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffffu; }
  SVDQ_INLINE uint32_t larger(uint32_t x, uint32_t y) { return x > y ? x : y; }
  SVDQ_INLINE void split(float x, float y, uint32_t& hi, uint32_t& lo) {
    hi = pack_f16x2(x, y);
    const float2 near = unpack_f16x2(hi);
    lo = pack_f16x2(x - near.x, y - near.y);
  }
  SVDQ_INLINE void split_a(const float (&x)[8], A& a) {
    SVDQ_UNROLL
    for (int row = 0; row < 2; ++row) {
      const float* const of_row = x + 4 * row;
      const float f = factor(of_row[0], of_row[1], of_row[2], of_row[3], a.unit[row]);
      split(of_row[0] * f, of_row[1] * f, a.hi[row], a.lo[row]);
      split(of_row[2] * f, of_row[3] * f, a.hi[2 + row], a.lo[2 + row]);
    }
  }
  SVDQ_INLINE void split_b(const uint32_t (&w)[2], B& b) {
    if constexpr (W == Stored::F16) {
      b.hi[0] = w[0];
      b.hi[1] = w[1];
    } else {
      const float2 first = unpack_bf16x2(w[0]), second = unpack_bf16x2(w[1]);
      const float four[4] = {first.x, first.y, second.x, second.y};
      split_b(four, b);
    }
  }
  SVDQ_INLINE void split_b(const float (&w)[4], B& b) {
    float unit;
    const float f = factor(w[0], w[1], w[2], w[3], unit);
    split(w[0] * f, w[1] * f, b.hi[0], b.lo[0]);
    split(w[2] * f, w[3] * f, b.hi[1], b.lo[1]);
    const uint32_t t = lane_id() % 4;
    b.unit[0] = shuffle(unit, 8 * t);
    b.unit[1] = shuffle(unit, 8 * t + 4);
  }
  SVDQ_INLINE void multiply(float (&d)[4], const A& a, const B& b) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_f16(sum, a.lo, b.hi);
    if constexpr (kLowB) mma_f16(sum, a.hi, b.lo);
    mma_f16(sum, a.hi, b.hi);
    SVDQ_UNROLL
    for (int c = 0; c < 4; ++c) {
      if constexpr (kScaledB) sum[c] *= b.unit[c % 2];
      d[c] = mad(sum[c], a.unit[c / 2], d[c]);
    }
  }
};

// The weights of a lane for 32 columns by 16 k ("bf16_mma", "f16_mma", "f32_mma").
template <Stored W>
struct FloatPanel {
  static constexpr int kLoads = W == Stored::F32 ? 4 : 2;
  static constexpr int kBytes = kLoads * 512;
  uint4 words[kLoads];

  // `at`: of the panel's first k, plus 16 (32 for f32) times the lane.
  SVDQ_METHOD void load(const char* at) {
    SVDQ_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int first = W == Stored::F32 ? i / 2 * 1024 + i % 2 * 16 : i * 512;
      words[i] = load_16(at + first);
    }
  }
  SVDQ_METHOD static int lane_offset() {
    return static_cast<int>(lane_id()) * (W == Stored::F32 ? 32 : 16);
  }
  // Of columns 8 j ... 8 j + 7.
  template <class Math>
  SVDQ_METHOD void split(int j, typename Math::B& b) const {
    if constexpr (W == Stored::F32) {
      const float w[4] = {float_of(words[j].x), float_of(words[j].y), float_of(words[j].z),
                          float_of(words[j].w)};
      Math::split_b(w, b);
    } else {
      const uint4& both = words[j / 2];
      const uint32_t w[2] = {j % 2 == 0 ? both.x : both.z, j % 2 == 0 ? both.y : both.w};
      Math::split_b(w, b);
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_FLOAT_MATH_H
