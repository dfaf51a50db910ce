// gemm_f32.h: out[r][n] (+)= sum_k x[r][k] * w[n][k] with f32 sums, for weights of 32 or 16 bits.
//
//   x         f32 [rows][ldx]
//   w_packed  [ceil(N/16)][K][16]            f32, bf16 or f16: a panel is 16 columns, zero padded
//             [ceil(N/16)][ceil(K/2)][16][2] bf16 for gemm_bf16dot, which takes x rounded to bf16
//   out       f32 [rows][ldo], columns of panels [panel_begin, panel_end) from column 0; whole
//             panels are written
//
// Each output is one chain of fma over k = 0, 1, ..., K-1 in that order, so its bits depend neither
// on the tile it falls into nor on how rows, panels or K are split over calls (K: when the later
// call accumulates).
//
// Loops: K in slices that keep a slice of two panels in L1/L2, then panels, then rows in register
// tiles of kTileRows x kTilePanels * 16. Zen 4 issues one 512-bit fma a cycle; a 12 x 32 tile takes
// 24 of them for 2 loads and 12 broadcasts.
#ifndef SVDQ_CPU_GEMM_F32_H
#define SVDQ_CPU_GEMM_F32_H

#include "svdq_cpu/pack_f32.h"

namespace svdq {

namespace detail {

#if SVDQ_ISA_AVX512
constexpr int kTileRows = 12;
constexpr int kTilePanels = 2;
constexpr int kThinPanels =
    4;  // for tiles of one or two rows: more independent sums, more streams from memory
#elif SVDQ_ISA_AVX2
constexpr int kTileRows = 6;
constexpr int kTilePanels = 1;
constexpr int kThinPanels = 2;
#else
constexpr int kTileRows = 2;
constexpr int kTilePanels = 1;
constexpr int kThinPanels = 1;
#endif
constexpr int64_t kKSlice = 512;
constexpr int64_t kBlockPanels = 12;  // of a K slice: 384 KB of f32 weights
constexpr int64_t kPrefetchSteps =
    32;  // ahead in each panel; the hardware stops at a page's end, every 64 f32 steps

// A format says how one step of the tile loop reads x (A), a panel row (B), and multiplies them.
// kStep is its number of k.
struct WeightF32 {
  typedef float X;
  typedef float W;
  typedef f32x16 A;
  typedef f32x16 B;
  static constexpr int kStep = 1;
  SVDQ_INLINE A broadcast(const X* x) { return set1(*x); }
  SVDQ_INLINE B widen(const W* w) { return load(w); }
  SVDQ_INLINE f32x16 mac(A a, B b, f32x16 acc) { return fma(a, b, acc); }
};

struct WeightBf16 : WeightF32 {
  typedef uint16_t W;
  SVDQ_INLINE B widen(const W* w) { return load_bf16(w); }
};

struct WeightF16 : WeightF32 {
  typedef uint16_t W;
  SVDQ_INLINE B widen(const W* w) { return load_f16(w); }
};

// Pairs of bf16 on both sides. vdpbf16ps flushes subnormals and sums a pair in its own order;
// elsewhere: even k, then odd.
struct DotBf16 {
  typedef uint16_t X;
  typedef uint16_t W;
  static constexpr int kStep = 2;
#if SVDQ_BF16_DOT
  typedef __m512bh A;
  typedef __m512bh B;
  SVDQ_INLINE A broadcast(const X* x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (A)_mm512_set1_epi32(pair);
  }
  SVDQ_INLINE B widen(const W* w) { return (B)_mm512_loadu_si512(w); }
  SVDQ_INLINE f32x16 mac(A a, B b, f32x16 acc) { return {_mm512_dpbf16_ps(acc.v, a, b)}; }
#else
  struct Pair {
    f32x16 even, odd;
  };
  typedef Pair A;
  typedef Pair B;
  SVDQ_INLINE A broadcast(const X* x) { return {set1(bf16_to_f32(x[0])), set1(bf16_to_f32(x[1]))}; }
  SVDQ_INLINE B widen(const W* w) { return {even_bf16(w), odd_bf16(w)}; }
  SVDQ_INLINE f32x16 mac(A a, B b, f32x16 acc) {
    return fma(a.odd, b.odd, fma(a.even, b.even, acc));
  }

 private:
#if SVDQ_ISA_AVX512
  SVDQ_INLINE __m512i pairs(const W* w) { return _mm512_loadu_si512(w); }
  SVDQ_INLINE f32x16 even_bf16(const W* w) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs(w), 16))};
  }
  SVDQ_INLINE f32x16 odd_bf16(const W* w) {
    return {_mm512_castsi512_ps(_mm512_andnot_si512(_mm512_set1_epi32(0xffff), pairs(w)))};
  }
