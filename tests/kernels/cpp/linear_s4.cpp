// The 4-bit path for every group size and range: quantize_s4, pack_codes_s4 and gemm_s4 behind C
// names.
#include "svdq_cpu/gemm_s4.h"

using svdq::ActRange;

#define QUANTIZE(NAME, GROUP, RANGE, ROTATE)                                                     \
  extern "C" void quantize_##NAME(int64_t rows, int64_t k, const float* x, int64_t ldx,          \
                                  const float* inv_smooth, float shift, float* x_hat,            \
                                  int64_t ld_hat, int8_t* codes, float* x_scale) {               \
    svdq::quantize_s4<GROUP, ActRange::RANGE, ROTATE>(rows, k, x, ldx, inv_smooth, shift, x_hat, \
                                                      ld_hat, codes, x_scale);                   \
  }

#define GEMM(GROUP, RANGE, NAME)                                                                \
  extern "C" void gemm_##NAME##_g##GROUP(                                                       \
      int64_t rows, int64_t k, const int8_t* codes, const float* x_scale, const uint8_t* w,     \
      const uint16_t* w_scale, int64_t panel_begin, int64_t panel_end, float* out, int64_t ldo, \
      int64_t accumulate, void* packed) {                                                       \
    svdq::pack_codes_s4<GROUP>(rows, k, codes, x_scale, packed);                                \
    svdq::gemm_s4<GROUP, ActRange::RANGE>(rows, k, packed, w, w_scale, panel_begin, panel_end,  \
                                          out, ldo, accumulate != 0);                           \
  }

#define GROUP_OF(GROUP)                                           \
  QUANTIZE(symmetric_g##GROUP, GROUP, Symmetric7, false)          \
  QUANTIZE(symmetric_g##GROUP##_rotated, GROUP, Symmetric7, true) \
  QUANTIZE(signed8_g##GROUP, GROUP, Signed8, false)               \
  QUANTIZE(signed8_g##GROUP##_rotated, GROUP, Signed8, true)      \
  QUANTIZE(unsigned_g##GROUP, GROUP, Unsigned15, false)           \
  QUANTIZE(symmetric8bit_g##GROUP, GROUP, Symmetric127, false)    \
  GEMM(GROUP, Signed8, signed8)                                   \
  GEMM(GROUP, Unsigned15, unsigned)                               \
  GEMM(GROUP, Symmetric127, symmetric8bit)

GROUP_OF(32)
GROUP_OF(64)
GROUP_OF(128)

extern "C" int64_t packed_codes_bytes(int64_t rows, int64_t k, int64_t group) {
  return svdq::packed_codes_bytes(rows, k, group);
}

extern "C" void quantize_to_bf16(int64_t rows, int64_t k, const float* x, int64_t ldx,
                                 const float* inv_smooth, float shift, uint16_t* x_hat,
                                 int64_t ld_hat, int8_t* codes, float* x_scale) {
  svdq::quantize_s4_bf16<64, ActRange::Signed8, true>(rows, k, x, ldx, inv_smooth, shift, x_hat,
                                                      ld_hat, codes, x_scale);
}

// Onto start [rows, 16 * panels], which `start` copies where the product asks for it.
extern "C" void gemm_onto(int64_t rows, int64_t k, const int8_t* codes, const float* x_scale,
                          const uint8_t* w, const uint16_t* w_scale, int64_t panels, float* out,
                          int64_t ldo, const float* start, void* packed) {
  svdq::pack_codes_s4<64>(rows, k, codes, x_scale, packed);
  const auto copy = [&](int64_t begin, int64_t end, float* to) {
    for (int64_t i = 0; i < rows; ++i) {
      memcpy(to + i * ldo, start + (i * panels + begin) * 16, (end - begin) * 16 * sizeof(float));
    }
  };
  svdq::gemm_s4_onto<64, ActRange::Signed8>(rows, k, packed, w, w_scale, 0, panels, out, ldo, true,
                                            copy);
}
