/* What the 4-bit codes of a weight stand for, as the integer kernels of gemm_s4_tile.h read them: a
 * nibble becomes an unsigned byte, the code plus kZero, at most kLargest, and scales become floats;
 * with kMultiplies they are integers, which multiply the sum of a group.
 */
#ifndef SVDQ_CPU_NIBBLES_H
#define SVDQ_CPU_NIBBLES_H

#include "svdq_cpu/number_formats.h"

namespace svdq {

#if SVDQ_ISA_PORTABLE
typedef int16_t i16x8 __attribute__((vector_size(16)));
#endif

/* Integers from -8 to 7, stored as code + 8, under bf16 scales. */
struct S4Weights {
  static constexpr int kZero = 8;
  static constexpr int kLargest = 15;
  static constexpr bool kMultiplies = false;
  typedef uint16_t Scale;
  SVDQ_INLINE f32x16 load_scale(const Scale* p) { return load_bf16(p); }
#if SVDQ_ISA_AVX512
  SVDQ_INLINE __m512i bytes(__m512i nibbles) { return nibbles; }
#elif SVDQ_ISA_AVX2
  SVDQ_INLINE __m256i bytes(__m256i nibbles) { return nibbles; }
#else
  SVDQ_INLINE i16x8 words(i16x8 nibbles) { return nibbles; }
#endif
};

/* The same under integers, -15 to 15: a code times its integer is an int8. */
struct S4Multiplied : S4Weights {
  static constexpr bool kMultiplies = true;
  typedef int8_t Scale;
};

/* E2M1 numbers, whose codes are their values doubled, -12 to 12, under E4M3 scales. */
struct E2m1Weights {
  static constexpr int kZero = 12;
  static constexpr int kLargest = 24;
  static constexpr bool kMultiplies = false;
  typedef uint8_t Scale;
  SVDQ_INLINE f32x16 load_scale(const Scale* p) { return load_e4m3(p); }
#if SVDQ_ISA_AVX512
  SVDQ_INLINE __m512i bytes(__m512i nibbles) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table()), nibbles);
  }
#elif SVDQ_ISA_AVX2
  SVDQ_INLINE __m256i bytes(__m256i nibbles) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table()), nibbles);
  }
#else
  SVDQ_INLINE i16x8 words(i16x8 nibbles) {
    constexpr int16_t kTable[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    i16x8 out = {};
    for (int i = 0; i < 8; ++i) out[i] = kTable[nibbles[i] & 15];
    return out;
  }
#endif
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
 private:
  SVDQ_INLINE __m128i table() {
    return _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  }
#endif
};

}  // namespace svdq

#endif
