/* The register tile of gemm_s4_tile.h for AVX-512 VNNI. Included there. */
#ifndef SVDQ_CPU_GEMM_S4_TILE_AVX512_H
#define SVDQ_CPU_GEMM_S4_TILE_AVX512_H

namespace svdq {
namespace detail {

/* acc += four products of unsigned bytes with signed ones. In assembly, for then the compiler keeps
 * order and registers: it would otherwise reassociate, and spill. */
SVDQ_INLINE void dot_u8_s8(__m512i& acc, __m512i u8, __m512i s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8));
}

struct i32x16 {
  __m512i v;
};

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
  std::conditional_t<W::kMultiplies, i32x16, f32x16> sums[MR][NR];
  unroll<MR>([&](auto i) SVDQ_LAMBDA {
    unroll<NR>([&](auto j) SVDQ_LAMBDA {
      if constexpr (W::kMultiplies) {
        sums[i][j] = {_mm512_setzero_si512()};
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
          sums[i][j].v = _mm512_add_epi32(sums[i][j].v, product);
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
        add_scaled(args.out + i * args.ldo + j * 16, args.accumulate,
                   {_mm512_cvtepi32_ps(sums[i][j].v)}, args.channel_scale + j * 16,
                   load_f32(x - 4 * (MR - i)));
      } else {
        store(args.out + i * args.ldo + j * 16, sums[i][j]);
      }
    });
  });
}

}  // namespace detail
}  // namespace svdq

#endif
