/* The product of a linear whose weight alone is coded, in 4 bits, for a block of rows and a range
 * of 16-column panels.
 *
 *   out[m, n] (+)= sum_g  w_scale[n, g] * sum_{k in g} x[m, k] * value(w_codes[n, k])
 *
 * The inner sum is one chain of f32 fma in rising order of k, from 0; groups are added in rising
 * order, each by one fma. The bits depend on neither the rows nor the panels of a call.
 *
 * x          [rows, k] f32, row stride ldx
 * w_packed   "s4_n16k4" (S4Values) or "nf4_n16k4" (Nf4Values), as in gemm_s4.h
 * w_scale    "bf16_scale_n16", [panels, k / group, 16] bfloat16; 0 in columns past the last
 * out        [rows, 16 * (panel_end - panel_begin)] f32, row stride ldo, from panel_begin's column
 *
 * group is a multiple of 8. Weights are decoded in registers, so a product of few rows takes as
 * long as reading them.
 */
#ifndef SVDQ_CPU_GEMM_W4_H
#define SVDQ_CPU_GEMM_W4_H

#include "svdq_cpu/gemm_s4.h"

namespace svdq {

/* The sixteen numbers that nibbles stand for. */
struct S4Values {
  static constexpr float kTable[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
};

/* The quantiles of QLoRA: svdqc.compiler.quantize.formats.NF4_VALUES. */
struct Nf4Values {
  static constexpr float kTable[16] = {
      -1.0f,
      -0.6961928009986877f,
      -0.5250730514526367f,
      -0.39491748809814453f,
      -0.28444138169288635f,
      -0.18477343022823334f,
      -0.09105003625154495f,
      0.0f,
      0.07958029955625534f,
      0.16093020141124725f,
      0.24611230194568634f,
      0.33791524171829224f,
      0.44070982933044434f,
      0.5626170039176941f,
      0.7229568362236023f,
      1.0f,
  };
};

namespace detail {

#if SVDQ_ISA_AVX512
constexpr int kTileRowsW4 = 12;
constexpr int kPanelsW4 = 2;
constexpr int kThinPanelsW4 = 4;  // one or two rows: more independent sums
#elif SVDQ_ISA_AVX2
constexpr int kTileRowsW4 = 4;
constexpr int kPanelsW4 = 1;
constexpr int kThinPanelsW4 = 2;
#else
constexpr int kTileRowsW4 = 2;
constexpr int kPanelsW4 = 1;
constexpr int kThinPanelsW4 = 1;
#endif

/* Eight steps of k of one panel are 64 bytes: [16][4], low nibbles for k = 0 .. 3, high ones for
 * the rest. Nibbles<V> holds them as 32-bit lanes and looks their lowest nibbles up. */
#if SVDQ_ISA_AVX512
template <class V>
struct Nibbles {
  typedef __m512 Table;
  __m512i lanes;
  SVDQ_INLINE Table table() { return _mm512_loadu_ps(V::kTable); }
  SVDQ_INLINE Nibbles load(const uint8_t* w) { return {_mm512_loadu_si512(w)}; }
  SVDQ_INLINE Nibbles load_high(const uint8_t* w) {
    return {_mm512_srli_epi32(_mm512_loadu_si512(w), 4)};
  }
  SVDQ_INLINE Nibbles next(Nibbles a) { return {_mm512_srli_epi32(a.lanes, 8)}; }
  /* The lookup reads the low four bits of each lane. */
  SVDQ_INLINE f32x16 values(Nibbles a, Table table) {
    return {_mm512_permutexvar_ps(a.lanes, table)};
  }
};
#elif SVDQ_ISA_AVX2
template <class V>
struct Nibbles {
  struct Table {
    __m256 low, high;
  };
  __m256i lo, hi;
  SVDQ_INLINE Table table() { return {_mm256_loadu_ps(V::kTable), _mm256_loadu_ps(V::kTable + 8)}; }
  SVDQ_INLINE Nibbles load(const uint8_t* w) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32))};
  }
  SVDQ_INLINE Nibbles load_high(const uint8_t* w) {
    const Nibbles a = load(w);
    return {_mm256_srli_epi32(a.lo, 4), _mm256_srli_epi32(a.hi, 4)};
  }
  SVDQ_INLINE Nibbles next(Nibbles a) {
    return {_mm256_srli_epi32(a.lo, 8), _mm256_srli_epi32(a.hi, 8)};
  }
  /* The lookups read three bits of each lane, and the blend the sign: bit 3 of the nibble. */
  SVDQ_INLINE __m256 half(__m256i lanes, Table table) {
    const __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, lanes),
                            _mm256_permutevar8x32_ps(table.high, lanes), sign);
  }
  SVDQ_INLINE f32x16 values(Nibbles a, Table table) {
    return {half(a.lo, table), half(a.hi, table)};
  }
};
#else
template <class V>
struct Nibbles {
  struct Table {};
  uint32_t lanes[16];
  SVDQ_INLINE Table table() { return {}; }
  SVDQ_INLINE Nibbles load(const uint8_t* w) {
    Nibbles a;
    memcpy(a.lanes, w, sizeof a.lanes);
    return a;
  }
  SVDQ_INLINE Nibbles load_high(const uint8_t* w) {
    Nibbles a = load(w);
    for (uint32_t& lane : a.lanes) lane >>= 4;
    return a;
  }
  SVDQ_INLINE Nibbles next(Nibbles a) {
    for (uint32_t& lane : a.lanes) lane >>= 8;
    return a;
  }
  SVDQ_INLINE f32x16 values(const Nibbles& a, Table) {
    float wide[16];
    for (int n = 0; n < 16; ++n) wide[n] = V::kTable[a.lanes[n] & 15];
    return svdq::load(wide);
  }
};
#endif

