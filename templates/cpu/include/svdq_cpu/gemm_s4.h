/* The 4-bit product of a quantized linear, for a block of rows and a range of 16-column panels.
 *
 *   out[m, n] (+)= sum_g  x_scale[m, g] * w_scale[n, g] * sum_{k in g} codes[m, k] * w_codes[n, k]
 *
 * Inner sums are exact integers. Groups are added in rising order in f32, one fma each of (sum *
 * w_scale) and x_scale, to zero or, with accumulate, to what out holds (bias and low-rank branch,
 * say).
 *
 * codes     [rows, k] dense int8, |code| <= largest_code(RANGE)       x_scale  [rows, k / GROUP]
 * dense f32 w_packed  layout "s4_n16k4":  [panels, k / 8, 16, 4] bytes holding w + 8: the low
 * nibble of byte (p, b, n, j) is w_codes[16 p + n, 8 b + j], the high one w_codes[16 p + n, 8 b + 4
 * + j] w_scale   layout "bf16_scale_n16":  [panels, k / GROUP, 16] bfloat16; 0 for columns past the
 * last out       [rows, 16 * (panel_end - panel_begin)] f32, row stride ldo; its first column is
 * panel_begin's
 *
 * Two steps, so that several products may share their input and a task may take its columns in
 * ranges: pack_codes_s4   rearranges codes, scales and code sums for broadcasting, into
 * packed_codes_bytes(rows, k, GROUP) bytes gemm_s4         multiplies what was packed
 */
#ifndef SVDQ_CPU_GEMM_S4_H
#define SVDQ_CPU_GEMM_S4_H

#include "svdq_cpu/isa.h"
#include "svdq_cpu/quantize_s4.h"

namespace svdq {

/* Bytes that pack_codes_s4 writes: a byte per code, a float and an int32 per group. */
constexpr int64_t packed_codes_bytes(int64_t rows, int64_t k, int64_t group) {
  return rows * (k + 8 * (k / group));
}

namespace detail {

#if SVDQ_ISA_AVX512
constexpr int kRowTiles[] = {12, 8, 4, 2, 1};
constexpr int kPanelsAtOnce = 2;
#elif SVDQ_ISA_AVX2
constexpr int kRowTiles[] = {6, 3, 1};
constexpr int kPanelsAtOnce = 1;
#else
constexpr int kRowTiles[] = {4, 1};
constexpr int kPanelsAtOnce = 1;
#endif

/* Rows are cut into tiles of the largest size that still fits; packing and product cut alike. */
SVDQ_INLINE int tile_rows(int64_t rows_left) {
  for (const int size : kRowTiles) {
    if (rows_left >= size) return size;
  }
  return 0;
}

/* A packed row tile, per group:  codes [GROUP / 4][MR][4] int8,  minus_8_sums [MR] int32,  scales
 * [MR] f32. minus_8_sums = -8 * sum of the codes: what u8 weights w + 8 add too much. */
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

#if SVDQ_ISA_AVX512 || SVDQ_ISA_AVX2

template <int GROUP>
SVDQ_INLINE int32_t sum_codes(const int8_t* codes) {
  // The sum of pairs fits int16: 2 * 127. Four of them too.
  __m256i pairs = _mm256_setzero_si256();
  SVDQ_UNROLL
  for (int i = 0; i < GROUP; i += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
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

template <int GROUP, int MR>
SVDQ_NOINLINE void pack_tile(int64_t k, const int8_t* codes, const float* x_scale, int8_t* packed) {
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
      const int32_t minus_8_sum = -8 * sum_codes<GROUP>(first + row * k);
      memcpy(packed + row * 4, &minus_8_sum, 4);
      memcpy(packed + (MR + row) * 4, x_scale + row * groups + g, 4);
    }
    packed += 8 * MR;
  }
}

/* Weights and output of one tile: NR panels, each `w_stride` bytes and `scale_stride` scales after
 * the one before. */
struct TileArgs {
  int64_t groups;
  const int8_t* packed;
  const uint8_t* w;
  int64_t w_stride;
  const uint16_t* w_scale;
  int64_t scale_stride;
  float* out;
  int64_t ldo;
  bool accumulate;
  bool prefetch_next;  // bring the panels that follow into the second-level cache
};

/* Sums of a tile live in memory between groups, so that integer accumulators have all registers to
 * themselves. Rows lie densely here: rows of `out` a power of two apart would share a few cache
 * sets. */
template <int MR, int NR>
struct TileSums {
  alignas(64) float values[MR * NR * 16];

