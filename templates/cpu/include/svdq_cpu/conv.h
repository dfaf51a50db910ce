// conv.h: convolutions over one to three dimensions as matrix products.
//
//   out[r][n] = sum over taps t and channels c of x[pixel(r, t)][c] * w[n][t][c]
//
// r counts output pixels, r = ((image * out_d + d) * out_h + h) * out_w + w; t counts taps, t = (kd
// * k_h + kh) * k_w + kw. x rows are gathered a slice of taps at a time into scratch, which the
// matrix kernel then reads while it is in cache; outside the input they are 0. One-dimensional: d =
// h = 1. Two-dimensional: d = 1. Groups: one call each, x at the group's first channel. Transposed:
// tap t of output pixel o reads input pixel i where i * stride = o + pad - t * dil, if there is
// one.
#ifndef SVDQ_CPU_CONV_H
#define SVDQ_CPU_CONV_H

#include "svdq_cpu/gemm_f32.h"

namespace svdq {

struct ConvArgs {
  const float* x;
  int64_t channels;                                     // input channels of the group
  int64_t x_n = 0, x_c = 1, x_d = 0, x_h = 0, x_w = 0;  // strides in elements; fast where x_c is 1
  int64_t in_d = 1, in_h = 1, in_w = 1;
  int64_t out_d = 1, out_h = 1, out_w = 1;
  int64_t k_d = 1, k_h = 1, k_w = 1;
  int64_t stride_d = 1, stride_h = 1, stride_w = 1;
  int64_t pad_d = 0, pad_h = 0, pad_w = 0;
  int64_t dil_d = 1, dil_h = 1, dil_w = 1;
  bool transposed = false;

