// gemm_w4.h: few rows of f32 times a weight whose codes have 4 bits, bound by reading the weight.
//
//   y[m, n] = sum_k x[m, k] * value(w[n, k]) * w_scale[n, k / GROUP]
//
// The weight is the left operand of the tensor cores, decoded in registers, and x the right one. A
// CTA has 32 columns and 8 * ROW_TILES rows; its warps take blocks of 64 k in turn, and their sums
// are added in the order of the warps: results do not depend on the machine or the run.
//
//   W4Gemm<Math, W, GROUP, ROW_TILES> gemm(shared)    kThreads threads, kSharedBytes
//   gemm.multiply(operands, x, bias)   x(r, k, four): x[r, k ... k + 3] for r < rows, k % 4 == 0
//   then gemm.tile() is f32 [kRows, kLd], all threads may read it: + bias(c) for columns c
//
//   codes    "s4_rows" or "nf4_rows" [columns, k];  w_scale  "scale_rows" [columns, k / GROUP] bf16
//   Math     gemm_float_math.h: how x is split in 16-bit floats. Products of a code and x are those
//            of Bf16Math<BF16> or F16Math<F16>, whose bounds hold; NF4's quantiles are split as
//            well. Scales multiply the f32 sum of a block.
#ifndef SVDQ_CUDA_GEMM_W4_H
#define SVDQ_CUDA_GEMM_W4_H

#include "svdq_cuda/gemm_float_math.h"

namespace svdq {

enum class Codes4 { S4, NF4 };

struct W4Operands {
  const void* codes;
  const void* w_scale;
  int64_t column;   // the CTA's first, a multiple of 32
  int64_t columns;  // of the whole weight
  int64_t rows;     // of the CTA that exist
  int64_t k;        // a multiple of GROUP
};

// 16-bit floats of Math. signed_pair: what nibbles in bits 0-3 and 16-19 stand for, both; kScaled:
// sums carry a unit of each row of x.
template <template <Stored> class Math_>
struct NibbleFloats;
template <>
struct NibbleFloats<Bf16Math> {
  static constexpr bool kScaled = false;
  template <class D>
  SVDQ_INLINE void mma(D& d, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
  // 128 + u has u in its last places.
  SVDQ_INLINE uint32_t signed_pair(uint32_t pair) {
    const float2 two = unpack_bf16x2((pair & 0x000f000fu) | 0x43004300u);
    return pack_bf16x2(two.x - 136.0f, two.y - 136.0f);
  }
};
template <>
struct NibbleFloats<F16Math> {
  static constexpr bool kScaled = true;
  template <class D>
  SVDQ_INLINE void mma(D& d, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
  // 1024 + u has u in its last places.
  SVDQ_INLINE uint32_t signed_pair(uint32_t pair) {
    const float2 two = unpack_f16x2((pair & 0x000f000fu) | 0x64006400u);
    return pack_f16x2(two.x - 1032.0f, two.y - 1032.0f);
  }
};

template <template <Stored> class Math_, Codes4 W, int GROUP, int ROW_TILES>
struct W4Gemm {
  using Math = Math_<Stored::F32>;  // of x
  using B = typename Math::B;
  using Floats = NibbleFloats<Math_>;
  static constexpr bool kScaled = Floats::kScaled;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kPanels = 2, kAhead = 4;
  static constexpr int kRows = 8 * ROW_TILES, kColumns = 16 * kPanels, kLd = kColumns + 4;
  static constexpr int kTable = kWarps * kRows * kLd * 4;  // of quantiles, behind the sums
  static constexpr int kSharedBytes = kTable + (W == Codes4::NF4 ? 64 : 0);
  static constexpr int kGroups = GROUP == 32 ? 2 : 1;  // in a block of 64 k
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "group");

  // A panel's share of one block of k.
  struct Block {
    uint4 codes;
    uint32_t scales[kGroups];  // of columns g and g + 8
  };

  char* const shared;
  float acc[kPanels][ROW_TILES][4];  // columns g (two), g + 8; rows 2 t, 2 t + 1

  SVDQ_METHOD explicit W4Gemm(char* memory) : shared(memory) {}
  SVDQ_METHOD float* tile() const { return reinterpret_cast<float*>(shared); }

