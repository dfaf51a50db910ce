// quantize_e2m1.h: smooth rows of activations that lie in shared memory, and code them as NVFP4:
// E2M1 numbers, 16 of which share an E4M3 scale.
//
// The meaning is that of svdq_cpu/quantize_formats.h, operation by operation, so scales are the
// same bits, and codes stand for the same numbers (here -0 may stand for 0; there they are
// doubled). A lane takes a group of 16, whose squared misses it adds up in order.
//
//   quantize_e2m1<CHOICES, ROTATE, THREADS>(rows, k, x, ldx, inv_smooth, shift, codes, x_scale,
//                                           whole_k, exponent)
//     x        [rows, k] in shared memory, row stride ldx; becomes x_hat
//     codes    [rows, whole_k / 2, rounded up to 32] bytes, the low nibble first
//     x_scale  [rows, whole_k / 16, rounded up to 16] E4M3, in units of 2^exponent
//   CHOICES: how many of 6, 4, 6.5 a group may send its largest magnitude to: the first that misses
//            least is taken
//
// Row by row, 64 k have 32 bytes of codes and a word of scales: what tensor cores take at once.
// Rows are padded with zeros, so that 16 bytes are 16 bytes of one row. k may be a part of whole_k
// that ends at a multiple of 256, or the last one; k % 16 == 0, with ROTATE k % 64 == 0. x and
// inv_smooth are 16-byte aligned, ldx % 4 == 0.
//
// Every thread of the CTA calls it, with a cta_sync before and after.
#ifndef SVDQ_CUDA_QUANTIZE_E2M1_H
#define SVDQ_CUDA_QUANTIZE_E2M1_H

#include "svdq_cuda/quantize_s4.h"

namespace svdq {

namespace detail {

// Sixteen codes in two words, and the bits of their scale.
struct E2m1Group {
  uint2 codes;
  uint8_t scale;
};

SVDQ_INLINE uint32_t pack_e2m1x8(const float* eight) {
  uint32_t word = 0;
  SVDQ_UNROLL
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(pack_e2m1x2(eight[2 * i], eight[2 * i + 1])) << 8 * i;
  }
  return word;
}

// A group whose largest magnitude is sent to `largest`, and what it misses.
SVDQ_INLINE E2m1Group try_e2m1(const float (&z)[16], float absmax, float largest, int64_t exponent,
                               float& loss) {
  E2m1Group group;
  group.scale = f32_to_e4m3(absmax / largest * power_of_two(-exponent));
  // Of doubled codes, as the reference has them.
  const float scale = e4m3_to_f32(group.scale) * (0.5f * power_of_two(exponent));
  float inverse = 0.5f / scale;
  if (!(abs(inverse) < kInf)) inverse = 0.0f;
  float ratio[16];
  SVDQ_UNROLL
  for (int i = 0; i < 16; ++i) ratio[i] = z[i] * inverse;
  group.codes = make_uint2(pack_e2m1x8(ratio), pack_e2m1x8(ratio + 8));
  loss = 0.0f;
  SVDQ_UNROLL
  for (int i = 0; i < 16; i += 2) {
    const uint32_t word = i < 8 ? group.codes.x : group.codes.y;
    const float2 pair = unpack_e2m1x2(static_cast<uint8_t>(word >> 4 * (i % 8)));
    const float first = z[i] - pair.x * 2.0f * scale, second = z[i + 1] - pair.y * 2.0f * scale;
    loss = loss + first * first;
    loss = loss + second * second;
  }
  return group;
}

template <int CHOICES>
SVDQ_INLINE E2m1Group code_e2m1(const float (&z)[16], int64_t exponent) {
  constexpr float kLargest[3] = {6.0f, 4.0f, 6.5f};
  float absmax = 0.0f, least, loss;
  SVDQ_UNROLL
  for (int i = 0; i < 16; ++i) absmax = abs(z[i]) > absmax ? abs(z[i]) : absmax;
  E2m1Group best = try_e2m1(z, absmax, kLargest[0], exponent, least);
  SVDQ_UNROLL
  for (int choice = 1; choice < CHOICES; ++choice) {
    const E2m1Group group = try_e2m1(z, absmax, kLargest[choice], exponent, loss);
    if (loss < least) {
      best = group;
      least = loss;
    }
  }
  return best;
}

// Smooths a group in place; `z` gets it. A lane begins with chunk `turn` of its four, so that lanes
// side by side meet different banks, and puts them in order afterwards.
SVDQ_INLINE void smooth_group(float* x, const float* inv_smooth, float shift, float (&z)[16]) {
  const uint32_t turn = lane_id() / 2 % 4;
  float4 chunks[4];
  SVDQ_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t at = 4 * (i ^ turn);
    float4 four = *reinterpret_cast<const float4*>(x + at);
    const uint4 smooth = load_16(inv_smooth + at);
    four.x = (four.x + shift) * float_of(smooth.x);
    four.y = (four.y + shift) * float_of(smooth.y);
    four.z = (four.z + shift) * float_of(smooth.z);
    four.w = (four.w + shift) * float_of(smooth.w);
    *reinterpret_cast<float4*>(x + at) = four;
    chunks[i] = four;
  }
  SVDQ_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float4 near = (turn & 1) != 0 ? chunks[i ^ 1] : chunks[i];
    const float4 far = (turn & 1) != 0 ? chunks[i ^ 3] : chunks[i ^ 2];
    const float4 four = (turn & 2) != 0 ? far : near;
    z[4 * i] = four.x;
    z[4 * i + 1] = four.y;
    z[4 * i + 2] = four.z;
    z[4 * i + 3] = four.w;
  }
}

}  // namespace detail

template <int CHOICES, bool ROTATE, int THREADS>
SVDQ_INLINE void quantize_e2m1(int64_t rows, int64_t k, float* x, int64_t ldx,
                               const float* inv_smooth, float shift, uint8_t* codes,
                               uint8_t* x_scale, int64_t whole_k, int64_t exponent) {
  static_assert(CHOICES >= 1 && CHOICES <= 3, "6, 4, 6.5");
  const uint32_t groups = static_cast<uint32_t>(round_up(k, 256) / 16);  // of a row
  const uint32_t coded = static_cast<uint32_t>(round_up(k, 64) / 16);    // of those, with codes
  const int64_t code_bytes = round_up(whole_k, 64) / 2, scale_bytes = round_up(whole_k, 256) / 16;
  const uint32_t all = static_cast<uint32_t>(rows) * groups;
  for (uint32_t first = warp_id() * 32; first < all; first += THREADS) {
    const uint32_t number = first + lane_id();
    const uint32_t row = number / groups, group = number % groups;
    const bool inside = number < all && group * 16 < k;
    float z[16] = {};
    if (inside) detail::smooth_group(x + row * ldx + group * 16, inv_smooth + group * 16, shift, z);
    if constexpr (ROTATE) detail::butterfly64(z);  // groups are a multiple of 4: of one row
    if (number >= all) continue;
    const detail::E2m1Group found = detail::code_e2m1<CHOICES>(z, exponent);
    x_scale[row * scale_bytes + group] = found.scale;  // of zeros, 0
    if (group < coded) store_8(codes + row * code_bytes + group * 8, found.codes);
  }
}

}  // namespace svdq

#endif  // SVDQ_CUDA_QUANTIZE_E2M1_H
