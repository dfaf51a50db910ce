// nibbles_s8.h: 4-bit codes times an integer of at most 15, as int8: four at a time.
//
//   NibbleFactor f = nibble_factor(m)   -15 <= m <= 15
//   f.low(word), f.high(word)           byte i is m times the code whose code + 8 is the low (high)
//                                       half of byte i of `word`
//
// m times code + 8, plus 128 - 8 m, is 128 + m code, within 8 .. 248: no byte carries into the
// next, so one 32-bit product and sum make four. Without 128 they are signed.
#ifndef SVDQ_CUDA_NIBBLES_S8_H
#define SVDQ_CUDA_NIBBLES_S8_H

#include "svdq_cuda/base.h"

namespace svdq {

struct NibbleFactor {
  uint32_t factor, offset;

  SVDQ_METHOD uint32_t low(uint32_t word) const { return multiplied(word); }
  SVDQ_METHOD uint32_t high(uint32_t word) const { return multiplied(word >> 4); }

 private:
  SVDQ_METHOD uint32_t multiplied(uint32_t word) const {
    return ((word & 0x0f0f0f0fu) * factor + offset) ^ 0x80808080u;
  }
};

SVDQ_INLINE NibbleFactor nibble_factor(int32_t multiplier) {
  const uint32_t factor = static_cast<uint32_t>(multiplier);
  return {factor, 0x80808080u - 0x08080808u * factor};
}

}  // namespace svdq

#endif  // SVDQ_CUDA_NIBBLES_S8_H
