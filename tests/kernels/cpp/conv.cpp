// The convolutions of conv.h behind a C interface; `numbers` are the fields of ConvArgs from
// `channels` on, in order.
#include "svdq_cpu/conv.h"

static svdq::ConvArgs conv_args(const float* x, const int64_t* numbers) {
  svdq::ConvArgs args;
  args.x = x;
  int64_t* const fields[] = {
      &args.channels, &args.x_n,   &args.x_c,   &args.x_d,      &args.x_h,      &args.x_w,
      &args.in_d,     &args.in_h,  &args.in_w,  &args.out_d,    &args.out_h,    &args.out_w,
      &args.k_d,      &args.k_h,   &args.k_w,   &args.stride_d, &args.stride_h, &args.stride_w,
      &args.pad_d,    &args.pad_h, &args.pad_w, &args.dil_d,    &args.dil_h,    &args.dil_w};
  for (int64_t* field : fields) *field = *numbers++;
  args.transposed = *numbers != 0;
  return args;
}

extern "C" int64_t conv_scratch(int64_t rows, int64_t channels) {
  return svdq::conv_scratch_bytes(rows, channels);
}

#define CONV(name, W)                                                                            \
  extern "C" void run_##name(const float* x, const int64_t* numbers, int64_t row_begin,          \
                             int64_t row_end, const W* w_packed, int64_t panel_begin,            \
                             int64_t panel_end, float* out, int64_t ldo, void* scratch) {        \
    svdq::name(conv_args(x, numbers), row_begin, row_end, w_packed, panel_begin, panel_end, out, \
               ldo, scratch);                                                                    \
  }
CONV(conv_rows_f32, float)
CONV(conv_rows_wbf16, uint16_t)
CONV(conv_rows_wf16, uint16_t)

extern "C" void run_im2col_rows(const float* x, const int64_t* numbers, int64_t row_begin,
                                int64_t row_end, int64_t tap_begin, int64_t tap_end, float* out,
                                int64_t ldo) {
  svdq::im2col_rows(conv_args(x, numbers), row_begin, row_end, tap_begin, tap_end, out, ldo);
}

extern "C" void run_depthwise_rows_f32(const float* x, const int64_t* numbers, int64_t row_begin,
                                       int64_t row_end, const float* w, int64_t c_begin,
                                       int64_t c_end, float* out, int64_t ldo) {
  svdq::depthwise_rows_f32(conv_args(x, numbers), row_begin, row_end, w, c_begin, c_end, out, ldo);
}
