/* One register tile of the 4-bit product, for each instruction set: MR rows times NR panels over
 * some groups of k. gemm_s4.h cuts a product into such tiles. W says what nibbles stand for. */
#ifndef SVDQ_CPU_GEMM_S4_TILE_H
#define SVDQ_CPU_GEMM_S4_TILE_H

#include <type_traits>

#include "svdq_cpu/isa.h"
#include "svdq_cpu/nibbles.h"

namespace svdq {
namespace detail {

#if SVDQ_ISA_AVX512
constexpr int kMaxTileRows = 6;
constexpr int kPanelsAtOnce = 2;
#elif SVDQ_ISA_AVX2
constexpr int kMaxTileRows = 6;
constexpr int kPanelsAtOnce = 1;
#else
constexpr int kMaxTileRows = 4;
constexpr int kPanelsAtOnce = 1;
#endif

/* A packed row tile, per group:
 *
 *   codes          [GROUP / 4][MR][4] int8
 *   minus_sums     [MR] int32               -W::kZero * sum of the codes: what weights w + kZero
 * add too much scales         [MR] f32
 */
template <int GROUP>
constexpr int64_t packed_group_bytes(int mr) {
  return static_cast<int64_t>(mr) * (GROUP + 8);
}

SVDQ_INLINE int32_t load_i32(const void* p) {
  int32_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

SVDQ_INLINE float load_f32(const void* p) {
  float value;
  memcpy(&value, p, sizeof value);
  return value;
}

/* Weights and output of one tile: NR panels, each `w_stride` bytes and `scale_stride` scales after
 * the one before. Where W multiplies, `groups` is all of k: sums are scaled at their end. */
struct TileArgs {
  int64_t groups;
  const int8_t* packed;
  const uint8_t* w;
  int64_t w_stride;
  const void* w_scale;  // of W::Scale
  int64_t scale_stride;
  const uint16_t* channel_scale;  // bf16, 16 a panel, where W multiplies
  float* out;
  int64_t ldo;
  bool accumulate;
  const uint8_t* prefetch;  // weights to bring into the second-level cache meanwhile, or null
};

/* Writes integer sums of all of k, scaled. */
SVDQ_INLINE void store_scaled(const TileArgs& args, int64_t row, int64_t panel, f32x16 sum,
                              float x_scale) {
  float* to = args.out + row * args.ldo + panel * 16;
  const f32x16 before = args.accumulate ? load(to) : zero();
  store(to, fma(sum * load_bf16(args.channel_scale + panel * 16), set1(x_scale), before));
}

#if SVDQ_ISA_AVX512

/* acc += four products of unsigned bytes with signed ones. In assembly, for then the compiler keeps
 * order and registers: it would otherwise reassociate, and spill. */
SVDQ_INLINE void dot_u8_s8(__m512i& acc, __m512i u8, __m512i s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8));
}

/* Sums stay in registers beside the integer accumulators, 2 * MR * NR of them. A larger tile would
 * have to store its sums after every group, and on Zen 4 each store of 64 bytes costs as much of
 * the multiplier's time as a vpdpbusd. Conversions, logic and loads ride along free. */
template <int GROUP, int LARGEST, class W, int MR, int NR>
SVDQ_NOINLINE void multiply_tile(const TileArgs& args) {
  const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
  const int8_t* x = args.packed;
  const uint8_t* w = args.w;
  const auto* w_scale = static_cast<const typename W::Scale*>(args.w_scale);
  const int64_t w_stride = args.w_stride;
  std::conditional_t<W::kMultiplies, __m512i, f32x16> sums[MR][NR];
  unroll<MR>([&](auto i) SVDQ_LAMBDA {
    unroll<NR>([&](auto j) SVDQ_LAMBDA {
      if constexpr (W::kMultiplies) {
        sums[i][j] = _mm512_setzero_si512();
      } else {
        sums[i][j] = args.accumulate ? load(args.out + i * args.ldo + j * 16) : zero();
      }
    });
  });
  for (int64_t g = 0; g < args.groups; ++g) {
    __m512i acc[MR][NR];
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      const __m512i start = _mm512_set1_epi32(load_i32(x + GROUP * MR + 4 * i));
      unroll<NR>([&](auto j) SVDQ_LAMBDA { acc[i][j] = start; });
    });
    if (args.prefetch != nullptr) {
      for (int64_t i = 0; i < GROUP * 8; i += 64) {
        unroll<NR>([&](auto j) SVDQ_LAMBDA {
          __builtin_prefetch(args.prefetch + g * GROUP * 8 + j * w_stride + i, 0, 2);
        });
      }
    }
#pragma GCC unroll 1
    for (int block = 0; block < GROUP / 8; ++block) {
      // Weights are unsigned bytes, codes signed ones: four products and the sum are exact.
      __m512i bytes[NR];
      unroll<NR>([&](auto j) SVDQ_LAMBDA { bytes[j] = _mm512_loadu_si512(w + j * w_stride); });
      unroll<2>([&](auto half) SVDQ_LAMBDA {
        __m512i nibbles[NR];
        unroll<NR>([&](auto j) SVDQ_LAMBDA {
          nibbles[j] = W::bytes(
              _mm512_and_si512(half ? _mm512_srli_epi16(bytes[j], 4) : bytes[j], low_nibbles));
        });
        unroll<MR>([&](auto i) SVDQ_LAMBDA {
          const __m512i codes = _mm512_set1_epi32(load_i32(x + 4 * (half * MR + i)));
          unroll<NR>([&](auto j) SVDQ_LAMBDA { dot_u8_s8(acc[i][j], nibbles[j], codes); });
        });
      });
      x += 8 * MR;
      w += 64;
    }
    const int8_t* x_scales = x + 4 * MR;
    if constexpr (W::kMultiplies) {
      __m512i multiplier[NR];
      unroll<NR>([&](auto j) SVDQ_LAMBDA {
        const auto* of_panel = reinterpret_cast<const __m128i*>(w_scale + j * args.scale_stride);
        multiplier[j] = _mm512_cvtepi8_epi32(_mm_loadu_si128(of_panel));
      });
      unroll<MR>([&](auto i) SVDQ_LAMBDA {
        unroll<NR>([&](auto j) SVDQ_LAMBDA {
          const __m512i product = _mm512_mullo_epi32(acc[i][j], multiplier[j]);
          sums[i][j] = _mm512_add_epi32(sums[i][j], product);
        });
      });
    } else {
      f32x16 scale[NR];
      unroll<NR>([&](auto j)
                     SVDQ_LAMBDA { scale[j] = W::load_scale(w_scale + j * args.scale_stride); });
      unroll<MR>([&](auto i) SVDQ_LAMBDA {
        const f32x16 x_scale = set1(load_f32(x_scales + 4 * i));
        unroll<NR>([&](auto j) SVDQ_LAMBDA {
          const f32x16 product = f32x16{_mm512_cvtepi32_ps(acc[i][j])} * scale[j];
          sums[i][j] = fma(product, x_scale, sums[i][j]);
        });
      });
    }
    x += 8 * MR;
    w_scale += 16;
  }
  unroll<MR>([&](auto i) SVDQ_LAMBDA {
    unroll<NR>([&](auto j) SVDQ_LAMBDA {
      if constexpr (W::kMultiplies) {
        store_scaled(args, i, j, {_mm512_cvtepi32_ps(sums[i][j])}, load_f32(x - 4 * (MR - i)));
      } else {
        store(args.out + i * args.ldo + j * 16, sums[i][j]);
      }
    });
  });
}

#elif SVDQ_ISA_AVX2

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
      store_scaled(args, i, 0, total_of(i), load_f32(x - 4 * (MR - i)));
    });
  }
}

#else

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

#endif

}  // namespace detail
}  // namespace svdq

#endif
