// gemm_wgmma_codes.h: the kinds of codes that gemm_wgmma.h multiplies.
//
//   WgmmaS8            int8 by int8: the sums of all of K are integers to the end
//   WgmmaE4m3          E4M3 by E4M3. Hopper keeps some 14 bits of a sum of E4M3 products, so every
//                      128 k the sums are added to f32 ones
//   WgmmaS8S4<GROUP>   int8 by 4-bit codes with a scale per group of k: the integer sum of a group,
//                      exact, is scaled and added to f32 sums
//
//   Sum        the type of wgmma's sums
//   kPart      k after which they are added to the f32 sums; 0: never
//   kGroup     k that share a weight scale, which is then part of what is added; 0: all
//   kFeeders   registers of a thread that copies or widens; what they leave is the others'
//   kUnit      what the final sums are multiplied with: 4-bit codes are the high halves of bytes
//
// Weights lie in memory stage by stage, 128 columns by 128 k (targets/cuda_layouts_wgmma.py), and
// come 64 columns a bulk copy; N and K are padded to 128 with zeros:
//   "s8_wgmma", "e4m3_wgmma"  [N/128, K/128, 16, 8, 8, 16]: core matrices as wgmma.h reads them
//   "s4_wgmma"                [N/128, K/128, 16, 4, 8, 16]: byte i of a row's piece of 32 k has k =
//   i
//                             in its low half and 16 + i in the high one
//   "scale_wgmma"             [N/128, groups, 8, 4, 4] bf16 of columns 16 p + 8 (i / 2) + 2 t + i %
//   2
//                             at [.., p, t, i]: four that one thread needs; groups padded to 4
#ifndef SVDQ_CUDA_GEMM_WGMMA_CODES_H
#define SVDQ_CUDA_GEMM_WGMMA_CODES_H

#include "svdq_cuda/wgmma.h"

namespace svdq {

struct WgmmaS8 {
  using Sum = int32_t;
  static constexpr int kPart = 0, kGroup = 0, kFeeders = 40;
  static constexpr float kUnit = 1.0f;

  template <int N>
  SVDQ_INLINE void multiply(Sum (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    wgmma_s8<N>(d, a, b, accumulate);
  }
};

struct WgmmaE4m3 {
  using Sum = float;
  static constexpr int kPart = 128, kGroup = 0, kFeeders = 56;
  static constexpr float kUnit = 1.0f;

  template <int N>
  SVDQ_INLINE void multiply(Sum (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    wgmma_e4m3<N>(d, a, b, accumulate);
  }
};

template <int GROUP>
struct WgmmaS8S4 : WgmmaS8 {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "group");
  static constexpr int kPart = GROUP, kGroup = GROUP, kFeeders = 72;
  static constexpr float kUnit = 0x1p-4f;  // |sum| <= 128 * 128 * 127 << 24: exact as f32
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_WGMMA_CODES_H