  int64_t num_taps() const { return k_d * k_h * k_w; }
};

constexpr int64_t kConvSlice =
    1024;  // channels x taps that are gathered at a time, unless one tap has more

constexpr int64_t conv_scratch_bytes(int64_t rows, int64_t channels) {
  return 4 * rows * (channels > kConvSlice ? channels : kConvSlice);
}

namespace detail {

struct ConvPixel {
  int64_t image, d, h, w;
};

SVDQ_INLINE ConvPixel conv_pixel(const ConvArgs& args, int64_t row) {
  ConvPixel p;
  p.w = row % args.out_w;
  row /= args.out_w;
  p.h = row % args.out_h;
  row /= args.out_h;
  p.d = row % args.out_d;
  p.image = row / args.out_d;
  return p;
}

SVDQ_INLINE void next_pixel(const ConvArgs& args, ConvPixel* p) {
  if (++p->w < args.out_w) return;
  p->w = 0;
  if (++p->h < args.out_h) return;
  p->h = 0;
  if (++p->d < args.out_d) return;
  p->d = 0;
  ++p->image;
}

// The input coordinate that tap k of output coordinate o reads, or -1 where there is none.
SVDQ_INLINE int64_t conv_input(int64_t o, int64_t k, int64_t stride, int64_t pad, int64_t dil,
                               int64_t size, bool transposed) {
  int64_t i = o * stride - pad + k * dil;
  if (transposed) {
    i = o + pad - k * dil;
    i = i >= 0 && i % stride == 0 ? i / stride : -1;
  }
  return i < size ? i : -1;
}

// Where tap (kd, kh, 0)'s line of the input starts, or null where it lies outside.
SVDQ_INLINE const float* conv_line(const ConvArgs& args, const ConvPixel& p, int64_t kd,
                                   int64_t kh) {
  const int64_t d =
      conv_input(p.d, kd, args.stride_d, args.pad_d, args.dil_d, args.in_d, args.transposed);
  const int64_t h =
      conv_input(p.h, kh, args.stride_h, args.pad_h, args.dil_h, args.in_h, args.transposed);
  if (d < 0 || h < 0) return nullptr;
  return args.x + p.image * args.x_n + d * args.x_d + h * args.x_h;
}

SVDQ_INLINE int64_t conv_column(const ConvArgs& args, const ConvPixel& p, int64_t kw) {
  return conv_input(p.w, kw, args.stride_w, args.pad_w, args.dil_w, args.in_w, args.transposed);
}

SVDQ_INLINE void copy_channels(const float* x, int64_t stride, int64_t count, float* out) {
  if (stride == 1) {
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) store(out + c, load(x + c));
    for (; c < count; ++c) out[c] = x[c];
  } else {
    for (int64_t c = 0; c < count; ++c) out[c] = x[c * stride];
  }
}

SVDQ_INLINE void gather_pixel(const ConvArgs& args, const ConvPixel& p, int64_t tap_begin,
                              int64_t tap_end, float* out) {
  const bool dense =
      args.x_c == 1 && args.x_w == args.channels && args.dil_w == 1 && !args.transposed;
  for (int64_t tap = tap_begin; tap < tap_end;) {
    const int64_t kw = tap % args.k_w;
    const int64_t line_taps = min_i64(args.k_w - kw, tap_end - tap);
    const float* line = conv_line(args, p, tap / args.k_w / args.k_h, tap / args.k_w % args.k_h);
    const int64_t first = p.w * args.stride_w - args.pad_w + kw;
    if (line == nullptr) {
      memset(out, 0, static_cast<size_t>(line_taps * args.channels) * sizeof(float));
    } else if (dense && first >= 0 && first + line_taps <= args.in_w) {
      copy_channels(line + first * args.x_w, 1, line_taps * args.channels, out);
    } else {
      for (int64_t i = 0; i < line_taps; ++i) {
        const int64_t w = conv_column(args, p, kw + i);
        float* pixel = out + i * args.channels;
        if (w >= 0) {
          copy_channels(line + w * args.x_w, args.x_c, args.channels, pixel);
        } else {
          memset(pixel, 0, static_cast<size_t>(args.channels) * sizeof(float));
        }
      }
    }
    out += line_taps * args.channels;
    tap += line_taps;
  }
}

// Rows of `count` output pixels side by side, where x is planar (x_w = 1): channels x pixels are
// transposed 16 x 16 at a time.
SVDQ_INLINE void gather_planar_line(const ConvArgs& args, const ConvPixel& p, int64_t count,
                                    int64_t tap_begin, int64_t tap_end, float* out, int64_t ldo) {
  for (int64_t tap = tap_begin; tap < tap_end; ++tap, out += args.channels) {
    const float* line = conv_line(args, p, tap / args.k_w / args.k_h, tap / args.k_w % args.k_h);
    const int64_t column = p.w - args.pad_w + tap % args.k_w * args.dil_w;  // of the first pixel
    const int64_t begin = line == nullptr ? count : min_i64(count, max_i64(0, -column));
    const int64_t end =
        line == nullptr ? count : max_i64(begin, min_i64(count, args.in_w - column));
    for (int64_t i = 0; i < count; ++i) {
      if (i < begin || i >= end)
        memset(out + i * ldo, 0, static_cast<size_t>(args.channels) * sizeof(float));
    }
    int64_t i = begin;
    for (; i + 16 <= end; i += 16) {
      const float* x = line + column + i;
      int64_t c = 0;
      for (; c + 16 <= args.channels; c += 16)
        transpose16(x + c * args.x_c, args.x_c, out + i * ldo + c, ldo);
      for (; c < args.channels; ++c) {
        for (int64_t j = 0; j < 16; ++j) out[(i + j) * ldo + c] = x[c * args.x_c + j];
      }
    }
    for (; i < end; ++i) copy_channels(line + column + i, args.x_c, args.channels, out + i * ldo);
  }
}

// x's pixels are the rows of the product as they lie in memory.
SVDQ_INLINE bool conv_is_matmul(const ConvArgs& args) {
  const bool unit_steps = args.stride_d == 1 && args.stride_h == 1 && args.stride_w == 1;
  const bool no_pads = args.pad_d == 0 && args.pad_h == 0 && args.pad_w == 0;
  const bool same_size =
      args.in_d == args.out_d && args.in_h == args.out_h && args.in_w == args.out_w;
  const bool rows = args.x_c == 1 && (args.in_h == 1 || args.x_h == args.x_w * args.in_w) &&
                    (args.in_d == 1 || args.x_d == args.x_w * args.in_w * args.in_h);
  return args.num_taps() == 1 && unit_steps && no_pads && same_size && rows;
}

}  // namespace detail

// out[row - row_begin][(tap - tap_begin) * channels + c], rows ldo apart.
SVDQ_OUTLINE void im2col_rows(const ConvArgs& args, int64_t row_begin, int64_t row_end,
                              int64_t tap_begin, int64_t tap_end, float* out, int64_t ldo) {
  detail::ConvPixel pixel = detail::conv_pixel(args, row_begin);
  const bool planar = args.x_c != 1 && args.x_w == 1 && args.stride_w == 1 && !args.transposed;
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t count = planar ? min_i64(row_end - row, args.out_w - pixel.w) : 1;
    if (planar) {
      detail::gather_planar_line(args, pixel, count, tap_begin, tap_end, out, ldo);
      pixel.w += count - 1;
    } else {
      detail::gather_pixel(args, pixel, tap_begin, tap_end, out);
    }
    detail::next_pixel(args, &pixel);
    row += count;
    out += count * ldo;
  }
}

