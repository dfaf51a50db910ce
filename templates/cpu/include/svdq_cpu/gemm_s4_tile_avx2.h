/* The register tile of gemm_s4_tile.h for AVX2. Included there. */
#ifndef SVDQ_CPU_GEMM_S4_TILE_AVX2_H
#define SVDQ_CPU_GEMM_S4_TILE_AVX2_H

namespace svdq {
namespace detail {

/* acc += two products of unsigned bytes with signed ones, in int16. In assembly, for then the
 * compiler keeps order and registers: it would otherwise reassociate, and spill. */
SVDQ_INLINE void dot_u8_s8(__m256i& acc, __m256i u8, __m256i s8) {
  __m256i products;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
          : "+x"(acc), "=&x"(products)
          : "x"(u8), "x"(s8));
}

template <int GROUP, int LARGEST, class W, int MR, int NR>
SVDQ_NOINLINE void multiply_tile(const TileArgs& args) {
  static_assert(NR == 1, "one panel fills the registers");
  // A pair of products is at most 2 * 15 * LARGEST for S4Weights, so an int16 lane holds kSafe of
  // them: 136 at codes of 8, 72 at 15, 8 at 127. A group has GROUP / 4 <= 32 to add per lane.
  constexpr int kSafe = 32767 / (2 * W::kLargest * LARGEST);
  constexpr int kQuads = GROUP / 4 <= kSafe ? GROUP / 4 : 8;
  static_assert(kQuads <= kSafe && (GROUP / 4) % kQuads == 0, "int16 sums must not overflow");
  const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
  const __m256i ones = _mm256_set1_epi16(1);
  const int8_t* x = args.packed;
  const uint8_t* w = args.w;
  const auto* w_scale = static_cast<const typename W::Scale*>(args.w_scale);
  alignas(32) int32_t totals[MR][16];  // of a group, or of all of k
  int32_t* total = totals[0];
  if constexpr (W::kMultiplies) memset(totals, 0, sizeof totals);
  const auto total_of = [&](int64_t i) SVDQ_LAMBDA {
    const __m256i* slots = reinterpret_cast<const __m256i*>(total + i * 16);
    return f32x16{_mm256_cvtepi32_ps(slots[0]), _mm256_cvtepi32_ps(slots[1])};
  };
  for (int64_t g = 0; g < args.groups; ++g) {
    const int8_t* minus_sums = x + GROUP * MR;
    const int8_t* x_scales = minus_sums + 4 * MR;
    // What pairs of products are multiplied with as they are added to int32.
    __m256i multiplier[2], pair[2] = {ones, ones};
    if constexpr (W::kMultiplies) {
      unroll<2>([&](auto j) SVDQ_LAMBDA {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w_scale + 8 * j));
        multiplier[j] = _mm256_cvtepi8_epi32(bytes);
        const __m256i low = _mm256_and_si256(multiplier[j], _mm256_set1_epi32(0xffff));
        pair[j] = _mm256_or_si256(low, _mm256_slli_epi32(multiplier[j], 16));
      });
    }
    if (args.prefetch != nullptr) {
      for (int64_t i = 0; i < GROUP * 8; i += 64) {
        __builtin_prefetch(args.prefetch + g * GROUP * 8 + i, 0, 2);
      }
    }
#pragma GCC unroll 1
    for (int chunk = 0; chunk < GROUP / 4; chunk += kQuads) {
      __m256i acc[MR][2];
      unroll<MR>([&](auto i) SVDQ_LAMBDA { acc[i][0] = acc[i][1] = _mm256_setzero_si256(); });
#pragma GCC unroll 1
      for (int block = 0; block < kQuads / 2; ++block) {
        unroll<2>([&](auto half) SVDQ_LAMBDA {
          __m256i nibbles[2];
          unroll<2>([&](auto j) SVDQ_LAMBDA {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * j));
            nibbles[j] =
                W::bytes(_mm256_and_si256(half ? _mm256_srli_epi16(bytes, 4) : bytes, low_nibbles));
          });
          unroll<MR>([&](auto i) SVDQ_LAMBDA {
            const __m256i codes = _mm256_set1_epi32(load_i32(x + 4 * (half * MR + i)));
            dot_u8_s8(acc[i][0], nibbles[0], codes);
            dot_u8_s8(acc[i][1], nibbles[1], codes);
          });
        });
        x += 8 * MR;
        w += 64;
      }
      unroll<MR>([&](auto i) SVDQ_LAMBDA {
        unroll<2>([&](auto j) SVDQ_LAMBDA {
          __m256i* slot = reinterpret_cast<__m256i*>(total + i * 16 + j * 8);
          __m256i before = *slot;
          if (chunk == 0) {
            const __m256i minus_sum = _mm256_set1_epi32(load_i32(minus_sums + 4 * i));
            if constexpr (W::kMultiplies) {
              before = _mm256_add_epi32(before, _mm256_mullo_epi32(minus_sum, multiplier[j]));
            } else {
              before = minus_sum;
            }
          }
          *slot = _mm256_add_epi32(before, _mm256_madd_epi16(acc[i][j], pair[j]));
        });
      });
    }
    if constexpr (!W::kMultiplies) {
      const f32x16 scale = W::load_scale(w_scale);
      unroll<MR>([&](auto i) SVDQ_LAMBDA {
        float* sum = args.out + i * args.ldo;
        const f32x16 before = args.accumulate || g > 0 ? load(sum) : zero();
        store(sum, fma(total_of(i) * scale, set1(load_f32(x_scales + 4 * i)), before));
      });
    }
    x += 8 * MR;
    w_scale += 16;
  }
  if constexpr (W::kMultiplies) {
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      add_scaled(args.out + i * args.ldo, args.accumulate, total_of(i), args.channel_scale,
                 load_f32(x - 4 * (MR - i)));
    });
  }
}

}  // namespace detail
}  // namespace svdq

#endif
