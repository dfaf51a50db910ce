/* The product of a linear with 8-bit weights and 8-bit inputs, for a block of rows and a range of
 * 16-column panels.
 *
 *   out[m, n] (+)= x_scale[m] * w_scale[n] * sum_k codes[m, k] * w_codes[n, k]
 *
 * The sum is an exact integer: |codes| <= 127, so it stays in int32 for k < 2^16. It is rounded to
 * a float once, multiplied by w_scale, and added by one fma with x_scale.
 *
 * codes      [rows, k] dense int8
 * x_scale    [rows] f32
 * w_packed   "s8_n16k4", [panels, k / 4, 16, 4] bytes of w + 128
 * w_scale    "bf16_scale_n16", [panels, 16] bfloat16; 0 in columns past the last
 * out        [rows, 16 * (panel_end - panel_begin)] f32, row stride ldo, from panel_begin's column
 *
 * pack_codes_s8    codes rearranged for broadcasting, into packed_codes_s8_bytes(rows, k) of
 * scratch gemm_s8_onto     the product of what was packed; `start` as in gemm_s4.h
 *
 * k is a multiple of 4.
 */
#ifndef SVDQ_CPU_GEMM_S8_H
#define SVDQ_CPU_GEMM_S8_H

#include "svdq_cpu/gemm_s4.h"

namespace svdq {

/* Two bytes for each code, an int32 and a float for each row. */
constexpr int64_t packed_codes_s8_bytes(int64_t rows, int64_t k) { return rows * (2 * k + 8); }

namespace detail {

/* A packed row tile: [k / 4][MR] quads, then [MR] int32 of -128 * the sum of the codes, which is
 * what weights w + 128 add too much, then [MR] f32 scales. A quad is four int8, or with AVX2 four
 * int16 at k = 0, 2, 1, 3. */
#if SVDQ_ISA_AVX512
constexpr int kTileRowsS8 = 12;
constexpr int kPanelsS8 = 2;
constexpr int kQuadBytes = 4;
#elif SVDQ_ISA_AVX2
constexpr int kTileRowsS8 = 4;
constexpr int kPanelsS8 = 1;
constexpr int kQuadBytes = 8;
#else
constexpr int kTileRowsS8 = 4;
constexpr int kPanelsS8 = 1;
constexpr int kQuadBytes = 4;
#endif

constexpr int64_t packed_tile_s8_bytes(int64_t rows, int64_t k) {
  return rows * (k / 4 * kQuadBytes + 8);
}

struct TileArgsS8 {
  int64_t quads;
  const int8_t* packed;
  const uint8_t* w;
  int64_t w_stride;  // bytes from panel to panel
  const uint16_t* w_scale;
  float* out;
  int64_t ldo;
  bool accumulate;
};

/* out (+)= sum * w_scale * x_scale for one row of one panel. */
SVDQ_INLINE void add_scaled(const TileArgsS8& args, int64_t row, int64_t panel, f32x16 sum,
                            float x_scale) {
  add_scaled(args.out + row * args.ldo + panel * 16, args.accumulate, sum,
             args.w_scale + panel * 16, x_scale);
}

template <int MR, int NR>
SVDQ_NOINLINE void multiply_tile_s8(const TileArgsS8& args) {
  const int8_t* x = args.packed;
  const uint8_t* w = args.w;
  const int8_t* minus_sums = x + args.quads * MR * kQuadBytes;
  const int8_t* scales = minus_sums + 4 * MR;
#if SVDQ_ISA_AVX512
  __m512i acc[MR][NR];
  unroll<MR>([&](auto i) SVDQ_LAMBDA {
    unroll<NR>([&](auto j)
                   SVDQ_LAMBDA { acc[i][j] = _mm512_set1_epi32(load_i32(minus_sums + 4 * i)); });
  });
  for (int64_t quad = 0; quad < args.quads; ++quad) {
    __m512i bytes[NR];
    unroll<NR>([&](auto j) SVDQ_LAMBDA {
      bytes[j] = _mm512_loadu_si512(w + j * args.w_stride);
      __builtin_prefetch(w + j * args.w_stride + 1024);
    });
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      const __m512i codes = _mm512_set1_epi32(load_i32(x + 4 * i));
      unroll<NR>([&](auto j) SVDQ_LAMBDA { dot_u8_s8(acc[i][j], bytes[j], codes); });
    });
    x += 4 * MR;
    w += 64;
  }
  unroll<MR>([&](auto i) SVDQ_LAMBDA {
    unroll<NR>([&](auto j) SVDQ_LAMBDA {
      add_scaled(args, i, j, {_mm512_cvtepi32_ps(acc[i][j])}, load_f32(scales + 4 * i));
    });
  });
#elif SVDQ_ISA_AVX2
  static_assert(NR == 1, "one panel fills the registers");
  __m256i acc[MR][2];
  unroll<MR>([&](auto i) SVDQ_LAMBDA {
    acc[i][0] = acc[i][1] = _mm256_set1_epi32(load_i32(minus_sums + 4 * i));
  });
  const __m256i low_bytes = _mm256_set1_epi16(0xff);
  for (int64_t quad = 0; quad < args.quads; ++quad) {
    // Bytes zero-extend to pairs of int16 at k = (0, 2) and (1, 3): products and sums are exact.
    __m256i even[2], odd[2];
    unroll<2>([&](auto j) SVDQ_LAMBDA {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * j));
      even[j] = _mm256_and_si256(bytes, low_bytes);
      odd[j] = _mm256_srli_epi16(bytes, 8);
    });
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      const __m256i first = _mm256_set1_epi32(load_i32(x + 8 * i));
      const __m256i second = _mm256_set1_epi32(load_i32(x + 8 * i + 4));
      unroll<2>([&](auto j) SVDQ_LAMBDA {
        acc[i][j] = _mm256_add_epi32(acc[i][j], _mm256_madd_epi16(even[j], first));
        acc[i][j] = _mm256_add_epi32(acc[i][j], _mm256_madd_epi16(odd[j], second));
      });
    });
    x += 8 * MR;
    w += 64;
  }
  unroll<MR>([&](auto i) SVDQ_LAMBDA {
    const f32x16 sum = {_mm256_cvtepi32_ps(acc[i][0]), _mm256_cvtepi32_ps(acc[i][1])};
    add_scaled(args, i, 0, sum, load_f32(scales + 4 * i));
  });