namespace detail {

template <class F>
SVDQ_INLINE void conv_rows(const ConvArgs& args, int64_t row_begin, int64_t row_end,
                           const typename F::W* w_packed, int64_t panel_begin, int64_t panel_end,
                           float* out, int64_t ldo, void* scratch) {
  const int64_t channels = args.channels;
  const int64_t num_taps = args.num_taps();
  const int64_t panel_stride = num_taps * channels * kLanes;
  if (conv_is_matmul(args)) {
    // A call's rows may span images, whose distance is free.
    const int64_t image_rows = args.out_d * args.out_h * args.out_w;
    for (int64_t row = row_begin; row < row_end;) {
      const int64_t end = min_i64(row_end, round_up(row + 1, image_rows));
      const float* x = args.x + row / image_rows * args.x_n + row % image_rows * args.x_w;
      gemm_strided<F>(end - row, channels, x, args.x_w, w_packed, panel_stride, panel_begin,
                      panel_end, out + (row - row_begin) * ldo, ldo, false);
      row = end;
    }
    return;
  }
  float* x_rows = static_cast<float*>(scratch);
  const int64_t slice_taps = max_i64(1, kConvSlice / channels);
  for (int64_t tap = 0; tap < num_taps; tap += slice_taps) {
    const int64_t tap_end = min_i64(num_taps, tap + slice_taps);
    const int64_t k = (tap_end - tap) * channels;
    im2col_rows(args, row_begin, row_end, tap, tap_end, x_rows, k);
    gemm_strided<F>(row_end - row_begin, k, x_rows, k, w_packed + tap * channels * kLanes,
                    panel_stride, panel_begin, panel_end, out, ldo, tap > 0);
  }
}

}  // namespace detail

// out[row - row_begin][columns of panels [panel_begin, panel_end)], overwritten; scratch:
// conv_scratch_bytes(rows, channels). w_packed [ceil(N/16)][taps * channels][16] of one group.
SVDQ_INLINE void conv_rows_f32(const ConvArgs& args, int64_t row_begin, int64_t row_end,
                               const float* w_packed, int64_t panel_begin, int64_t panel_end,
                               float* out, int64_t ldo, void* scratch) {
  detail::conv_rows<detail::WeightF32>(args, row_begin, row_end, w_packed, panel_begin, panel_end,
                                       out, ldo, scratch);
}

SVDQ_INLINE void conv_rows_wbf16(const ConvArgs& args, int64_t row_begin, int64_t row_end,
                                 const uint16_t* w_packed, int64_t panel_begin, int64_t panel_end,
                                 float* out, int64_t ldo, void* scratch) {
  detail::conv_rows<detail::WeightBf16>(args, row_begin, row_end, w_packed, panel_begin, panel_end,
                                        out, ldo, scratch);
}

SVDQ_INLINE void conv_rows_wf16(const ConvArgs& args, int64_t row_begin, int64_t row_end,
                                const uint16_t* w_packed, int64_t panel_begin, int64_t panel_end,
                                float* out, int64_t ldo, void* scratch) {
  detail::conv_rows<detail::WeightF16>(args, row_begin, row_end, w_packed, panel_begin, panel_end,
                                       out, ldo, scratch);
}

// One filter per channel: out[row - row_begin][c - c_begin] for c in [c_begin, c_end). w f32
// [taps][channels].
SVDQ_OUTLINE void depthwise_rows_f32(const ConvArgs& args, int64_t row_begin, int64_t row_end,
                                     const float* w, int64_t c_begin, int64_t c_end, float* out,
                                     int64_t ldo) {
  detail::ConvPixel pixel = detail::conv_pixel(args, row_begin);
  const int64_t width = c_end - c_begin;
  for (int64_t row = row_begin; row < row_end; ++row, out += ldo) {
    memset(out, 0, static_cast<size_t>(width) * sizeof(float));
    for (int64_t tap = 0; tap < args.num_taps(); ++tap) {
      const float* line =
          detail::conv_line(args, pixel, tap / args.k_w / args.k_h, tap / args.k_w % args.k_h);
      const int64_t column = detail::conv_column(args, pixel, tap % args.k_w);
      if (line == nullptr || column < 0) continue;
      const float* x = line + column * args.x_w + c_begin * args.x_c;
      const float* filter = w + tap * args.channels + c_begin;
      int64_t c = 0;
      if (args.x_c == 1) {
        for (; c + kLanes <= width; c += kLanes) {
          store(out + c, fma(load(x + c), load(filter + c), load(out + c)));
        }
      }
      for (; c < width; ++c) out[c] = mad(x[c * args.x_c], filter[c], out[c]);
    }
    detail::next_pixel(args, &pixel);
  }
}

}  // namespace svdq

#endif  // SVDQ_CPU_CONV_H
