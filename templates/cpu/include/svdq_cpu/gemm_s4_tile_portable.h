/* The register tile of gemm_s4_tile.h for any processor. Included there. */
#ifndef SVDQ_CPU_GEMM_S4_TILE_PORTABLE_H
#define SVDQ_CPU_GEMM_S4_TILE_PORTABLE_H

namespace svdq {
namespace detail {

typedef uint32_t u32x4 __attribute__((vector_size(16)));

/* Bytes 0 and 2, or 1 and 3, of each quad of codes, sign-extended to int16. */
SVDQ_INLINE i16x8 even_codes(i16x8 quads) { return (quads << 8) >> 8; }
SVDQ_INLINE i16x8 odd_codes(i16x8 quads) { return quads >> 8; }

/* Half a panel, 8 columns, at a time. A quad of weights is one 32-bit lane, whose nibbles mask out
 * to pairs of int16 at k = (0, 2), (1, 3), (4, 6) and (5, 7), which is how codes unpack too; the
 * two sums of a column are added when they are widened. */
template <int GROUP, int LARGEST, class W, int MR, int NR>
SVDQ_NOINLINE void multiply_tile(const TileArgs& args) {
  static_assert(NR == 1, "one panel at a time");
  // A product is at most 15 * LARGEST for S4Weights, and every 8 k add 4 of them to an int16 lane:
  // 64 * 15 * 15 = 14400 in a group of 128, 16 * 15 * 127 = 30480 in 32.
  constexpr int kChunk = LARGEST <= 15 ? GROUP : 32;
  static_assert(kChunk / 2 * W::kLargest * LARGEST <= 32767 && GROUP % kChunk == 0,
                "int16 must not overflow");
  for (int column = 0; column < 16; column += 8) {
    const int8_t* x = args.packed;
    const uint8_t* w = args.w + column * 4;
    const auto* w_scale = static_cast<const typename W::Scale*>(args.w_scale);
    int32_t of_all_k[MR][8] = {};
    const auto put = [&](int i, int n, int32_t sum, float w, float x_scale, bool onto) {
      float& to = args.out[i * args.ldo + column + n];
      to = (onto ? to : 0.0f) + static_cast<float>(sum) * w * x_scale;
    };
    for (int64_t g = 0; g < args.groups; ++g) {
      const int8_t* minus_sums = x + GROUP * MR;
      const int8_t* x_scales = minus_sums + 4 * MR;
      int32_t totals[MR][8];
      for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < 8; ++n) totals[i][n] = load_i32(minus_sums + 4 * i);
      }
      for (int chunk = 0; chunk < GROUP; chunk += kChunk) {
        i16x8 acc[MR][2] = {};
        for (int block = 0; block < kChunk / 8; ++block) {
          u32x4 quads[2];
          memcpy(quads, w, sizeof quads);
          unroll<2>([&](auto half) SVDQ_LAMBDA {
            i16x8 even[2], odd[2];
            unroll<2>([&](auto j) SVDQ_LAMBDA {
              even[j] = W::words(reinterpret_cast<i16x8>((quads[j] >> (4 * half)) & 0x000f000fu));
              odd[j] =
                  W::words(reinterpret_cast<i16x8>((quads[j] >> (4 * half + 8)) & 0x000f000fu));
            });
            unroll<MR>([&](auto i) SVDQ_LAMBDA {
              const uint32_t quad = static_cast<uint32_t>(load_i32(x + 4 * (half * MR + i)));
              const i16x8 codes = reinterpret_cast<i16x8>(u32x4{quad, quad, quad, quad});
              unroll<2>([&](auto j) SVDQ_LAMBDA {
                acc[i][j] += even[j] * even_codes(codes);
                acc[i][j] += odd[j] * odd_codes(codes);
              });
            });
          });
          x += 8 * MR;
          w += 64;
        }
        unroll<MR>([&](auto i) SVDQ_LAMBDA {
          for (int n = 0; n < 8; ++n) {
            totals[i][n] += acc[i][n / 4][2 * (n % 4)] + acc[i][n / 4][2 * (n % 4) + 1];
          }
        });
      }
      if constexpr (W::kMultiplies) {
        for (int i = 0; i < MR; ++i) {
          for (int n = 0; n < 8; ++n) of_all_k[i][n] += totals[i][n] * w_scale[column + n];
        }
      } else {
        float w_scales[16];
        store(w_scales, W::load_scale(w_scale));
        for (int i = 0; i < MR; ++i) {
          const float x_scale = load_f32(x_scales + 4 * i);
          for (int n = 0; n < 8; ++n) {
            put(i, n, totals[i][n], w_scales[column + n], x_scale, args.accumulate || g > 0);
          }
        }
      }
      x += 8 * MR;
      w_scale += 16;
    }
    if constexpr (W::kMultiplies) {
      for (int i = 0; i < MR; ++i) {
        const float x_scale = load_f32(x - 4 * (MR - i));
        for (int n = 0; n < 8; ++n) {
          const float w = bf16_to_f32(args.channel_scale[column + n]);
          put(i, n, of_all_k[i][n], w, x_scale, args.accumulate);
        }
      }
    }
  }
}

}  // namespace detail
}  // namespace svdq

#endif
