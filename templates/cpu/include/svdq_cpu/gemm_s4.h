/* The product of a linear with 4-bit weights and coded inputs, for a block of rows and a range of
 * 16-column panels.
 *
 *   out[m, n] (+)= sum_g  x_scale[m, g] * w_scale[n, g] * sum_{k in g} codes[m, k] * w_codes[n, k]
 *
 * Inner sums are exact integers. Groups are added in rising order in f32, each by one fma of
 * (sum * w_scale) and x_scale: to zero, or with `accumulate` to what out holds, such as bias and
 * low-rank branch. The bits depend on neither the rows nor the panels of a call.
 *
 * codes      [rows, k] dense int8, |code| <= LARGEST, which is largest_code(RANGE) in gemm_s4
 * x_scale    [rows, k / GROUP] dense f32
 * w_packed   "s4_n16k4", [panels, k / 8, 16, 4] bytes of two w + 8: byte (p, b, n, j) has
 *            w_codes[16 p + n, 8 b + j] in its low nibble, w_codes[16 p + n, 8 b + 4 + j] in its
 * high w_scale    "bf16_scale_n16", [panels, k / GROUP, 16] bfloat16; 0 in columns past the last
 * out        [rows, 16 * (panel_end - panel_begin)] f32, row stride ldo, from panel_begin's column
 *
 * E2M1 weights (E2m1Weights): the nibbles are E2M1 numbers, "e2m1_n16k4", codes of both sides their
 * values doubled, and w_scale "e4m3_scale_n16".
 *
 * Multiplied weights (S4Multiplied) have an integer per group, "multiplier_n16", in place of
 * w_scale, and channel_scale, "bf16_scale_n16" [panels, 16]. Their sum over all of k is one exact
 * integer, below 2^31 for k < 2^17, and is scaled as int8's (gemm_s8.h): one x_scale per row.
 *
 * Two steps, so that products may share their input and a task may take its columns in ranges:
 *
 * pack_codes_s4            codes, scales and code sums, rearranged for broadcasting: into
 *                          packed_codes_bytes(rows, k, GROUP) bytes of scratch
 * gemm_s4, gemm_s4_onto    the product of what was packed
 *
 * pack_codes and gemm_codes_onto are the same for any weights W, and for one x_scale per row.
 */
#ifndef SVDQ_CPU_GEMM_S4_H
#define SVDQ_CPU_GEMM_S4_H

#include "svdq_cpu/gemm_s4_tile.h"
#include "svdq_cpu/isa.h"
#include "svdq_cpu/quantize_s4.h"

namespace svdq {

/* Bytes that pack_codes_s4 writes: a byte per code, a float and an int32 per group. */
constexpr int64_t packed_codes_bytes(int64_t rows, int64_t k, int64_t group) {
  return rows * (k + 8 * (k / group));
}

namespace detail {

/* Rows are cut into the fewest tiles, of nearly equal size; packing and product cut alike. */
SVDQ_INLINE int tile_rows(int64_t rows_left) {
  const int64_t tiles = (rows_left + kMaxTileRows - 1) / kMaxTileRows;
  return static_cast<int>((rows_left + tiles - 1) / tiles);
}

#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2

template <int GROUP>
SVDQ_INLINE int32_t sum_codes(const int8_t* codes) {
  // The sum of pairs fits int16: 2 * 127. Four of them too.
  __m256i pairs = _mm256_setzero_si256();
  SVDQ_UNROLL
  for (int i = 0; i < GROUP; i += 32) {
    const __m256i bytes =
        GROUP % 32 == 0
            ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i))
            : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes));
  }
  const __m256i eight = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

/* Four rows of GROUP codes to [GROUP / 4][.][4], rows of the result MR quads apart. */
template <int GROUP, int MR>
SVDQ_INLINE void interleave_4_rows(const int8_t* codes, int64_t ld, int8_t* packed) {
  SVDQ_UNROLL
  for (int k0 = 0; k0 < GROUP; k0 += 16) {
    const auto quads = [&](int row) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + row * ld + k0));
    };
    const auto put = [&](int quad, __m128i four) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + (k0 / 4 + quad) * MR * 4), four);
    };
    const __m128i r0 = quads(0), r1 = quads(1), r2 = quads(2), r3 = quads(3);
    const __m128i a = _mm_unpacklo_epi32(r0, r1), b = _mm_unpacklo_epi32(r2, r3);
    const __m128i c = _mm_unpackhi_epi32(r0, r1), d = _mm_unpackhi_epi32(r2, r3);
    put(0, _mm_unpacklo_epi64(a, b));
    put(1, _mm_unpackhi_epi64(a, b));
    put(2, _mm_unpacklo_epi64(c, d));
    put(3, _mm_unpackhi_epi64(c, d));
  }
}

