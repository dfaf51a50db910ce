// gemm_wgmma_codes.h: the kinds of codes that gemm_wgmma.h and gemm_wgmma_s4.h multiply, and how
// weights come to shared memory.
//
//   WgmmaS8            int8 by int8: the sums of all of K are integers to the end
//   WgmmaE4m3          E4M3 by E4M3. Hopper keeps some 14 bits of a sum of E4M3 products, so every
//                      128 k the sums are added to f32 ones
//   WgmmaS8S4<GROUP>   int8 by 4-bit codes times an integer of their group of k, which is an int8
//
//   Sum            the type of wgmma's sums
//   kPromotes      whether they are added to f32 sums every stage
//   kFeeders       registers of a thread that copies; what they leave is the others'
//   kPiece         columns that a lane copies of a stage, 128 k; kPieceBytes: what that takes
//   Piece(w, column, k)       such columns of a weight [.., k]
//   piece.num_bytes(step)     what comes of stage `step`, at most kPieceBytes
//   piece.copy(step, stage, i, pieces, barrier)   begins to copy it as number i of so many pieces
//
// Weights in memory (targets/cuda_layouts_wgmma.py, cuda_layouts.py); N and K are padded with
// zeros:
//   "s8_wgmma", "e4m3_wgmma"   [N/128, K/128, 16, 8, 8, 16]: core matrices as wgmma.h reads them
//   "u4s8_mma"                 [N/32, K/64, 2, 32 lanes, 16 bytes], as in gemm_codes.h: what a lane
//                              multiplies of 16 columns by 64 k
//   "multiplier_mma"           [N/32, groups, 8, 4] int8: of column 8 j + g at [.., g, j]
#ifndef SVDQ_CUDA_GEMM_WGMMA_CODES_H
#define SVDQ_CUDA_GEMM_WGMMA_CODES_H

#include "svdq_cuda/barrier.h"
#include "svdq_cuda/wgmma.h"

namespace svdq {

struct WgmmaW {
  const void* codes;      // in Codes' layout
  const uint16_t* scale;  // bf16 [columns]
  int64_t columns;
  const int8_t* multipliers;  // of WgmmaS8S4
};

struct WgmmaBytes {
  static constexpr int kPiece = 64, kPieceBytes = kPiece * 128;

  // Columns lie 128 together.
  struct Piece {
    const char* codes;

    SVDQ_METHOD Piece(const WgmmaW& w, int64_t column, int64_t k) {
      const int64_t half = min_i64(column / 64, ceil_div(w.columns, 128) * 2 - 1);
      codes = static_cast<const char*>(w.codes) +
              (half / 2 * ceil_div(k, 128) * 2 + half % 2) * kPieceBytes;
    }
    SVDQ_METHOD uint32_t num_bytes(int) const { return kPieceBytes; }
    SVDQ_METHOD void copy(int step, char* stage, int i, int, uint64_t* barrier) const {
      bulk_copy(stage + i * kPieceBytes, codes + int64_t{step} * 2 * kPieceBytes, kPieceBytes,
                barrier);
    }
  };
};

struct WgmmaS8 : WgmmaBytes {
  using Sum = int32_t;
  static constexpr bool kPromotes = false;
  static constexpr int kFeeders = 40;

  template <int N>
  SVDQ_INLINE void multiply(Sum (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    wgmma_s8<N>(d, a, b, accumulate);
  }
};

struct WgmmaE4m3 : WgmmaBytes {
  using Sum = float;
  static constexpr bool kPromotes = true;
  static constexpr int kFeeders = 56;

  template <int N>
  SVDQ_INLINE void multiply(Sum (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    wgmma_e4m3<N>(d, a, b, accumulate);
  }
};

template <int GROUP>
struct WgmmaS8S4 {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "group");
  using Sum = int32_t;
  static constexpr bool kPromotes = false;
  static constexpr int kFeeders = 40;
  static constexpr int kPiece = 32, kGroup = GROUP, kGroups = 128 / GROUP;
  static constexpr int kBlockBytes = 32 * 64 / 2;  // of 64 k
  static constexpr int kCodeBytes = 2 * kBlockBytes, kMultiplierBytes = kGroups * 32;
  static constexpr int kPieceBytes = kCodeBytes + kMultiplierBytes;

  // In a stage the codes of all pieces lie before the multipliers of all. Of the last stage what
  // there is: what lies beyond k meets activations of zero.
  struct Piece {
    const char *codes, *multipliers;
    int blocks, groups;

    SVDQ_METHOD Piece(const WgmmaW& w, int64_t column, int64_t k)
        : blocks(static_cast<int>(ceil_div(k, 64))), groups(static_cast<int>(k / GROUP)) {
      const int64_t panel = min_i64(column / 32, ceil_div(w.columns, 32) - 1);
      codes = static_cast<const char*>(w.codes) + panel * blocks * kBlockBytes;
      multipliers = reinterpret_cast<const char*>(w.multipliers) + panel * groups * 32;
    }
    SVDQ_METHOD uint32_t code_bytes(int step) const {
      return blocks - 2 * step < 2 ? kBlockBytes : kCodeBytes;
    }
    SVDQ_METHOD uint32_t multiplier_bytes(int step) const {
      const int left = groups - kGroups * step;
      return static_cast<uint32_t>(left < kGroups ? left : kGroups) * 32;
    }
    SVDQ_METHOD uint32_t num_bytes(int step) const {
      return code_bytes(step) + multiplier_bytes(step);
    }
    SVDQ_METHOD void copy(int step, char* stage, int i, int pieces, uint64_t* barrier) const {
      bulk_copy(stage + i * kCodeBytes, codes + int64_t{step} * kCodeBytes, code_bytes(step),
                barrier);
      bulk_copy(stage + pieces * kCodeBytes + i * kMultiplierBytes,
                multipliers + int64_t{step} * kMultiplierBytes, multiplier_bytes(step), barrier);
    }
  };
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_WGMMA_CODES_H