struct TileArgsW4 {
  int64_t groups, group;
  const float* x;
  int64_t ldx;
  const uint8_t* w;
  int64_t w_stride;  // bytes from panel to panel
  const uint16_t* w_scale;
  int64_t scale_stride;  // scales from panel to panel
  float* out;
  int64_t ldo;
  bool accumulate;
};

template <class V, int MR, int NR>
SVDQ_NOINLINE void multiply_tile_w4(const TileArgsW4& args) {
  typedef Nibbles<V> N;
  const auto table = N::table();
  const float* x = args.x;
  const uint8_t* w = args.w;
  for (int64_t g = 0; g < args.groups; ++g) {
    f32x16 sums[MR][NR];
    unroll<MR>([&](auto i)
                   SVDQ_LAMBDA { unroll<NR>([&](auto j) SVDQ_LAMBDA { sums[i][j] = zero(); }); });
    for (int64_t block = 0; block < args.group / 8; ++block) {
#pragma GCC unroll 1
      for (int half = 0; half < 2; ++half) {
        N nibbles[NR];
        unroll<NR>([&](auto j) SVDQ_LAMBDA {
          const uint8_t* at = w + j * args.w_stride;
          nibbles[j] = half == 0 ? N::load(at) : N::load_high(at);
        });
        unroll<4>([&](auto step) SVDQ_LAMBDA {
          f32x16 values[NR];
          unroll<NR>([&](auto j) SVDQ_LAMBDA {
            values[j] = N::values(nibbles[j], table);
            if (step < 3) nibbles[j] = N::next(nibbles[j]);
          });
          unroll<MR>([&](auto i) SVDQ_LAMBDA {
            const f32x16 a = set1(x[i * args.ldx + step]);
            unroll<NR>([&](auto j) SVDQ_LAMBDA { sums[i][j] = fma(a, values[j], sums[i][j]); });
          });
        });
        x += 4;
      }
      w += 64;
    }
    unroll<NR>([&](auto j) SVDQ_LAMBDA {
      const f32x16 scale = load_bf16(args.w_scale + j * args.scale_stride + g * 16);
      unroll<MR>([&](auto i) SVDQ_LAMBDA {
        float* to = args.out + i * args.ldo + j * 16;
        const f32x16 before = args.accumulate || g > 0 ? load(to) : zero();
        store(to, fma(sums[i][j], scale, before));
      });
    });
  }
}

