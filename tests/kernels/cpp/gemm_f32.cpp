// The matrix kernels of gemm_f32.h and pack_f32.h behind a C interface.
#include "svdq_cpu/gemm_f32.h"

#define GEMM(name, X, W)                                                                          \
  extern "C" void run_##name(int64_t rows, int64_t k, const X* x, int64_t ldx, const W* w_packed, \
                             int64_t panel_begin, int64_t panel_end, float* out, int64_t ldo,     \
                             int64_t accumulate) {                                                \
    svdq::name(rows, k, x, ldx, w_packed, panel_begin, panel_end, out, ldo, accumulate != 0);     \
  }
GEMM(gemm_f32, float, float)
GEMM(gemm_wbf16, float, uint16_t)
GEMM(gemm_wf16, float, uint16_t)
GEMM(gemm_bf16dot, uint16_t, uint16_t)

extern "C" void run_gemm_f32_strided(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                     const float* w_packed, int64_t panel_stride,
                                     int64_t panel_begin, int64_t panel_end, float* out,
                                     int64_t ldo, int64_t accumulate) {
  svdq::gemm_f32_strided(rows, k, x, ldx, w_packed, panel_stride, panel_begin, panel_end, out, ldo,
                         accumulate != 0);
}

extern "C" void run_pack_b(int64_t k, int64_t n, const float* b, int64_t stride_k, int64_t stride_n,
                           float* out) {
  svdq::pack_b(k, n, b, stride_k, stride_n, out);
}

extern "C" void run_round_rows_bf16(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                    uint16_t* out, int64_t ldo) {
  svdq::round_rows_bf16(rows, k, x, ldx, out, ldo);
}