#elif SVDQ_ISA_AVX2
  SVDQ_INLINE __m256i pairs(const W* w) { return _mm256_loadu_si256((const __m256i*)w); }
  SVDQ_INLINE __m256 even8(const W* w) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs(w), 16));
  }
  SVDQ_INLINE __m256 odd8(const W* w) {
    return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_set1_epi32(0xffff), pairs(w)));
  }
  SVDQ_INLINE f32x16 even_bf16(const W* w) { return {even8(w), even8(w + 16)}; }
  SVDQ_INLINE f32x16 odd_bf16(const W* w) { return {odd8(w), odd8(w + 16)}; }
#else
  SVDQ_INLINE f32x16 strided(const W* w) {
    float wide[kLanes];
    for (int i = 0; i < kLanes; ++i) wide[i] = bf16_to_f32(w[2 * i]);
    return load(wide);
  }
  SVDQ_INLINE f32x16 even_bf16(const W* w) { return strided(w); }
  SVDQ_INLINE f32x16 odd_bf16(const W* w) { return strided(w + 1); }
#endif
#endif
};

// One register tile: ROWS x PANELS * 16 outputs, `steps` steps of K.
template <class F, int ROWS, int PANELS>
SVDQ_OUTLINE void gemm_tile(int64_t steps, const typename F::X* x, int64_t ldx,
                            const typename F::W* w, int64_t panel_stride, float* out, int64_t ldo,
                            bool accumulate) {
  f32x16 acc[ROWS][PANELS];
  unroll<ROWS>([&](auto i) SVDQ_LAMBDA {
    unroll<PANELS>([&](auto j) SVDQ_LAMBDA {
      acc[i][j] = accumulate ? load(out + i * ldo + j * kLanes) : zero();
    });
  });
#pragma GCC unroll 4
  for (int64_t step = 0; step < steps; ++step) {
    typename F::B b[PANELS];
    unroll<PANELS>([&](auto j) SVDQ_LAMBDA {
      b[j] = F::widen(w + j * panel_stride);
      __builtin_prefetch(w + j * panel_stride + kPrefetchSteps * F::kStep * kLanes);
    });
    unroll<ROWS>([&](auto i) SVDQ_LAMBDA {
      const typename F::A a = F::broadcast(x + i * ldx);
      unroll<PANELS>([&](auto j) SVDQ_LAMBDA { acc[i][j] = F::mac(a, b[j], acc[i][j]); });
    });
    x += F::kStep;
    w += F::kStep * kLanes;
  }
  unroll<ROWS>([&](auto i) SVDQ_LAMBDA {
    unroll<PANELS>([&](auto j) SVDQ_LAMBDA { store(out + i * ldo + j * kLanes, acc[i][j]); });
  });
}

// `rows` rows of PANELS panels, in tiles of ROWS and then of ever fewer rows.
template <class F, int ROWS, int PANELS>
SVDQ_INLINE void gemm_rows(int64_t rows, int64_t steps, const typename F::X* x, int64_t ldx,
                           const typename F::W* w, int64_t panel_stride, float* out, int64_t ldo,
                           bool accumulate) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) {
    gemm_tile<F, ROWS, PANELS>(steps, x + row * ldx, ldx, w, panel_stride, out + row * ldo, ldo,
                               accumulate);
  }
  if constexpr (ROWS > 1) {
    constexpr int kFewer = ROWS > 8 ? 8 : (ROWS > 4 ? 4 : ROWS / 2);
    gemm_rows<F, kFewer, PANELS>(rows - row, steps, x + row * ldx, ldx, w, panel_stride,
                                 out + row * ldo, ldo, accumulate);
  }
}

// All panels in [0, num_panels) at one K slice.
template <class F, int ROWS, int PANELS>
SVDQ_INLINE void gemm_slice(int64_t rows, int64_t steps, const typename F::X* x, int64_t ldx,
                            const typename F::W* w, int64_t panel_stride, int64_t num_panels,
                            float* out, int64_t ldo, bool accumulate) {
  int64_t panel = 0;
  for (; panel + PANELS <= num_panels; panel += PANELS) {
    gemm_rows<F, ROWS, PANELS>(rows, steps, x, ldx, w + panel * panel_stride, panel_stride,
                               out + panel * kLanes, ldo, accumulate);
  }
  if constexpr (PANELS > 1) {
    gemm_slice<F, ROWS, PANELS / 2>(rows, steps, x, ldx, w + panel * panel_stride, panel_stride,
                                    num_panels - panel, out + panel * kLanes, ldo, accumulate);
  }
}

// One K slice of all panels in [0, num_panels), many rows.
template <class F>
SVDQ_OUTLINE void gemm_blocks(int64_t rows, int64_t steps, const typename F::X* x, int64_t ldx,
                              const typename F::W* w, int64_t panel_stride, int64_t num_panels,
                              float* out, int64_t ldo, bool accumulate) {
  constexpr int64_t kStride = kKSlice + 64 / sizeof(typename F::X);  // an odd number of cache lines
  alignas(64) typename F::X x_tile[kTileRows * kStride];
  const size_t row_bytes = static_cast<size_t>(steps * F::kStep) * sizeof(typename F::X);
  for (int64_t panel = 0; panel < num_panels; panel += kBlockPanels) {
    const int64_t count = min_i64(kBlockPanels, num_panels - panel);
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t tile_rows = min_i64(kTileRows, rows - row);
      for (int64_t i = 0; i < tile_rows; ++i)
        memcpy(x_tile + i * kStride, x + (row + i) * ldx, row_bytes);
      gemm_slice<F, kTileRows, kTilePanels>(tile_rows, steps, x_tile, kStride,
                                            w + panel * panel_stride, panel_stride, count,
                                            out + row * ldo + panel * kLanes, ldo, accumulate);
    }
  }
}

