// ptx/wgmma.h: see wgmma.h.
#ifndef SVDQ_CUDA_PTX_WGMMA_H
#define SVDQ_CUDA_PTX_WGMMA_H

#include "svdq_cuda/ptx/cta.h"

namespace svdq {

// PTX ISA, "Matrix Descriptor": address, leading and stride offsets in units of 16 bytes, no
// swizzle. For a K-major operand the leading offset is between core matrices along k.
SVDQ_INLINE uint64_t wgmma_operand(const void* start, uint32_t k_step, uint32_t row_step) {
  return static_cast<uint64_t>((shared_address(start) & 0x3ffffu) >> 4) |
         static_cast<uint64_t>(k_step >> 4) << 16 | static_cast<uint64_t>(row_step >> 4) << 32;
}
SVDQ_INLINE uint64_t wgmma_advance(uint64_t operand, uint32_t bytes) {
  return operand + (bytes >> 4);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int R>
SVDQ_INLINE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R));
}
template <int R>
SVDQ_INLINE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R));
}

SVDQ_INLINE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SVDQ_INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
SVDQ_INLINE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Ten operands of an asm text, "%0, ..., %9, "; of the row that begins with TENS.
#define SVDQ_TEN(TENS)                                                                    \
  "%" #TENS "0, %" #TENS "1, %" #TENS "2, %" #TENS "3, %" #TENS "4, %" #TENS "5, %" #TENS \
  "6, %" #TENS "7, %" #TENS "8, %" #TENS "9, "
#define SVDQ_REGISTERS_32 SVDQ_TEN() SVDQ_TEN(1) SVDQ_TEN(2) "%30, %31"
#define SVDQ_REGISTERS_64 \
  SVDQ_TEN() SVDQ_TEN(1) SVDQ_TEN(2) SVDQ_TEN(3) SVDQ_TEN(4) SVDQ_TEN(5) "%60, %61, %62, %63"
#define SVDQ_REGISTERS_96 \
  SVDQ_TEN()              \
  SVDQ_TEN(1)             \
  SVDQ_TEN(2)             \
  SVDQ_TEN(3)             \
  SVDQ_TEN(4) SVDQ_TEN(5) SVDQ_TEN(6) SVDQ_TEN(7) SVDQ_TEN(8) "%90, %91, %92, %93, %94, %95"
#define SVDQ_REGISTERS_128 \
  SVDQ_TEN()               \
  SVDQ_TEN(1)              \
  SVDQ_TEN(2)              \
  SVDQ_TEN(3)              \
  SVDQ_TEN(4)              \
  SVDQ_TEN(5) SVDQ_TEN(6) SVDQ_TEN(7) SVDQ_TEN(8) SVDQ_TEN(9) SVDQ_TEN(10) SVDQ_TEN(11) "%120, " \
  "%121, %122, %123, %124, %125, %126, %127"

#define SVDQ_IN_OUT_8(C, i)                                                        \
  "+" C(d[i]), "+" C(d[i + 1]), "+" C(d[i + 2]), "+" C(d[i + 3]), "+" C(d[i + 4]), \
      "+" C(d[i + 5]), "+" C(d[i + 6]), "+" C(d[i + 7])
#define SVDQ_IN_OUT_32(C, i) \
  SVDQ_IN_OUT_8(C, i), SVDQ_IN_OUT_8(C, i + 8), SVDQ_IN_OUT_8(C, i + 16), SVDQ_IN_OUT_8(C, i + 24)
#define SVDQ_IN_OUT_64(C, i) SVDQ_IN_OUT_32(C, i), SVDQ_IN_OUT_32(C, i + 32)
#define SVDQ_IN_OUT_96(C, i) SVDQ_IN_OUT_64(C, i), SVDQ_IN_OUT_32(C, i + 64)
#define SVDQ_IN_OUT_128(C, i) SVDQ_IN_OUT_64(C, i), SVDQ_IN_OUT_64(C, i + 64)

// N columns, R = N / 2 registers, numbers of the operands that follow them.
#define SVDQ_WGMMA(FUNCTION, T, C, N, R, R1, R2, SHAPE, TYPES, SCALES)                           \
  SVDQ_INLINE void FUNCTION##_##N(T(&d)[R], uint64_t a, uint64_t b, bool accumulate) {           \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #R2                                           \
                 ", 0; wgmma.mma_async.sync.aligned.m64n" #N SHAPE TYPES " {" SVDQ_REGISTERS_##R \
                 "}, %" #R ", %" #R1 ", p" SCALES ";}"                                           \
                 : SVDQ_IN_OUT_##R(C, 0)                                                         \
                 : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));                       \
  }
