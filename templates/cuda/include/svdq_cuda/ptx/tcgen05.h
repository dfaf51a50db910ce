// ptx/tcgen05.h: see tcgen05.h.
#ifndef SVDQ_CUDA_PTX_TCGEN05_H
#define SVDQ_CUDA_PTX_TCGEN05_H

#include "svdq_cuda/ptx/cta.h"

namespace svdq {

// PTX ISA, "Shared memory descriptor": addresses and offsets in units of 16 bytes, no swizzle; the
// constant 1 in bits 46 to 48.
SVDQ_INLINE uint64_t tcgen05_operand(const void* start, uint32_t k_step, uint32_t row_step) {
  return static_cast<uint64_t>((shared_address(start) & 0x3ffffu) >> 4) |
         static_cast<uint64_t>(k_step >> 4) << 16 | static_cast<uint64_t>(row_step >> 4) << 32 |
         uint64_t{1} << 46;
}

#if defined(__CUDA_ARCH_FEAT_SM100_ALL)

// One lane of a whole warp. What it issues needs no loop over lanes, unlike behind a comparison.
SVDQ_INLINE bool tcgen05_elect() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred mine;\n"
      "elect.sync _|mine, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, mine;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

template <int COLUMNS>
SVDQ_INLINE void tcgen05_alloc(uint32_t* shared) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(
                   shared_address(shared)),
               "r"(COLUMNS)
               : "memory");
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;" ::: "memory");
}
template <int COLUMNS>
SVDQ_INLINE void tcgen05_free(uint32_t address) {
  asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(address), "r"(COLUMNS)
               : "memory");
}

SVDQ_INLINE void tcgen05_scales(uint32_t to, uint64_t operand) {
  asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;" ::"r"(to), "l"(operand)
               : "memory");
}

template <int N>
SVDQ_INLINE void tcgen05_e2m1(uint32_t sums, uint64_t a, uint64_t b, uint32_t a_scales,
                              uint32_t b_scales) {
  asm volatile(
      "{\n"
      ".reg .pred accumulate;\n"
      "setp.eq.b32 accumulate, 0, 0;\n"
      "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X [%0], %1, %2, %3, [%4], "
      "[%5], accumulate;\n"
      "}" ::"r"(sums),
      "l"(a), "l"(b), "r"(tcgen05_shape<N>()), "r"(a_scales), "r"(b_scales)
      : "memory");
}

SVDQ_INLINE void tcgen05_commit(uint64_t* barrier) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
                   shared_address(barrier))
               : "memory");
}

#define SVDQ_FOUR(C, j) C(d[j][0]), C(d[j][1]), C(d[j][2]), C(d[j][3])
#define SVDQ_SIXTEEN(C, j) \
  SVDQ_FOUR(C, j), SVDQ_FOUR(C, j + 1), SVDQ_FOUR(C, j + 2), SVDQ_FOUR(C, j + 3)
#define SVDQ_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SVDQ_NAMES_32 \
  SVDQ_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

template <int N>
SVDQ_INLINE void tcgen05_load(float (&d)[N][4], uint32_t address) {
  static_assert(N == 4 || N == 8, "columns of tcgen05.ld");
  if constexpr (N == 8) {
    asm volatile("tcgen05.ld.sync.aligned.16x256b.x8.b32 {" SVDQ_NAMES_32 "}, [%32];"
                 : SVDQ_SIXTEEN("=f", 0), SVDQ_SIXTEEN("=f", 4)
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("tcgen05.ld.sync.aligned.16x256b.x4.b32 {" SVDQ_NAMES_16 "}, [%16];"
                 : SVDQ_SIXTEEN("=f", 0)
                 : "r"(address)
                 : "memory");
  }
}
template <int N>
SVDQ_INLINE void tcgen05_store(const float (&d)[N][4], uint32_t address) {
  static_assert(N == 4 || N == 8, "columns of tcgen05.st");
  if constexpr (N == 8) {
    asm volatile("tcgen05.st.sync.aligned.16x256b.x8.b32 [%32], {" SVDQ_NAMES_32
                 "};" ::SVDQ_SIXTEEN("f", 0),
                 SVDQ_SIXTEEN("f", 4), "r"(address)
                 : "memory");
  } else {
    asm volatile("tcgen05.st.sync.aligned.16x256b.x4.b32 [%16], {" SVDQ_NAMES_16
                 "};" ::SVDQ_SIXTEEN("f", 0),
                 "r"(address)
                 : "memory");
  }
}
SVDQ_INLINE void tcgen05_wait_load() {
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}
SVDQ_INLINE void tcgen05_wait_store() {
  asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}
SVDQ_INLINE void tcgen05_fence_before() {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
SVDQ_INLINE void tcgen05_fence_after() {
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

#undef SVDQ_FOUR
#undef SVDQ_SIXTEEN
#undef SVDQ_NAMES_16
#undef SVDQ_NAMES_32

#endif

}  // namespace svdq

#endif  // SVDQ_CUDA_PTX_TCGEN05_H
