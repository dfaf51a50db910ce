// gemm_codes.h: how codes meet in the integer tensor cores, per kind of code and of machine. A kind
// says how many 32-bit words a lane holds of 16 x 64 activation codes (kA, from ldmatrix) and of
// 8 x 64 weight codes (kB), turns them into operands, and multiplies.
//
//   S4<UNSIGNED>        4-bit codes on 4-bit tensor cores: sm_75, 80, 86, 89
//   S4Widened<UNSIGNED> the same codes in the same layouts on 8-bit tensor cores, everywhere: a
//                       nibble becomes the high half of a byte, so sums are 2^8 times too large
//                       (kUnit)
//   S8S4<GROUP>         8-bit activation codes, 4-bit weights times an integer of their group of k,
//                       which is an int8
//   S8                  8-bit codes on both sides
//   E4m3                E4M3 on both sides, on the tensor cores of sm_89 and sm_120a
//   E4m3Halves          the same in the same layouts on 16-bit tensor cores, everywhere: an f16
//                       holds every E4M3
//
// Sums of E4M3 are floats, and kPromotes: tensor cores add them with some 14 bits, so every 128 k
// they go to sums in f32.
//
// Weight layouts (targets/cuda_layouts.py), blocks of 32 columns by 64 k:
//   S4, S4Widened  "s4_mma":   [N/32, K/64, 2, 32 lanes, 16 bytes], bytes: b[0], b[1] of mma_s4_k64
//                              for 8 columns, then for the next 8
//   S8S4           "u4s8_mma": alike, codes + 8; word h of a column holds k 4 t + (0..3) of 32 k's
//                              in its low nibbles and 16 + 4 t + (0..3) in the high ones
//                  "multiplier_mma": [N/32, groups, 8, 4] int8, of column 8 j + g at [.., g, j]
//   S8, E4m3,      "s8_mma", "e4m3_mma": [N/32, K/64, 4, 32 lanes, 16 bytes]: b[0], b[1] of two
//   E4m3Halves     mma_s8
#ifndef SVDQ_CUDA_GEMM_CODES_H
#define SVDQ_CUDA_GEMM_CODES_H

#include "svdq_cuda/mma.h"
#include "svdq_cuda/nibbles_s8.h"

namespace svdq {

constexpr uint32_t kHighNibbles = 0xf0f0f0f0u;

struct IntegerSums {
  using Sum = int32_t;
  static constexpr bool kPromotes = false;
  static constexpr int kMultipliers = 0;  // words of a lane for 32 columns by 64 k
};

template <bool UNSIGNED>
struct S4 : IntegerSums {
  static constexpr int kA = 4, kB = 2;                        // words as loaded
  static constexpr int kAOps = 4, kBOps = 2;                  // words as multiplied
  static constexpr int kLargest = UNSIGNED ? 15 * 8 : 8 * 8;  // product, times 1 / kUnit
  static constexpr float kUnit = 1.0f;

  SVDQ_INLINE void widen_a(const uint32_t (&raw)[kA], uint32_t (&a)[kAOps]) {
    SVDQ_UNROLL
    for (int i = 0; i < kA; ++i) a[i] = raw[i];
  }
  SVDQ_INLINE void widen_b(const uint32_t (&raw)[kB], uint32_t (&b)[kBOps]) {
    b[0] = raw[0];
    b[1] = raw[1];
  }
  // All 64 k, or half of them.
  SVDQ_INLINE void mma_64(int32_t (&d)[4], const uint32_t (&a)[kAOps], const uint32_t (&b)[kBOps],
                          const int32_t (&c)[4]) {
    mma_s4_k64<UNSIGNED>(d, a, b, c);
  }
  SVDQ_INLINE void mma_32(int half, int32_t (&d)[4], const uint32_t (&a)[kAOps],
                          const uint32_t (&b)[kBOps], const int32_t (&c)[4]) {
    mma_s4_k32<UNSIGNED>(d, a[2 * half], a[2 * half + 1], b[half], c);
  }
};

// Kinds whose operands are bytes: two mma_s8 for 64 k.
template <bool UNSIGNED>
struct Bytes : IntegerSums {
  static constexpr int kAOps = 8, kBOps = 4;

  SVDQ_INLINE void mma_32(int half, int32_t (&d)[4], const uint32_t (&a)[kAOps],
                          const uint32_t (&b)[kBOps], const int32_t (&c)[4]) {
    const uint32_t a_half[4] = {a[4 * half], a[4 * half + 1], a[4 * half + 2], a[4 * half + 3]};
    const uint32_t b_half[2] = {b[2 * half], b[2 * half + 1]};
    mma_s8<UNSIGNED>(d, a_half, b_half, c);
  }
  SVDQ_INLINE void mma_64(int32_t (&d)[4], const uint32_t (&a)[kAOps], const uint32_t (&b)[kBOps],
                          const int32_t (&c)[4]) {
    mma_32(0, d, a, b, c);
    mma_32(1, d, a, b, d);
  }
};

template <bool UNSIGNED>
struct S4Widened : Bytes<UNSIGNED> {
  static constexpr int kA = 4, kB = 2;
  static constexpr int kLargest = (UNSIGNED ? 15 * 8 : 8 * 8) << 8;
  static constexpr float kUnit = 0x1p-8f;