#define SVDQ_WGMMA_SIZES(FUNCTION, T, C, SHAPE, TYPES, SCALES)                       \
  SVDQ_WGMMA(FUNCTION, T, C, 64, 32, 33, 34, SHAPE, TYPES, SCALES)                   \
  SVDQ_WGMMA(FUNCTION, T, C, 128, 64, 65, 66, SHAPE, TYPES, SCALES)                  \
  SVDQ_WGMMA(FUNCTION, T, C, 192, 96, 97, 98, SHAPE, TYPES, SCALES)                  \
  SVDQ_WGMMA(FUNCTION, T, C, 256, 128, 129, 130, SHAPE, TYPES, SCALES)               \
  template <int N>                                                                   \
  SVDQ_INLINE void FUNCTION(T(&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) { \
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "columns of wgmma");  \
    if constexpr (N == 64) FUNCTION##_64(d, a, b, accumulate);                       \
    if constexpr (N == 128) FUNCTION##_128(d, a, b, accumulate);                     \
    if constexpr (N == 192) FUNCTION##_192(d, a, b, accumulate);                     \
    if constexpr (N == 256) FUNCTION##_256(d, a, b, accumulate);                     \
  }

SVDQ_WGMMA_SIZES(wgmma_s8, int32_t, "r", "k32", ".s32.s8.s8", "")
SVDQ_WGMMA_SIZES(wgmma_e4m3, float, "f", "k32", ".f32.e4m3.e4m3", ", 1, 1")
SVDQ_WGMMA_SIZES(wgmma_bf16, float, "f", "k16", ".f32.bf16.bf16", ", 1, 1, 0, 0")

// The left operand in registers.
#define SVDQ_WGMMA_LEFT(FUNCTION, T, C, N, R, R1, R2, R3, R4, R5, SHAPE, TYPES, SCALES)            \
  SVDQ_INLINE void FUNCTION##_##N(T(&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #R5                                             \
                 ", 0; wgmma.mma_async.sync.aligned.m64n" #N SHAPE TYPES " {" SVDQ_REGISTERS_##R   \
                 "}, {%" #R ", %" #R1 ", %" #R2 ", %" #R3 "}, %" #R4 ", p" SCALES ";}"             \
                 : SVDQ_IN_OUT_##R(C, 0)                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                             \
                   "r"(static_cast<int32_t>(accumulate)));                                         \
  }
#define SVDQ_WGMMA_LEFT_SIZES(FUNCTION, T, C, SHAPE, TYPES, SCALES)                              \
  SVDQ_WGMMA_LEFT(FUNCTION, T, C, 64, 32, 33, 34, 35, 36, 37, SHAPE, TYPES, SCALES)              \
  SVDQ_WGMMA_LEFT(FUNCTION, T, C, 128, 64, 65, 66, 67, 68, 69, SHAPE, TYPES, SCALES)             \
  SVDQ_WGMMA_LEFT(FUNCTION, T, C, 192, 96, 97, 98, 99, 100, 101, SHAPE, TYPES, SCALES)           \
  SVDQ_WGMMA_LEFT(FUNCTION, T, C, 256, 128, 129, 130, 131, 132, 133, SHAPE, TYPES, SCALES)       \
  template <int N>                                                                               \
  SVDQ_INLINE void FUNCTION(T(&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "columns of wgmma");              \
    if constexpr (N == 64) FUNCTION##_64(d, a, b, accumulate);                                   \
    if constexpr (N == 128) FUNCTION##_128(d, a, b, accumulate);                                 \
    if constexpr (N == 192) FUNCTION##_192(d, a, b, accumulate);                                 \
    if constexpr (N == 256) FUNCTION##_256(d, a, b, accumulate);                                 \
  }

SVDQ_WGMMA_LEFT_SIZES(wgmma_s8, int32_t, "r", "k32", ".s32.s8.s8", "")
SVDQ_WGMMA_LEFT_SIZES(wgmma_bf16, float, "f", "k16", ".f32.bf16.bf16", ", 1, 1, 0")

#undef SVDQ_WGMMA_LEFT_SIZES
#undef SVDQ_WGMMA_LEFT
#undef SVDQ_WGMMA_SIZES
#undef SVDQ_WGMMA
#undef SVDQ_IN_OUT_128
#undef SVDQ_IN_OUT_96
#undef SVDQ_IN_OUT_64
#undef SVDQ_IN_OUT_32
#undef SVDQ_IN_OUT_8
#undef SVDQ_REGISTERS_128
#undef SVDQ_REGISTERS_96
#undef SVDQ_REGISTERS_64
#undef SVDQ_REGISTERS_32
#undef SVDQ_TEN

#endif

}  // namespace svdq

#endif  // SVDQ_CUDA_PTX_WGMMA_H