#else

template <int GROUP>
SVDQ_INLINE int32_t sum_codes(const int8_t* codes) {
  int32_t sum = 0;
  for (int i = 0; i < GROUP; ++i) sum += codes[i];
  return sum;
}

#endif

/* Where the scale of row m and group g is, and what to multiply it by. */
struct RowScales {
  const float* first;
  int64_t row_stride, group_stride;
  float unit;
};

template <int GROUP, class W, int MR>
SVDQ_NOINLINE void pack_tile(int64_t k, const int8_t* codes, const RowScales& scales,
                             int8_t* packed) {
  const int64_t groups = k / GROUP;
  for (int64_t g = 0; g < groups; ++g) {
    const int8_t* first = codes + g * GROUP;
    int row = 0;
#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2
    for (; row + 4 <= MR; row += 4)
      interleave_4_rows<GROUP, MR>(first + row * k, k, packed + row * 4);
#endif
    for (; row < MR; ++row) {
      for (int quad = 0; quad < GROUP / 4; ++quad) {
        memcpy(packed + (quad * MR + row) * 4, first + row * k + quad * 4, 4);
      }
    }
    packed += GROUP * MR;
    for (row = 0; row < MR; ++row) {
      const int32_t minus_sum = -W::kZero * sum_codes<GROUP>(first + row * k);
      const float scale =
          scales.first[row * scales.row_stride + g * scales.group_stride] * scales.unit;
      memcpy(packed + row * 4, &minus_sum, 4);
      memcpy(packed + (MR + row) * 4, &scale, 4);
    }
    packed += 8 * MR;
  }
}

/* A tile's rows under another cut, into 12, 8, 4, 2 and 1: fewer kernels to compile. */
constexpr int fewer_rows(int rows) { return rows > 8 ? 8 : (rows > 4 ? 4 : rows / 2); }

SVDQ_INLINE int cut_rows(int64_t rows_left, int most) {
  while (rows_left < most) most = fewer_rows(most);
  return most;
}

/* Calls Run<MR>::run(args...) for MR = cut_rows(...). */
template <template <int> class Run, int MR, typename... Args>
SVDQ_INLINE void for_cut_rows(int rows, const Args&... args) {
  if (rows == MR) return Run<MR>::run(args...);
  if constexpr (MR > 1) for_cut_rows<Run, fewer_rows(MR)>(rows, args...);
}

/* Calls Run<MR>::run(args...) for MR = rows, which is in [1, kMaxTileRows]. */
template <template <int> class Run, int MR = kMaxTileRows, typename... Args>
SVDQ_INLINE void for_tile_rows(int rows, const Args&... args) {
  if (rows == MR) return Run<MR>::run(args...);
  if constexpr (MR > 1) for_tile_rows<Run, MR - 1>(rows, args...);
}

template <int GROUP, class W>
struct PackTile {
  template <int MR>
  struct Of {
    SVDQ_INLINE void run(int64_t k, const int8_t* codes, const RowScales& scales, int8_t* packed) {
      pack_tile<GROUP, W, MR>(k, codes, scales, packed);
    }
  };
};

template <int GROUP, int LARGEST, class W, int NR>
struct MultiplyTile {
  template <int MR>
  struct Of {
    SVDQ_INLINE void run(const TileArgs& args) { multiply_tile<GROUP, LARGEST, W, MR, NR>(args); }
  };
};

}  // namespace detail

/* codes [rows, k], x_scale [rows, k / GROUP], or [rows] where `by_row`, times `unit`  ->  packed,
 * packed_codes_bytes(rows, k, GROUP) bytes, 4-aligned. */
template <int GROUP, class W>
void pack_codes(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale, bool by_row,
                float unit, void* packed) {
  int8_t* tile = static_cast<int8_t*>(packed);
  detail::RowScales scales = {x_scale, by_row ? 1 : k / GROUP, by_row ? 0 : 1, unit};
  for (int64_t row = 0; row < rows;) {
    const int mr = detail::tile_rows(rows - row);
    detail::for_tile_rows<detail::PackTile<GROUP, W>::template Of>(mr, k, codes + row * k, scales,
                                                                   tile);
    scales.first += mr * scales.row_stride;
    tile += detail::packed_group_bytes<GROUP>(mr) * (k / GROUP);
    row += mr;
  }
}