  template <class X, class Bias>
  SVDQ_METHOD void multiply(const W4Operands& from, const X& x, const Bias& bias) {
    if constexpr (W == Codes4::NF4) make_table();
    clear();
    const int blocks = static_cast<int>(ceil_div(from.k, 64));
    const int groups = static_cast<int>(from.k / GROUP);
    const char* codes[kPanels];
    const char* scales[kPanels];
    SVDQ_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      const int64_t panel = min_i64(from.column / 16 + p, ceil_div(from.columns, 16) - 1);
      codes[p] = static_cast<const char*>(from.codes) + panel * blocks * 512 + lane_id() * 16;
      scales[p] = static_cast<const char*>(from.w_scale) + panel * groups * 32 + lane_id() / 4 * 4;
    }
    SVDQ_NO_UNROLL
    for (int first = static_cast<int>(warp_id()); first < blocks; first += kWarps * kAhead) {
      Block ahead[kAhead][kPanels];  // as many loads under way at a time
      SVDQ_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int wanted = first + i * kWarps, block = wanted < blocks ? wanted : blocks - 1;
        SVDQ_UNROLL
        for (int p = 0; p < kPanels; ++p) {
          ahead[i][p].codes = load_16_streaming(codes[p] + static_cast<int64_t>(block) * 512);
          SVDQ_UNROLL
          for (int g = 0; g < kGroups; ++g) {
            const int group = GROUP == 128 ? block / 2 : block * kGroups + g;
            ahead[i][p].scales[g] = load_4(scales[p] + (group < groups ? group : groups - 1) * 32);
          }
        }
      }
      SVDQ_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (first + i * kWarps < blocks) add_block(ahead[i], first + i * kWarps, from, x);
      }
    }
    add_warps(from.columns - from.column, bias);
  }

 private:
  SVDQ_METHOD void clear() {
    SVDQ_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      SVDQ_UNROLL
      for (int r = 0; r < ROW_TILES; ++r) {
        SVDQ_UNROLL
        for (int c = 0; c < 4; ++c) acc[p][r][c] = 0.0f;
      }
    }
  }

  // Quantile i as hi and lo, in the halves of word i.
  SVDQ_METHOD void make_table() {
    constexpr float kQuantiles[16] = {-1.0f,        -0.6961928f,  -0.52507305f,  -0.39491749f,
                                      -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
                                      0.0795803f,   0.1609302f,   0.2461123f,    0.33791524f,
                                      0.44070983f,  0.562617f,    0.72295684f,   1.0f};
    uint32_t* const table = reinterpret_cast<uint32_t*>(shared + kTable);
    const uint32_t i = thread_id();
    if (i < 16) {
      uint32_t hi, lo;
      Math::split(kQuantiles[i], 0.0f, hi, lo);
      table[i] = (hi & 0xffffu) | lo << 16;
    }
    cta_sync();
  }

  SVDQ_METHOD uint32_t quantile(uint32_t nibble) const {
    return reinterpret_cast<const uint32_t*>(shared + kTable)[nibble & 15];
  }

  // Step s of a block: k = 32 (s / 2) + 8 t + 4 (s % 2) + (0 .. 3) for 16 columns.
  SVDQ_METHOD void decode(uint32_t word, uint32_t (&hi)[4], uint32_t (&lo)[4]) const {
    SVDQ_UNROLL
    for (int p = 0; p < 4; ++p) {
      if constexpr (W == Codes4::S4) {
        hi[p] = Floats::signed_pair(word >> 4 * p);
      } else {
        const uint32_t even = quantile(word >> 4 * p), odd = quantile(word >> (16 + 4 * p));
        hi[p] = (even & 0xffffu) | odd << 16;
        lo[p] = even >> 16 | (odd & 0xffff0000u);
      }
    }
  }

  template <class X>
  SVDQ_METHOD void add_block(const Block (&block)[kPanels], int number, const W4Operands& from,
                             const X& x) {
    const int row = static_cast<int>(lane_id() / 4), t = static_cast<int>(lane_id() % 4);
    float sums[kPanels][ROW_TILES][4] = {};
    SVDQ_UNROLL
    for (int step = 0; step < 4; ++step) {
      const int64_t k = static_cast<int64_t>(number) * 64 + step / 2 * 32 + 8 * t + step % 2 * 4;
      B b[ROW_TILES];
      SVDQ_UNROLL
      for (int r = 0; r < ROW_TILES; ++r) {
        float four[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (row + 8 * r < from.rows && k < from.k) x(row + 8 * r, k, four);
        Math::split_b(four, b[r]);
      }
      SVDQ_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        const uint4& words = block[p].codes;
        uint32_t hi[4], lo[4];
        decode(step == 0 ? words.x : step == 1 ? words.y : step == 2 ? words.z : words.w, hi, lo);
        SVDQ_UNROLL
        for (int r = 0; r < ROW_TILES; ++r) {
          float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          float (&to)[4] = kScaled ? part : sums[p][r];
          Floats::mma(to, hi, b[r].lo);
          if constexpr (W == Codes4::NF4) Floats::mma(to, lo, b[r].hi);
          Floats::mma(to, hi, b[r].hi);
          if constexpr (kScaled) {
            SVDQ_UNROLL
            for (int c = 0; c < 4; ++c) {
              sums[p][r][c] = mad(part[c], b[r].unit[c % 2], sums[p][r][c]);
            }
          }
        }
        if (step % 2 == 1 && (kGroups == 2 || step == 3)) {
          const float2 scale = unpack_bf16x2(block[p].scales[kGroups == 2 ? step / 2 : 0]);
          SVDQ_UNROLL
          for (int r = 0; r < ROW_TILES; ++r) {
            SVDQ_UNROLL
            for (int c = 0; c < 4; ++c) {
              acc[p][r][c] = mad(sums[p][r][c], c < 2 ? scale.x : scale.y, acc[p][r][c]);
              sums[p][r][c] = 0.0f;
            }
          }
        }
      }
    }
  }

  // The warps' sums, first to last, and the bias.
  template <class Bias>
  SVDQ_METHOD void add_warps(int64_t columns, const Bias& bias) {
    const int column = static_cast<int>(lane_id() / 4), row = static_cast<int>(lane_id() % 4) * 2;
    float* const own = tile() + static_cast<int>(warp_id()) * kRows * kLd;
    SVDQ_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      SVDQ_UNROLL
      for (int r = 0; r < ROW_TILES; ++r) {
        SVDQ_UNROLL
        for (int c = 0; c < 4; ++c) {
          own[(8 * r + row + c % 2) * kLd + 16 * p + column + c / 2 * 8] = acc[p][r][c];
        }
      }
    }
    cta_sync();
    for (int e = static_cast<int>(thread_id()); e < kRows * kColumns; e += kThreads) {
      float* const at = tile() + e / kColumns * kLd + e % kColumns;
      float sum = e % kColumns < columns ? bias(e % kColumns) : 0.0f;
      SVDQ_UNROLL
      for (int warp = 0; warp < kWarps; ++warp) sum += at[warp * kRows * kLd];
      *at = sum;
    }
    cta_sync();
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_W4_H
