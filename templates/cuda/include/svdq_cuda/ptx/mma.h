// ptx/mma.h: tensor cores through mma.sync. See mma.h for the operands.
#ifndef SVDQ_CUDA_PTX_MMA_H
#define SVDQ_CUDA_PTX_MMA_H

#include "svdq_cuda/ptx/cta.h"

namespace svdq {

SVDQ_INLINE void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}
SVDQ_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}
SVDQ_INLINE void ldmatrix_x2(uint32_t (&r)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared))
               : "memory");
}
SVDQ_INLINE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared))
               : "memory");
}

#define SVDQ_MMA_INT_16(shape, types, d, a, b, c)                                               \
  asm("mma.sync.aligned." shape ".row.col.s32." types                                           \
      ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                \
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                          \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), \
        "r"(c[2]), "r"(c[3]))
#define SVDQ_MMA_INT_8(shape, types, d0, d1, a, b, c0, c1)                                   \
  asm("mma.sync.aligned." shape ".row.col.s32." types ".s32 {%0, %1}, {%2}, {%3}, {%4, %5};" \
      : "=r"(d0), "=r"(d1)                                                                   \
      : "r"(a), "r"(b), "r"(c0), "r"(c1))

#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900

template <bool UNSIGNED = false>
SVDQ_INLINE void mma_s4_k64(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            const int32_t (&c)[4]) {
  if constexpr (UNSIGNED) {
    SVDQ_MMA_INT_16("m16n8k64", "u4.s4", d, a, b, c);
  } else {
    SVDQ_MMA_INT_16("m16n8k64", "s4.s4", d, a, b, c);
  }
}

#define SVDQ_MMA_S4_K32(types)                                    \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." types              \
      ".s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};" \
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])            \
      : "r"(a0), "r"(a1), "r"(b0), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]))

template <bool UNSIGNED = false>
SVDQ_INLINE void mma_s4_k32(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0,
                            const int32_t (&c)[4]) {
  if constexpr (UNSIGNED) {
    SVDQ_MMA_S4_K32("u4.s4");
  } else {
    SVDQ_MMA_S4_K32("s4.s4");
  }
}

#elif __CUDA_ARCH__ == 750

template <bool UNSIGNED = false>
SVDQ_INLINE void mma_s4_k32(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0,
                            const int32_t (&c)[4]) {
  if constexpr (UNSIGNED) {
    SVDQ_MMA_INT_8("m8n8k32", "u4.s4", d[0], d[1], a0, b0, c[0], c[1]);
    SVDQ_MMA_INT_8("m8n8k32", "u4.s4", d[2], d[3], a1, b0, c[2], c[3]);
  } else {
    SVDQ_MMA_INT_8("m8n8k32", "s4.s4", d[0], d[1], a0, b0, c[0], c[1]);
    SVDQ_MMA_INT_8("m8n8k32", "s4.s4", d[2], d[3], a1, b0, c[2], c[3]);
  }
}
template <bool UNSIGNED = false>
SVDQ_INLINE void mma_s4_k64(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            const int32_t (&c)[4]) {
  mma_s4_k32<UNSIGNED>(d, a[0], a[1], b[0], c);
  mma_s4_k32<UNSIGNED>(d, a[2], a[3], b[1], d);
}

#endif

template <bool UNSIGNED = false>
SVDQ_INLINE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const int32_t (&c)[4]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (UNSIGNED) {
    SVDQ_MMA_INT_16("m16n8k32", "u8.s8", d, a, b, c);
  } else {
    SVDQ_MMA_INT_16("m16n8k32", "s8.s8", d, a, b, c);
  }
#else
  if constexpr (UNSIGNED) {
    SVDQ_MMA_INT_8("m8n8k16", "u8.s8", d[0], d[1], a[0], b[0], c[0], c[1]);
    SVDQ_MMA_INT_8("m8n8k16", "u8.s8", d[2], d[3], a[1], b[0], c[2], c[3]);
    SVDQ_MMA_INT_8("m8n8k16", "u8.s8", d[0], d[1], a[2], b[1], d[0], d[1]);
    SVDQ_MMA_INT_8("m8n8k16", "u8.s8", d[2], d[3], a[3], b[1], d[2], d[3]);
  } else {
    SVDQ_MMA_INT_8("m8n8k16", "s8.s8", d[0], d[1], a[0], b[0], c[0], c[1]);
    SVDQ_MMA_INT_8("m8n8k16", "s8.s8", d[2], d[3], a[1], b[0], c[2], c[3]);
    SVDQ_MMA_INT_8("m8n8k16", "s8.s8", d[0], d[1], a[2], b[1], d[0], d[1]);
    SVDQ_MMA_INT_8("m8n8k16", "s8.s8", d[2], d[3], a[3], b[1], d[2], d[3]);
  }
#endif
}

#define SVDQ_MMA_FLOAT(kind, d, a, b)                                \
  asm("mma.sync.aligned." kind                                       \
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, " \
      "%3};"                                                         \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// d += A B
SVDQ_INLINE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  SVDQ_MMA_FLOAT("m16n8k16.row.col.f32.f16.f16.f32", d, a, b);
#else
  SVDQ_UNROLL
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}

#if __CUDA_ARCH__ >= 800
SVDQ_INLINE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  SVDQ_MMA_FLOAT("m16n8k16.row.col.f32.bf16.bf16.f32", d, a, b);
}
#endif

#if __CUDA_ARCH__ >= 890
SVDQ_INLINE void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  SVDQ_MMA_FLOAT("m16n8k32.row.col.f32.e4m3.e4m3.f32", d, a, b);
}
#endif

#if defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL)
template <int A_PAIR = 0, int B_LANE = 0>
SVDQ_INLINE void mma_e2m1(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                          uint32_t a_scales, uint32_t b_scales) {
  static_assert(A_PAIR >= 0 && A_PAIR < 2 && B_LANE >= 0 && B_LANE < 4, "whose scales");
  asm("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1"
      ".f32.ue4m3 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, "
      "{%12, %13}, {%11}, {%12, %14};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(a_scales),
        "r"(b_scales), "n"(0), "n"(A_PAIR), "n"(B_LANE));
}
#endif

#undef SVDQ_MMA_INT_16
#undef SVDQ_MMA_INT_8
#undef SVDQ_MMA_S4_K32
#undef SVDQ_MMA_FLOAT

}  // namespace svdq

#endif  // SVDQ_CUDA_PTX_MMA_H