  void begin(const TileArgs& args) {
    for (int i = 0; i < MR; ++i) {
      for (int j = 0; j < NR; ++j) {
        store(values + (i * NR + j) * 16,
              args.accumulate ? load(args.out + i * args.ldo + j * 16) : zero());
      }
    }
  }

  void end(const TileArgs& args) const {
    for (int i = 0; i < MR; ++i) {
      for (int j = 0; j < NR; ++j)
        store(args.out + i * args.ldo + j * 16, load(values + (i * NR + j) * 16));
    }
  }
};

#if SVDQ_ISA_AVX512

/* acc += four products of unsigned bytes with signed ones. In assembly, for then the compiler keeps
 * order and registers: it would otherwise reassociate, and spill. */
SVDQ_INLINE void dot_u8_s8(__m512i& acc, __m512i u8, __m512i s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8));
}

template <int GROUP, int LARGEST, int MR, int NR>
SVDQ_NOINLINE void multiply_tile(const TileArgs& args) {
  TileSums<MR, NR> tile_sums;
  tile_sums.begin(args);
  const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
  const int8_t* x = args.packed;
  const uint8_t* w = args.w;
  const uint16_t* w_scale = args.w_scale;
  const int64_t w_stride = args.w_stride;
  for (int64_t g = 0; g < args.groups; ++g) {
    const int8_t* minus_8_sums = x + GROUP * MR;
    const int8_t* x_scales = minus_8_sums + 4 * MR;
    __m512i acc[MR][NR];
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      const __m512i start = _mm512_set1_epi32(load_i32(minus_8_sums + 4 * i));
      unroll<NR>([&](auto j) SVDQ_LAMBDA { acc[i][j] = start; });
    });
    if (args.prefetch_next) {
      for (int i = 0; i < GROUP * 8; i += 64) {
        unroll<NR>([&](auto j)
                       SVDQ_LAMBDA { __builtin_prefetch(w + (NR + j) * w_stride + i, 0, 2); });
      }
    }
#pragma GCC unroll 1
    for (int block = 0; block < GROUP / 8; ++block) {
      // Nibbles are unsigned bytes up to 15, codes signed ones: four products and the sum are exact
      // in 32 bits.
      __m512i bytes[NR];
      unroll<NR>([&](auto j) SVDQ_LAMBDA { bytes[j] = _mm512_loadu_si512(w + j * w_stride); });
      unroll<2>([&](auto half) SVDQ_LAMBDA {
        __m512i nibbles[NR];
        unroll<NR>([&](auto j) SVDQ_LAMBDA {
          nibbles[j] =
              _mm512_and_si512(half ? _mm512_srli_epi16(bytes[j], 4) : bytes[j], low_nibbles);
        });
        unroll<MR>([&](auto i) SVDQ_LAMBDA {
          const __m512i codes = _mm512_set1_epi32(load_i32(x + 4 * (half * MR + i)));
          unroll<NR>([&](auto j) SVDQ_LAMBDA { dot_u8_s8(acc[i][j], nibbles[j], codes); });
        });
      });
      x += 8 * MR;
      w += 64;
    }
    float* sums = tile_sums.values;
    __asm__("" : "+r"(sums) : : "memory");  // keeps the sums out of registers
    f32x16 scale[NR];
    unroll<NR>([&](auto j) SVDQ_LAMBDA { scale[j] = load_bf16(w_scale + j * args.scale_stride); });
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      const f32x16 x_scale = set1(load_f32(x_scales + 4 * i));
      unroll<NR>([&](auto j) SVDQ_LAMBDA {
        float* sum = sums + (i * NR + j) * 16;
        const f32x16 product = f32x16{_mm512_cvtepi32_ps(acc[i][j])} * scale[j];
        store(sum, fma(product, x_scale, load(sum)));
      });
    });
    x += 8 * MR;
    w_scale += 16;
  }
  tile_sums.end(args);
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