#else
  static_assert(NR == 1, "one panel at a time");
  int32_t acc[MR][16];
  for (int i = 0; i < MR; ++i) {
    for (int n = 0; n < 16; ++n) acc[i][n] = load_i32(minus_sums + 4 * i);
  }
  for (int64_t quad = 0; quad < args.quads; ++quad) {
    for (int i = 0; i < MR; ++i) {
      for (int n = 0; n < 16; ++n) {
        int32_t sum = 0;
        for (int j = 0; j < 4; ++j) sum += w[4 * n + j] * x[4 * i + j];
        acc[i][n] += sum;
      }
    }
    x += 4 * MR;
    w += 64;
  }
  for (int i = 0; i < MR; ++i) {
    float sums[16];
    for (int n = 0; n < 16; ++n) sums[n] = static_cast<float>(acc[i][n]);
    add_scaled(args, i, 0, load(sums), load_f32(scales + 4 * i));
  }
#endif
}

template <int NR>
struct MultiplyTileS8 {
  template <int MR>
  struct Of {
    SVDQ_INLINE void run(const TileArgsS8& args) { multiply_tile_s8<MR, NR>(args); }
  };
};

}  // namespace detail

SVDQ_NOINLINE void pack_codes_s8(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale,
                                 void* packed) {
  int8_t* tile = static_cast<int8_t*>(packed);
  for (int64_t row = 0; row < rows;) {
    const int mr = detail::cut_rows(rows - row, detail::kTileRowsS8);
    int8_t* tail = tile + k / 4 * detail::kQuadBytes * mr;
    for (int i = 0; i < mr; ++i) {
      const int8_t* from = codes + (row + i) * k;
      int32_t sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += from[j];
      for (int64_t quad = 0; quad < k / 4; ++quad) {
        int8_t* to = tile + (quad * mr + i) * detail::kQuadBytes;
        if constexpr (detail::kQuadBytes == 4) {
          memcpy(to, from + 4 * quad, 4);
        } else {
          const int16_t wide[4] = {from[4 * quad], from[4 * quad + 2], from[4 * quad + 1],
                                   from[4 * quad + 3]};
          memcpy(to, wide, 8);
        }
      }
      sum *= -128;
      memcpy(tail + 4 * i, &sum, 4);
      memcpy(tail + 4 * (mr + i), x_scale + row + i, 4);
    }
    tile += detail::packed_tile_s8_bytes(mr, k);
    row += mr;
  }
}

template <class Start>
void gemm_s8_onto(int64_t rows, int64_t k, const void* packed, const uint8_t* w_packed,
                  const uint16_t* w_scale, int64_t panel_begin, int64_t panel_end, float* out,
                  int64_t ldo, bool accumulate, const Start& start) {
  constexpr int kWide = detail::kPanelsS8;
  detail::TileArgsS8 args;
  args.quads = k / 4;
  args.w_stride = k * 16;
  args.ldo = ldo;
  args.accumulate = accumulate;
  for (int64_t panel = panel_begin; panel < panel_end;) {
    const int64_t width = panel_end - panel >= kWide ? kWide : 1;
    float* out_panel = out + (panel - panel_begin) * 16;
    start(panel, panel + width, out_panel);
    args.w = w_packed + panel * args.w_stride;
    args.w_scale = w_scale + panel * 16;
    const int8_t* tile = static_cast<const int8_t*>(packed);
    for (int64_t row = 0; row < rows;) {
      const int mr = detail::cut_rows(rows - row, detail::kTileRowsS8);
      args.packed = tile;
      args.out = out_panel + row * ldo;
      if (width == 1) {
        detail::for_cut_rows<detail::MultiplyTileS8<1>::template Of, detail::kTileRowsS8>(mr, args);
      } else {
        detail::for_cut_rows<detail::MultiplyTileS8<kWide>::template Of, detail::kTileRowsS8>(mr,
                                                                                              args);
      }
      tile += detail::packed_tile_s8_bytes(mr, k);
      row += mr;
    }
    panel += width;
  }
}

}  // namespace svdq

#endif