template <class F>
SVDQ_INLINE void gemm_strided(int64_t rows, int64_t k, const typename F::X* x, int64_t ldx,
                              const typename F::W* w, int64_t panel_stride, int64_t panel_begin,
                              int64_t panel_end, float* out, int64_t ldo, bool accumulate) {
  const int64_t steps = ceil_div(k, F::kStep);
  constexpr int64_t kSliceSteps = kKSlice / F::kStep;
  w += panel_begin * panel_stride;
  int64_t first = 0;
  do {  // at least once: k = 0 writes zeros
    const int64_t count = min_i64(kSliceSteps, steps - first);
    const typename F::X* x_slice = x + first * F::kStep;
    const typename F::W* w_slice = w + first * F::kStep * kLanes;
    const bool add = accumulate || first > 0;
    if (kThinPanels > kTilePanels && rows <= 2) {
      gemm_slice<F, 2, kThinPanels>(rows, count, x_slice, ldx, w_slice, panel_stride,
                                    panel_end - panel_begin, out, ldo, add);
    } else {
      gemm_blocks<F>(rows, count, x_slice, ldx, w_slice, panel_stride, panel_end - panel_begin, out,
                     ldo, add);
    }
    first += count;
  } while (first < steps);
}

}  // namespace detail

// The weights' panels are `panel_stride` elements apart: x and w_packed may point into the middle
// of K.
SVDQ_INLINE void gemm_f32_strided(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                  const float* w_packed, int64_t panel_stride, int64_t panel_begin,
                                  int64_t panel_end, float* out, int64_t ldo, bool accumulate) {
  detail::gemm_strided<detail::WeightF32>(rows, k, x, ldx, w_packed, panel_stride, panel_begin,
                                          panel_end, out, ldo, accumulate);
}

SVDQ_INLINE void gemm_wbf16_strided(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                    const uint16_t* w_packed, int64_t panel_stride,
                                    int64_t panel_begin, int64_t panel_end, float* out, int64_t ldo,
                                    bool accumulate) {
  detail::gemm_strided<detail::WeightBf16>(rows, k, x, ldx, w_packed, panel_stride, panel_begin,
                                           panel_end, out, ldo, accumulate);
}

SVDQ_INLINE void gemm_wf16_strided(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                   const uint16_t* w_packed, int64_t panel_stride,
                                   int64_t panel_begin, int64_t panel_end, float* out, int64_t ldo,
                                   bool accumulate) {
  detail::gemm_strided<detail::WeightF16>(rows, k, x, ldx, w_packed, panel_stride, panel_begin,
                                          panel_end, out, ldo, accumulate);
}

SVDQ_INLINE void gemm_f32(int64_t rows, int64_t k, const float* x, int64_t ldx,
                          const float* w_packed, int64_t panel_begin, int64_t panel_end, float* out,
                          int64_t ldo, bool accumulate) {
  gemm_f32_strided(rows, k, x, ldx, w_packed, k * kLanes, panel_begin, panel_end, out, ldo,
                   accumulate);
}

SVDQ_INLINE void gemm_wbf16(int64_t rows, int64_t k, const float* x, int64_t ldx,
                            const uint16_t* w_packed, int64_t panel_begin, int64_t panel_end,
                            float* out, int64_t ldo, bool accumulate) {
  gemm_wbf16_strided(rows, k, x, ldx, w_packed, k * kLanes, panel_begin, panel_end, out, ldo,
                     accumulate);
}

SVDQ_INLINE void gemm_wf16(int64_t rows, int64_t k, const float* x, int64_t ldx,
                           const uint16_t* w_packed, int64_t panel_begin, int64_t panel_end,
                           float* out, int64_t ldo, bool accumulate) {
  gemm_wf16_strided(rows, k, x, ldx, w_packed, k * kLanes, panel_begin, panel_end, out, ldo,
                    accumulate);
}

// x from round_rows_bf16. Products of bf16 are exact; the sums are f32.
SVDQ_INLINE void gemm_bf16dot(int64_t rows, int64_t k, const uint16_t* x, int64_t ldx,
                              const uint16_t* w_packed, int64_t panel_begin, int64_t panel_end,
                              float* out, int64_t ldo, bool accumulate) {
  detail::gemm_strided<detail::DotBf16>(rows, k, x, ldx, w_packed, round_up(k, 2) * kLanes,
                                        panel_begin, panel_end, out, ldo, accumulate);
}

}  // namespace svdq

#endif  // SVDQ_CPU_GEMM_F32_H