template <int GROUP, int LARGEST, int MR, int NR>
SVDQ_NOINLINE void multiply_tile(const TileArgs& args) {
  static_assert(NR == 1, "one panel fills the registers");
  // A pair of products is at most 2 * 15 * LARGEST, so an int16 lane holds kSafe of them: 136 at
  // codes of 8, 72 at 15, 8 at 127. A group has GROUP / 4 <= 32 to add per lane.
  constexpr int kSafe = 32767 / (30 * LARGEST);
  constexpr int kQuads = GROUP / 4 <= kSafe ? GROUP / 4 : 8;
  static_assert(kQuads <= kSafe && (GROUP / 4) % kQuads == 0, "int16 sums must not overflow");
  TileSums<MR, NR> tile_sums;
  tile_sums.begin(args);
  const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
  const __m256i ones = _mm256_set1_epi16(1);
  const int8_t* x = args.packed;
  const uint8_t* w = args.w;
  const uint16_t* w_scale = args.w_scale;
  for (int64_t g = 0; g < args.groups; ++g) {
    const int8_t* minus_8_sums = x + GROUP * MR;
    const int8_t* x_scales = minus_8_sums + 4 * MR;
    alignas(32) int32_t totals[MR][16];
    int32_t* total = totals[0];
    if (args.prefetch_next) {
      for (int i = 0; i < GROUP * 8; i += 64) __builtin_prefetch(w + args.w_stride + i, 0, 2);
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
            nibbles[j] = _mm256_and_si256(half ? _mm256_srli_epi16(bytes, 4) : bytes, low_nibbles);
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
          const __m256i before =
              chunk == 0 ? _mm256_set1_epi32(load_i32(minus_8_sums + 4 * i)) : *slot;
          *slot = _mm256_add_epi32(before, _mm256_madd_epi16(acc[i][j], ones));
        });
      });
    }
    float* sums = tile_sums.values;
    __asm__("" : "+r"(sums) : : "memory");  // keeps the sums out of registers
    const f32x16 scale = load_bf16(w_scale);
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      const __m256i* slots = reinterpret_cast<const __m256i*>(total + i * 16);
      const f32x16 group_sum = {_mm256_cvtepi32_ps(slots[0]), _mm256_cvtepi32_ps(slots[1])};
      store(sums + i * 16,
            fma(group_sum * scale, set1(load_f32(x_scales + 4 * i)), load(sums + i * 16)));
    });
    x += 8 * MR;
    w_scale += 16;
  }
  tile_sums.end(args);
}

#else

typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int32_t i32x16 __attribute__((vector_size(64)));

template <int GROUP, int LARGEST, int MR, int NR>
SVDQ_NOINLINE void multiply_tile(const TileArgs& args) {
  static_assert(NR == 1, "one panel at a time");
  // A product is at most 8 * LARGEST, so an int16 lane holds 32767 / (8 * LARGEST) of them: 511 at
  // codes of 8, 273 at 15, 32 at 127.
  constexpr int kChunk = 8 * LARGEST * GROUP <= 32767 ? GROUP : 32;
  static_assert(8 * LARGEST * kChunk <= 32767 && GROUP % kChunk == 0,
                "int16 sums must not overflow");
  TileSums<MR, NR> tile_sums;
  tile_sums.begin(args);
  const int8_t* x = args.packed;
  const uint8_t* w = args.w;
  const uint16_t* w_scale = args.w_scale;
  for (int64_t g = 0; g < args.groups; ++g) {
    i16x16 weights[GROUP];  // signed here, so minus_8_sums are not needed
    for (int k0 = 0; k0 < GROUP; k0 += 8) {
      for (int j = 0; j < 4; ++j) {
        for (int n = 0; n < 16; ++n) {
          const uint8_t byte = w[k0 * 8 + n * 4 + j];
          weights[k0 + j][n] = static_cast<int16_t>((byte & 15) - 8);
          weights[k0 + 4 + j][n] = static_cast<int16_t>((byte >> 4) - 8);
        }
      }
    }
    i32x16 total[MR] = {};
    for (int chunk = 0; chunk < GROUP; chunk += kChunk) {
      i16x16 acc[MR] = {};
      for (int kk = chunk; kk < chunk + kChunk; ++kk) {
        unroll<MR>([&](auto i) SVDQ_LAMBDA {
          acc[i] += weights[kk] * static_cast<int16_t>(x[(kk / 4 * MR + i) * 4 + kk % 4]);
        });
      }
      unroll<MR>([&](auto i) SVDQ_LAMBDA { total[i] += __builtin_convertvector(acc[i], i32x16); });
    }
    const int8_t* x_scales = x + (GROUP + 4) * MR;
    const f32x16 scale = load_bf16(w_scale);
    unroll<MR>([&](auto i) SVDQ_LAMBDA {
      float* sum = tile_sums.values + i * 16;
      const f32x16 group_sum = {__builtin_convertvector(total[i], decltype(f32x16::v))};
      store(sum, fma(group_sum * scale, set1(load_f32(x_scales + 4 * i)), load(sum)));
    });
    x += (GROUP + 8) * MR;
    w += GROUP * 8;
    w_scale += 16;
  }
  tile_sums.end(args);
}

