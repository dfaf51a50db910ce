// host/mma.h: what the tensor-core operations mean; see mma.h for operands and order of sums. The
// lanes of a warp meet, and the last to come computes the whole product.
#ifndef SVDQ_CUDA_HOST_MMA_H
#define SVDQ_CUDA_HOST_MMA_H

#include "svdq_cuda/host/convert.h"
#include "svdq_cuda/host/cta.h"

namespace svdq {

namespace host {

template <int N>
struct Matrices {
  const void* row;
  uint32_t r[N];
};

template <int N, bool TRANS>
inline void load_matrices(const char* what, uint32_t (&r)[N], const void* shared) {
  Matrices<N> mine{shared, {}};
  if (cta().current % kWarp < 8 * N) mine.row = checked_shared(what, shared, 16, 16);
  warp_collective(what, mine, [](Matrices<N>** lane) {
    for (int i = 0; i < N; ++i) {
      uint16_t matrix[8][8];
      for (int row = 0; row < 8; ++row) memcpy(matrix[row], lane[8 * i + row]->row, 16);
      for (int l = 0; l < 32; ++l) {
        const int g = l / 4, t = l % 4 * 2;
        const uint32_t low = TRANS ? matrix[t][g] : matrix[g][t];
        const uint32_t high = TRANS ? matrix[t + 1][g] : matrix[g][t + 1];
        lane[l]->r[i] = low | high << 16;
      }
    }
  });
  memcpy(r, mine.r, sizeof r);
}

// One lane's share of a product.
template <typename T>
struct Fragments {
  uint32_t a[4], b[2];
  T c[4];
  uint32_t a_scales, b_scales;
};

// The k values that a register holds begin at this k, for `count` of them a register.
inline int first_k(int t, int reg, int count) { return (reg * 4 + t) * count; }

// A [16, K] and B, transposed, [K, 8], as floats, from all lanes. decode(bits, i): element i.
template <int K, int COUNT, typename T, typename DecodeA, typename DecodeB>
inline void gather(Fragments<T>** lane, float (&a)[16][K], float (&b)[K][8],
                   const DecodeA& decode_a, const DecodeB& decode_b) {
  constexpr int kHalves = K / (4 * COUNT);
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int half = 0; half < kHalves; ++half) {
      const int k = first_k(t, half, COUNT);
      for (int i = 0; i < COUNT; ++i) {
        a[g][k + i] = decode_a(lane[l]->a[2 * half], i);
        a[g + 8][k + i] = decode_a(lane[l]->a[2 * half + 1], i);
        b[k + i][g] = decode_b(lane[l]->b[half], i);
      }
    }
  }
}

template <typename T>
inline T& result_of(Fragments<T>** lane, int row, int column) {
  return lane[row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2];
}

template <int BITS, bool UNSIGNED>
inline float code_of(uint32_t bits, int i) {
  const uint32_t field = bits << (32 - BITS * (i + 1));
  return static_cast<float>(UNSIGNED ? static_cast<int32_t>(field >> (32 - BITS))
                                     : static_cast<int32_t>(field) >> (32 - BITS));
}

// Magnitudes stay below 32 * 255 * 128 < 2^24, so sums of codes in f32 are exact.
template <int K, int BITS, bool UNSIGNED>
inline void multiply_codes(Fragments<int32_t>** lane) {
  float a[16][K], b[K][8];
  gather<K, 32 / BITS>(
      lane, a, b, [](uint32_t bits, int i) { return code_of<BITS, UNSIGNED>(bits, i); },
      [](uint32_t bits, int i) { return code_of<BITS, false>(bits, i); });
  for (int row = 0; row < 16; ++row) {
    float sums[8] = {};
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      int32_t& c = result_of(lane, row, column);
      c = static_cast<int32_t>(static_cast<uint32_t>(c) +
                               static_cast<uint32_t>(static_cast<int32_t>(sums[column])));
    }
  }
}

template <int K>
inline void multiply_floats(Fragments<float>** lane, const float (&a)[16][K],
                            const float (&b)[K][8]) {
  for (int row = 0; row < 16; ++row) {
    float sums[8];
    for (int column = 0; column < 8; ++column) sums[column] = result_of(lane, row, column);
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) result_of(lane, row, column) = sums[column];
  }
}

template <int K, int COUNT, typename Decode>
inline void mma_floats(const char* what, float (&d)[4], const uint32_t (&a)[4],
                       const uint32_t (&b)[2], const Decode& decode) {
  Fragments<float> mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}, 0, 0};
  warp_collective(what, mine, [&](Fragments<float>** lane) {
    float x[16][K], y[K][8];
    gather<K, COUNT>(lane, x, y, decode, decode);
    multiply_floats<K>(lane, x, y);
  });
  memcpy(d, mine.c, sizeof d);
}

