// Loops over every function of vec_math.h: y[i] = f(x[i]).
#include "svdq_cpu/vec_math.h"

#define UNARY(name)                                                                           \
  extern "C" void run_##name(const float* __restrict__ x, float* __restrict__ y, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) y[i] = svdq::name(x[i]);                                  \
  }
#define BINARY(name)                                                                   \
  extern "C" void run_##name(const float* __restrict__ a, const float* __restrict__ b, \
                             float* __restrict__ y, int64_t n) {                       \
    for (int64_t i = 0; i < n; ++i) y[i] = svdq::name(a[i], b[i]);                     \
  }

UNARY(exp)
UNARY(exp2)
UNARY(expm1)
UNARY(log)
UNARY(log2)
UNARY(log10)
UNARY(log1p)
UNARY(tanh)
UNARY(erf)
UNARY(sin)
UNARY(cos)
UNARY(atan)
UNARY(sigmoid)
UNARY(silu)
UNARY(gelu_erf)
UNARY(gelu_tanh)
UNARY(softplus)
UNARY(mish)
UNARY(rsqrt)
UNARY(sqrt)
UNARY(floor)
UNARY(ceil)
UNARY(trunc)
UNARY(round_even)
UNARY(sign)
UNARY(relu)
UNARY(reciprocal)
BINARY(pow)
BINARY(min)
BINARY(max)
BINARY(elu)
BINARY(fmod)
BINARY(remainder)
BINARY(atan2)

extern "C" void run_clamp(const float* __restrict__ x, const float* __restrict__ lo,
                          const float* __restrict__ hi, float* __restrict__ y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = svdq::clamp(x[i], lo[i], hi[i]);
}