#endif

/* Calls run<MR>() for the tile size `rows`, which is one of kRowTiles. */
template <template <int> class Run, int INDEX = 0, typename... Args>
SVDQ_INLINE void for_tile_rows(int rows, const Args&... args) {
  if constexpr (INDEX < static_cast<int>(sizeof(kRowTiles) / sizeof(kRowTiles[0]))) {
    if (rows == kRowTiles[INDEX]) return Run<kRowTiles[INDEX]>::run(args...);
    for_tile_rows<Run, INDEX + 1>(rows, args...);
  }
}

template <int GROUP>
struct PackTile {
  template <int MR>
  struct Of {
    SVDQ_INLINE void run(int64_t k, const int8_t* codes, const float* x_scale, int8_t* packed) {
      pack_tile<GROUP, MR>(k, codes, x_scale, packed);
    }
  };
};

template <int GROUP, int LARGEST, int NR>
struct MultiplyTile {
  template <int MR>
  struct Of {
    SVDQ_INLINE void run(const TileArgs& args) { multiply_tile<GROUP, LARGEST, MR, NR>(args); }
  };
};

}  // namespace detail

/* codes [rows, k], x_scale [rows, k / GROUP]  ->  packed, packed_codes_bytes(rows, k, GROUP) bytes,
 * 4-aligned. */
template <int GROUP>
void pack_codes_s4(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale,
                   void* packed) {
  int8_t* tile = static_cast<int8_t*>(packed);
  for (int64_t row = 0; row < rows;) {
    const int mr = detail::tile_rows(rows - row);
    detail::for_tile_rows<detail::PackTile<GROUP>::template Of>(mr, k, codes + row * k,
                                                                x_scale + row * (k / GROUP), tile);
    tile += detail::packed_group_bytes<GROUP>(mr) * (k / GROUP);
    row += mr;
  }
}

template <int GROUP, ActRange RANGE>
void gemm_s4(int64_t rows, int64_t k, const void* packed, const uint8_t* w_packed,
             const uint16_t* w_scale, int64_t panel_begin, int64_t panel_end, float* out,
             int64_t ldo, bool accumulate) {
  static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "groups of 32, 64 or 128 along k");
  constexpr int kLargest = largest_code(RANGE);
  detail::TileArgs args;
  args.groups = k / GROUP;
  args.w_stride = k * 8;
  args.scale_stride = args.groups * 16;
  args.ldo = ldo;
  args.accumulate = accumulate;
  for (int64_t panel = panel_begin; panel < panel_end;) {
    const int64_t width = panel_end - panel >= detail::kPanelsAtOnce ? detail::kPanelsAtOnce : 1;
    const bool prefetchable = panel + 2 * width <= panel_end;
    args.w = w_packed + panel * args.w_stride;
    args.w_scale = w_scale + panel * args.scale_stride;
    args.packed = static_cast<const int8_t*>(packed);
    for (int64_t row = 0; row < rows;) {
      const int mr = detail::tile_rows(rows - row);
      args.out = out + row * ldo + (panel - panel_begin) * 16;
      args.prefetch_next = prefetchable && row + mr == rows;
      if (width == 1) {
        detail::for_tile_rows<detail::MultiplyTile<GROUP, kLargest, 1>::template Of>(mr, args);
      } else {
        detail::for_tile_rows<
            detail::MultiplyTile<GROUP, kLargest, detail::kPanelsAtOnce>::template Of>(mr, args);
      }
      args.packed += detail::packed_group_bytes<GROUP>(mr) * args.groups;
      row += mr;
    }
    panel += width;
  }
}

}  // namespace svdq

#endif