template <class V, int NR>
struct MultiplyTileW4 {
  template <int MR>
  struct Of {
    SVDQ_INLINE void run(const TileArgsW4& args) { multiply_tile_w4<V, MR, NR>(args); }
  };
};

/* All panels of MR rows, NR at a time, then fewer. */
template <class V, int MR, int NR>
SVDQ_INLINE void multiply_panels_w4(TileArgsW4 args, int rows, int64_t panels) {
  for (; panels >= NR; panels -= NR) {
    for_cut_rows<MultiplyTileW4<V, NR>::template Of, MR>(rows, args);
    args.w += NR * args.w_stride;
    args.w_scale += NR * args.scale_stride;
    args.out += NR * 16;
  }
  if constexpr (NR > 1) multiply_panels_w4<V, MR, NR / 2>(args, rows, panels);
}

constexpr int64_t kSliceW4 = 256;  // of k: the inputs of a tile, 12 KB, stay in the first level
constexpr int64_t kBlockPanelsW4 = 64;  // of such a slice: 128 KB of weights

/* Many rows. Inputs are copied, a tile at a time: rows of a large matrix lie in the same sets of
 * the cache. */
template <class V>
SVDQ_NOINLINE void multiply_blocks_w4(const TileArgsW4& whole, int64_t rows, int64_t panels) {
  constexpr int64_t kStride = kSliceW4 + 16;
  alignas(64) float tile[kTileRowsW4 * kStride];
  const bool fits = whole.group <= kSliceW4;
  const int64_t slice = fits ? kSliceW4 / whole.group : 1;
  for (int64_t g = 0; g < whole.groups; g += slice) {
    TileArgsW4 args = whole;
    args.groups = slice < whole.groups - g ? slice : whole.groups - g;
    args.accumulate = whole.accumulate || g > 0;
    const int64_t k = args.groups * whole.group;
    for (int64_t panel = 0; panel < panels; panel += kBlockPanelsW4) {
      const int64_t count = panels - panel < kBlockPanelsW4 ? panels - panel : kBlockPanelsW4;
      args.w = whole.w + panel * whole.w_stride + g * whole.group * 8;
      args.w_scale = whole.w_scale + panel * whole.scale_stride + g * 16;
      for (int64_t row = 0; row < rows;) {
        const int mr = cut_rows(rows - row, kTileRowsW4);
        args.x = whole.x + row * whole.ldx + g * whole.group;
        args.ldx = whole.ldx;
        if (fits) {
          for (int64_t i = 0; i < mr; ++i) {
            memcpy(tile + i * kStride, args.x + i * args.ldx,
                   static_cast<size_t>(k) * sizeof(float));
          }
          args.x = tile;
          args.ldx = kStride;
        }
        args.out = whole.out + row * whole.ldo + panel * 16;
        multiply_panels_w4<V, kTileRowsW4, kPanelsW4>(args, mr, count);
        row += mr;
      }
    }
  }
}

}  // namespace detail

template <class V>
void gemm_w4(int64_t rows, int64_t k, int64_t group, const float* x, int64_t ldx,
             const uint8_t* w_packed, const uint16_t* w_scale, int64_t panel_begin,
             int64_t panel_end, float* out, int64_t ldo, bool accumulate) {
  detail::TileArgsW4 args;
  args.groups = k / group;
  args.group = group;
  args.x = x;
  args.ldx = ldx;
  args.w_stride = k * 8;
  args.w = w_packed + panel_begin * args.w_stride;
  args.scale_stride = args.groups * 16;
  args.w_scale = w_scale + panel_begin * args.scale_stride;
  args.out = out;
  args.ldo = ldo;
  args.accumulate = accumulate;
  const int64_t panels = panel_end - panel_begin;
  if (rows > 2) {
    detail::multiply_blocks_w4<V>(args, rows, panels);
  } else if (rows > 0) {
    detail::multiply_panels_w4<V, 2, detail::kThinPanelsW4>(args, static_cast<int>(rows), panels);
  }
}

}  // namespace svdq

#endif
