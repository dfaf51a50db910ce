// The kernels of the formats beside int4, behind C names.
#include "svdq_cpu/gemm_e4m3.h"
#include "svdq_cpu/gemm_s8.h"
#include "svdq_cpu/gemm_w4.h"
#include "svdq_cpu/quantize_formats.h"

#define QUANTIZE(NAME, ROTATE)                                                                     \
  extern "C" void quantize_s8##NAME(int64_t rows, int64_t k, const float* x, int64_t ldx,          \
                                    const float* inv_smooth, float shift, float* x_hat,            \
                                    int64_t ld_hat, int8_t* codes, float* x_scale) {               \
    svdq::quantize_s8<ROTATE>(rows, k, x, ldx, inv_smooth, shift, x_hat, ld_hat, codes, x_scale);  \
  }                                                                                                \
  extern "C" void quantize_e4m3##NAME(int64_t rows, int64_t k, const float* x, int64_t ldx,        \
                                      const float* inv_smooth, float shift, float* x_hat,          \
                                      int64_t ld_hat, uint8_t* codes, float* x_scale) {            \
    svdq::quantize_e4m3<ROTATE>(rows, k, x, ldx, inv_smooth, shift, x_hat, ld_hat, codes,          \
                                x_scale);                                                          \
  }                                                                                                \
  extern "C" void quantize_e2m1##NAME(int64_t rows, int64_t k, const float* x, int64_t ldx,        \
                                      const float* inv_smooth, float shift, float* x_hat,          \
                                      int64_t ld_hat, int8_t* codes, float* x_scale,               \
                                      const float* largest, int64_t count, float tensor_scale) {   \
    svdq::quantize_e2m1<ROTATE>(rows, k, x, ldx, inv_smooth, shift, x_hat, ld_hat, codes, x_scale, \
                                largest, count, tensor_scale);                                     \
  }

QUANTIZE(, false)
QUANTIZE(_rotated, true)

extern "C" int64_t packed_codes_s8_bytes(int64_t rows, int64_t k) {
  return svdq::packed_codes_s8_bytes(rows, k);
}

// Each writes rows x 16 * (end - begin) columns at out; `accumulate` adds to what is there.
extern "C" void gemm_int8(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale,
                          const uint8_t* w, const uint16_t* w_scale, int64_t begin, int64_t end,
                          float* out, int64_t ldo, int64_t accumulate, void* packed) {
  svdq::pack_codes_s8(rows, k, codes, x_scale, packed);
  svdq::gemm_s8_onto(rows, k, packed, w, w_scale, begin, end, out, ldo, accumulate != 0,
                     [](int64_t, int64_t, float*) {});
}

extern "C" void gemm_w4a8(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale,
                          const uint8_t* w, const uint16_t* w_scale, int64_t begin, int64_t end,
                          float* out, int64_t ldo, int64_t accumulate, void* packed,
                          const int8_t* multiplier) {
  svdq::pack_codes<64, svdq::S4Multiplied>(rows, k, codes, x_scale, true, 1.0f, packed);
  svdq::gemm_codes_onto<64, 127, svdq::S4Multiplied>(
      rows, k, packed, w, multiplier, begin, end, out, ldo, accumulate != 0,
      [](int64_t, int64_t, float*) {}, w_scale);
}

extern "C" void gemm_nvfp4(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale,
                           const uint8_t* w, const uint8_t* w_scale, int64_t begin, int64_t end,
                           float* out, int64_t ldo, int64_t accumulate, void* packed, float unit) {
  svdq::pack_codes<16, svdq::E2m1Weights>(rows, k, codes, x_scale, false, unit, packed);
  svdq::gemm_codes_onto<16, 12, svdq::E2m1Weights>(rows, k, packed, w, w_scale, begin, end, out,
                                                   ldo, accumulate != 0,
                                                   [](int64_t, int64_t, float*) {});
}

extern "C" void gemm_fp8(int64_t rows, int64_t k, const uint8_t* codes, const float* x_scale,
                         const uint8_t* w, const uint16_t* w_scale, int64_t begin, int64_t end,
                         float* out, int64_t ldo, int64_t, void* decoded) {
  float* x = static_cast<float*>(decoded);
  svdq::decode_e4m3_rows(rows, k, codes, x, k);
  svdq::gemm_e4m3(rows, k, x, k, x_scale, w, w_scale, begin, end, out, ldo);
}

extern "C" void gemm_s4_values(int64_t rows, int64_t k, int64_t group, const float* x, int64_t ldx,
                               const uint8_t* w, const uint16_t* w_scale, int64_t begin,
                               int64_t end, float* out, int64_t ldo, int64_t accumulate) {
  svdq::gemm_w4<svdq::S4Values>(rows, k, group, x, ldx, w, w_scale, begin, end, out, ldo,
                                accumulate != 0);
}

extern "C" void gemm_nf4_values(int64_t rows, int64_t k, int64_t group, const float* x, int64_t ldx,
                                const uint8_t* w, const uint16_t* w_scale, int64_t begin,
                                int64_t end, float* out, int64_t ldo, int64_t accumulate) {
  svdq::gemm_w4<svdq::Nf4Values>(rows, k, group, x, ldx, w, w_scale, begin, end, out, ldo,
                                 accumulate != 0);
}