template <int GROUP>
void pack_codes_s4(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale,
                   void* packed) {
  pack_codes<GROUP, S4Weights>(rows, k, codes, x_scale, false, 1.0f, packed);
}

/* `start(panel, panel_end, out)` first writes what the sums are added to (bias, low-rank branch),
 * for all rows of a panel or two, into their place in the output, `out`: it is still in the
 * first-level cache when the sums come. */
template <int GROUP, int LARGEST, class W, class Start>
void gemm_codes_onto(int64_t rows, int64_t k, const void* packed, const uint8_t* w_packed,
                     const typename W::Scale* w_scale, int64_t panel_begin, int64_t panel_end,
                     float* out, int64_t ldo, bool accumulate, const Start& start,
                     const uint16_t* channel_scale = nullptr) {
  static_assert(GROUP == 16 || GROUP == 32 || GROUP == 64 || GROUP == 128, "groups along k");
  // What tiles distinguish: whether codes have 4 bits, up to 15, or 8.
  constexpr int kLargest = LARGEST <= 15 ? 15 : 127;
  constexpr int kWide = detail::kPanelsAtOnce;
  // A slice of k: its weights (two panels, 64 KB) and codes (a tile, 24 KB) stay close. Integer
  // sums end with k.
  const int64_t groups = k / GROUP, slice = W::kMultiplies ? groups : 4096 / GROUP;
  detail::TileArgs args;
  args.w_stride = k * 8;
  args.scale_stride = groups * 16;
  args.ldo = ldo;
  for (int64_t panel = panel_begin; panel < panel_end;) {
    const int64_t width = panel_end - panel >= kWide ? kWide : 1;
    const uint8_t* w_panel = w_packed + panel * args.w_stride;
    float* out_panel = out + (panel - panel_begin) * 16;
    start(panel, panel + width, out_panel);
    for (int64_t g = 0; g < groups; g += slice) {
      args.groups = groups - g < slice ? groups - g : slice;
      args.w = w_panel + g * GROUP * 8;
      args.w_scale = w_scale + panel * args.scale_stride + g * 16;
      args.channel_scale = channel_scale + panel * 16;
      args.accumulate = accumulate || g > 0;
      const uint8_t* next = g + 2 * slice <= groups          ? args.w + slice * GROUP * 8
                            : panel + 2 * width <= panel_end ? w_panel + width * args.w_stride
                                                             : nullptr;
      const int8_t* tile = static_cast<const int8_t*>(packed);
      for (int64_t row = 0; row < rows;) {
        const int mr = detail::tile_rows(rows - row);
        args.packed = tile + detail::packed_group_bytes<GROUP>(mr) * g;
        args.out = out_panel + row * ldo;
        args.prefetch = row + mr == rows ? next : nullptr;
        if (g == 0 && panel + 2 * width <= panel_end) {
          // Rows of a large output are pages apart, where no hardware prefetcher follows.
          for (int i = 0; i < mr; ++i) {
            for (int64_t j = 0; j < width; ++j) {
              __builtin_prefetch(args.out + i * ldo + (width + j) * 16, 1, 3);
            }
          }
        }
        if (width == 1) {
          detail::for_tile_rows<detail::MultiplyTile<GROUP, kLargest, W, 1>::template Of>(mr, args);
        } else {
          detail::for_tile_rows<detail::MultiplyTile<GROUP, kLargest, W, kWide>::template Of>(mr,
                                                                                              args);
        }
        tile += detail::packed_group_bytes<GROUP>(mr) * groups;
        row += mr;
      }
    }
    panel += width;
  }
}

template <int GROUP, ActRange RANGE, class Start>
void gemm_s4_onto(int64_t rows, int64_t k, const void* packed, const uint8_t* w_packed,
                  const uint16_t* w_scale, int64_t panel_begin, int64_t panel_end, float* out,
                  int64_t ldo, bool accumulate, const Start& start) {
  gemm_codes_onto<GROUP, largest_code(RANGE), S4Weights>(
      rows, k, packed, w_packed, w_scale, panel_begin, panel_end, out, ldo, accumulate, start);
}

template <int GROUP, ActRange RANGE>
void gemm_s4(int64_t rows, int64_t k, const void* packed, const uint8_t* w_packed,
             const uint16_t* w_scale, int64_t panel_begin, int64_t panel_end, float* out,
             int64_t ldo, bool accumulate) {
  gemm_s4_onto<GROUP, RANGE>(rows, k, packed, w_packed, w_scale, panel_begin, panel_end, out, ldo,
                             accumulate, [](int64_t, int64_t, float*) {});
}

}  // namespace svdq

#endif