inline float e2m1_of(uint32_t bits, int i) {
  constexpr float kMagnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const uint32_t nibble = bits >> 4 * i & 15;
  return nibble & 8 ? -kMagnitudes[nibble & 7] : kMagnitudes[nibble & 7];
}

// A scale has no sign; 0x7f is NaN.
inline float e4m3_of(uint32_t bits, int i) {
  const uint32_t byte = bits >> 8 * i & 0xff, exponent = byte >> 3 & 15, fraction = byte & 7;
  if ((byte & 0x7f) == 0x7f) return float_of(0x7fc00000u);
  const float magnitude = exponent == 0 ? static_cast<float>(fraction) * 0x1p-9f
                                        : float_of((exponent + 120) << 23 | fraction << 20);
  return byte & 0x80 ? -magnitude : magnitude;
}

}  // namespace host

SVDQ_NOINLINE void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  host::load_matrices<4, false>("ldmatrix_x4", r, shared);
}
SVDQ_NOINLINE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  host::load_matrices<4, true>("ldmatrix_x4_trans", r, shared);
}
SVDQ_NOINLINE void ldmatrix_x2(uint32_t (&r)[2], const void* shared) {
  host::load_matrices<2, false>("ldmatrix_x2", r, shared);
}
SVDQ_NOINLINE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared) {
  host::load_matrices<2, true>("ldmatrix_x2_trans", r, shared);
}

template <bool UNSIGNED = false>
SVDQ_NOINLINE void mma_s4_k64(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const int32_t (&c)[4]) {
  host::Fragments<int32_t> mine{
      {a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}, 0, 0};
  host::warp_collective("mma_s4_k64", mine, host::multiply_codes<64, 4, UNSIGNED>);
  memcpy(d, mine.c, sizeof d);
}

template <bool UNSIGNED = false>
SVDQ_NOINLINE void mma_s4_k32(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0,
                              const int32_t (&c)[4]) {
  host::Fragments<int32_t> mine{{a0, a1, 0, 0}, {b0, 0}, {c[0], c[1], c[2], c[3]}, 0, 0};
  host::warp_collective("mma_s4_k32", mine, host::multiply_codes<32, 4, UNSIGNED>);
  memcpy(d, mine.c, sizeof d);
}

template <bool UNSIGNED = false>
SVDQ_NOINLINE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                          const int32_t (&c)[4]) {
  host::Fragments<int32_t> mine{
      {a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}, 0, 0};
  host::warp_collective("mma_s8", mine, host::multiply_codes<32, 8, UNSIGNED>);
  memcpy(d, mine.c, sizeof d);
}

SVDQ_NOINLINE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::mma_floats<16, 2>("mma_bf16", d, a, b, [](uint32_t bits, int i) {
    return bf16_to_f32(static_cast<uint16_t>(bits >> 16 * i));
  });
}
SVDQ_NOINLINE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::mma_floats<16, 2>("mma_f16", d, a, b, [](uint32_t bits, int i) {
    return f16_to_f32(static_cast<uint16_t>(bits >> 16 * i));
  });
}
SVDQ_NOINLINE void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::mma_floats<32, 4>("mma_e4m3", d, a, b, host::e4m3_of);
}

// The scale of 16 k is applied to their sum: scales and codes have few bits, so products of
// 16 codes are exact in f32 and each block is rounded only when it is added.
template <int A_PAIR = 0, int B_LANE = 0>
SVDQ_NOINLINE void mma_e2m1(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            uint32_t a_scales, uint32_t b_scales) {
  host::Fragments<float> mine{
      {a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}, a_scales, b_scales};
  host::warp_collective("mma_e2m1", mine, [](host::Fragments<float>** lane) {
    float x[16][64], y[64][8], y_scale[8][4];
    host::gather<64, 8>(lane, x, y, host::e2m1_of, host::e2m1_of);
    for (int column = 0; column < 8; ++column) {
      const uint32_t scales = lane[column * 4 + B_LANE]->b_scales & 0x7f7f7f7fu;
      for (int block = 0; block < 4; ++block) y_scale[column][block] = host::e4m3_of(scales, block);
    }
    for (int row = 0; row < 16; ++row) {
      const uint32_t scales = lane[row % 8 * 4 + 2 * A_PAIR + row / 8]->a_scales & 0x7f7f7f7fu;
      float sums[4][8] = {};
      for (int k = 0; k < 64; ++k) {
        for (int column = 0; column < 8; ++column) sums[k / 16][column] += x[row][k] * y[k][column];
      }
      for (int block = 0; block < 4; ++block) {
        const float x_scale = host::e4m3_of(scales, block);
        for (int column = 0; column < 8; ++column) {
          host::result_of(lane, row, column) +=
              sums[block][column] * (x_scale * y_scale[column][block]);
        }
      }
    }
  });
  memcpy(d, mine.c, sizeof d);
}

}  // namespace svdq

#endif  // SVDQ_CUDA_HOST_MMA_H