  // Even k in the low nibbles of a word become one operand and odd k the other, on both sides:
  // a sum does not ask in which order its terms stand.
  SVDQ_INLINE void widen_a(const uint32_t (&raw)[4], uint32_t (&a)[8]) {
    SVDQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      SVDQ_UNROLL
      for (int row = 0; row < 2; ++row) {
        a[4 * half + row] = raw[2 * half + row] << 4 & kHighNibbles;
        a[4 * half + 2 + row] = raw[2 * half + row] & kHighNibbles;
      }
    }
  }
  SVDQ_INLINE void widen_b(const uint32_t (&raw)[2], uint32_t (&b)[4]) {
    SVDQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      b[2 * half] = raw[half] << 4 & kHighNibbles;
      b[2 * half + 1] = raw[half] & kHighNibbles;
    }
  }
};

struct S8 : Bytes<false> {
  static constexpr int kA = 8, kB = 4;
  static constexpr int kLargest = 127 * 127;
  static constexpr float kUnit = 1.0f;

  SVDQ_INLINE void widen_a(const uint32_t (&raw)[8], uint32_t (&a)[8]) {
    SVDQ_UNROLL
    for (int i = 0; i < 8; ++i) a[i] = raw[i];
  }
  SVDQ_INLINE void widen_b(const uint32_t (&raw)[4], uint32_t (&b)[4]) {
    SVDQ_UNROLL
    for (int i = 0; i < 4; ++i) b[i] = raw[i];
  }
};

template <int GROUP>
struct S8S4 : Bytes<false> {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "group");
  static constexpr int kA = 8, kB = 2;
  static constexpr int kLargest = 127 * 120;
  static constexpr float kUnit = 1.0f;
  static constexpr int kGroup = GROUP, kMultipliers = GROUP == 32 ? 2 : 1;

  SVDQ_INLINE void widen_a(const uint32_t (&raw)[8], uint32_t (&a)[8]) { S8::widen_a(raw, a); }
  // Of a lane's columns and a block of 64 k, `of_lane` being the first group's. Past the end of k
  // the last group's: codes and activations are zero there.
  SVDQ_INLINE void load_multipliers(const int8_t* of_lane, int k, int block,
                                    uint32_t (&words)[kMultipliers]) {
    SVDQ_UNROLL
    for (int i = 0; i < kMultipliers; ++i) {
      const int group = (block * 64 + 32 * i) / GROUP, last = k / GROUP - 1;
      words[i] = load_4(of_lane + (group < last ? group : last) * 32);
    }
  }
  // Byte j of multipliers is of these columns.
  SVDQ_INLINE void widen_b(const uint32_t (&raw)[2], const uint32_t (&multipliers)[kMultipliers],
                           int j, uint32_t (&b)[4]) {
    SVDQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t four = multipliers[half % kMultipliers];
      const NibbleFactor factor = nibble_factor(static_cast<int8_t>(four >> (8 * j)));
      b[2 * half] = factor.low(raw[half]);
      b[2 * half + 1] = factor.high(raw[half]);
    }
  }
};

struct FloatSums {
  using Sum = float;
  static constexpr bool kPromotes = true;
  static constexpr int kMultipliers = 0;
  static constexpr int kA = 8, kB = 4, kLargest = 0;
};

struct E4m3 : FloatSums {
  static constexpr int kAOps = 8, kBOps = 4;
  static constexpr float kUnit = 1.0f;

  SVDQ_INLINE void widen_a(const uint32_t (&raw)[8], uint32_t (&a)[8]) { S8::widen_a(raw, a); }
  SVDQ_INLINE void widen_b(const uint32_t (&raw)[4], uint32_t (&b)[4]) { S8::widen_b(raw, b); }
  // A template, as most architectures have no mma_e4m3.
  template <typename F>
  SVDQ_INLINE void mma_64(F (&d)[4], const uint32_t (&a)[8], const uint32_t (&b)[4],
                          const F (&)[4]) {
    SVDQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t a_half[4] = {a[4 * half], a[4 * half + 1], a[4 * half + 2], a[4 * half + 3]};
      const uint32_t b_half[2] = {b[2 * half], b[2 * half + 1]};
      mma_e4m3(d, a_half, b_half);
    }
  }
};

struct E4m3Halves : FloatSums {
  static constexpr int kAOps = 16, kBOps = 8;
  static constexpr float kUnit = kE4m3HalfUnit * kE4m3HalfUnit;

  // A word's two pairs are the two of a row in one operation of 16 k, on both sides: a sum does not
  // ask in which order its terms stand.
  SVDQ_INLINE void widen_a(const uint32_t (&raw)[8], uint32_t (&a)[16]) {
    SVDQ_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint2 pairs = e4m3x4_to_f16x4(raw[i]);
      a[i / 2 * 4 + i % 2] = pairs.x;
      a[i / 2 * 4 + i % 2 + 2] = pairs.y;
    }
  }
  SVDQ_INLINE void widen_b(const uint32_t (&raw)[4], uint32_t (&b)[8]) {
    SVDQ_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint2 pairs = e4m3x4_to_f16x4(raw[i]);
      b[2 * i] = pairs.x;
      b[2 * i + 1] = pairs.y;
    }
  }
  SVDQ_INLINE void mma_64(float (&d)[4], const uint32_t (&a)[16], const uint32_t (&b)[8],
                          const float (&)[4]) {
    SVDQ_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t a_part[4] = {a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]};
      const uint32_t b_part[2] = {b[2 * i], b[2 * i + 1]};
      mma_f16(d, a_part, b_part);
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_CODES_H
