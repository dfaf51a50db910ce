// base.h: what device code and its host back end spell alike: annotations, vector types, small
// arithmetic. SVDQ_CUDA_HOST is defined where a kernel is compiled by a C++ compiler to run on the
// CPU (tests); nvcc never sees it.
#ifndef SVDQ_CUDA_BASE_H
#define SVDQ_CUDA_BASE_H

#include <stdint.h>
#include <string.h>

#if defined(SVDQ_CUDA_HOST)

#define SVDQ_INLINE static inline __attribute__((always_inline, unused))
#define SVDQ_NOINLINE static __attribute__((noinline, unused))
#define SVDQ_CONSTEXPR static constexpr __attribute__((unused))
#define SVDQ_METHOD __attribute__((always_inline)) inline
#define SVDQ_LAMBDA __attribute__((always_inline))
#define SVDQ_UNROLL _Pragma("GCC unroll 64")
#define SVDQ_NO_UNROLL _Pragma("GCC unroll 1")

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) int2 {
  int32_t x, y;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int2 make_int2(int32_t x, int32_t y) { return {x, y}; }
inline int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#else

#define SVDQ_INLINE static __device__ __forceinline__
#define SVDQ_NOINLINE static __device__ __noinline__
#define SVDQ_CONSTEXPR static constexpr __host__ __device__
#define SVDQ_METHOD __device__ __forceinline__
#define SVDQ_LAMBDA
#define SVDQ_UNROLL _Pragma("unroll")
#define SVDQ_NO_UNROLL _Pragma("unroll 1")

#endif

#define SVDQ_RESTRICT __restrict__

namespace svdq {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

// What a launch hands over: one block of 8-byte fields, in the order of the Launch record.
template <int NB, int NS>
struct KernelArgs {
  void* buffers[NB];
  int64_t scalars[NS];
};
template <int NB>
struct KernelArgs<NB, 0> {
  void* buffers[NB];
};

SVDQ_CONSTEXPR int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SVDQ_CONSTEXPR int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
SVDQ_CONSTEXPR int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
SVDQ_CONSTEXPR int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

// Where value k of a row lies: LENGTH side by side, the next STEP places further on.
template <int LENGTH, int STEP>
struct Runs {
  SVDQ_CONSTEXPR int64_t place(int64_t k) {
    return LENGTH == STEP ? k : k / LENGTH * STEP + k % LENGTH;
  }
};
using Dense = Runs<1, 1>;

}  // namespace svdq

#endif  // SVDQ_CUDA_BASE_H
