// A warpgroup's products of operands that lie in shared memory as the test says: what
// tests/cuda/test_cutlass.py checks against CuTe's layouts.
#include "svdq_cuda/kernel.h"
#include "svdq_cuda/tcgen05.h"
#include "svdq_cuda/wgmma.h"

namespace svdq {

// Both 16-byte aligned, bytes a multiple of 16.
SVDQ_INLINE void copy_to_shared(char* to, const void* from, int bytes) {
  const char* const source = static_cast<const char*>(from);
  for (int i = static_cast<int>(thread_id()) * 16; i < bytes; i += 128 * 16) {
    *reinterpret_cast<uint4*>(to + i) = load_16(reinterpret_cast<const uint4*>(source + i));
  }
  async_fence();
  cta_sync();
}

// a: 64 rows of 128 bytes of k, b: N; d [128, N / 2]. The product of the first 32 k. held: a again,
// as four words of each thread.
template <int N>
SVDQ_INLINE void by_wgmma(const void* from_a, const void* from_b, const uint32_t* held,
                          int32_t* to) {
  char* const a = shared_memory();
  char* const b = a + 64 * 128;
  copy_to_shared(a, from_a, 64 * 128);
  copy_to_shared(b, from_b, N * 128);
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = held != nullptr ? held[thread_id() * 4 + i] : 0;
  int32_t d[N / 2];
  wgmma_fence();
  if (held != nullptr) {
    wgmma_s8<N>(d, words, wgmma_operand(b, 128, 1024), false);
  } else {
    wgmma_s8<N>(d, wgmma_operand(a, 128, 1024), wgmma_operand(b, 128, 1024), false);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < N / 2; ++i) to[thread_id() * (N / 2) + i] = d[i];
}

// a: 128 rows of 32 bytes of codes, b: N; scales: 512 bytes each. d [128, 2, N / 32, 16]: of each
// thread the sums of 16 lanes, then of the next 16; of 32 columns after the other.
template <int N>
SVDQ_INLINE void by_tcgen05(const void* from_a, const void* from_b, const void* a_scales,
                            const void* b_scales, float* to) {
  constexpr int kRows = 128 * 32, kScales = 512;
  char* const a = shared_memory();
  char* const b = a + kRows;
  char* const of_a = b + kRows;
  char* const of_b = of_a + kScales;
  uint64_t* const done = reinterpret_cast<uint64_t*>(of_b + kScales);
  uint32_t* const held = reinterpret_cast<uint32_t*>(done + 1);
  copy_to_shared(a, from_a, kRows);
  copy_to_shared(b, from_b, N * 32);
  copy_to_shared(of_a, a_scales, kScales);
  copy_to_shared(of_b, b_scales, kScales);
  if (thread_id() == 0) {
    mbarrier_init(done, 1);
    mbarrier_init_fence();
  }
  if (warp_id() == 0) tcgen05_alloc<256>(held);
  tcgen05_fence_before();
  cta_sync();
  tcgen05_fence_after();
  const uint32_t sums = *held + (warp_id() * 32 << 16);
  const float zeros[4][4] = {};
  for (uint32_t half = 0; half < 2; ++half) {
    for (uint32_t column = 0; column < N; column += 32) {
      tcgen05_store<4>(zeros, sums + (half * 16 << 16) + column);
    }
  }
  tcgen05_wait_store();
  tcgen05_fence_before();
  cta_sync();
  tcgen05_fence_after();
  if (warp_id() == 0 && tcgen05_elect()) {
    const uint32_t scales = *held + N;
    tcgen05_scales(scales, tcgen05_operand(of_a, 0, 128));
    tcgen05_scales(scales + 4, tcgen05_operand(of_b, 0, 128));
    tcgen05_e2m1<N>(*held, tcgen05_operand(a, 128, 256), tcgen05_operand(b, 128, 256), scales,
                    scales + 4);
    tcgen05_commit(done);
  }
  warp_sync();
  mbarrier_wait(done, 0);
  tcgen05_fence_after();
  for (uint32_t half = 0; half < 2; ++half) {
    for (uint32_t column = 0; column < N; column += 32) {
      float d[4][4];
      tcgen05_load<4>(d, sums + (half * 16 << 16) + column);
      tcgen05_wait_load();
      float* const mine = to + ((thread_id() * 2 + half) * (N / 32) + column / 32) * 16;
      for (int i = 0; i < 16; ++i) mine[i] = d[i / 4][i % 4];
    }
  }
  tcgen05_fence_before();
  cta_sync();
  if (warp_id() == 0) tcgen05_free<256>(*held);
}

}  // namespace svdq

// buffers: a, b, d; then a, b, d, held
#define WGMMA(N)                                                        \
  SVDQ_CUDA_KERNEL(wgmma_##N, 128, 0, 64 * 128 + N * 128, 3, 0) {       \
    int32_t* const d = static_cast<int32_t*>(args.buffers[2]);          \
    svdq::by_wgmma<N>(args.buffers[0], args.buffers[1], nullptr, d);    \
  }                                                                     \
  SVDQ_CUDA_KERNEL(wgmma_held_##N, 128, 0, 64 * 128 + N * 128, 4, 0) {  \
    int32_t* const d = static_cast<int32_t*>(args.buffers[2]);          \
    const uint32_t* held = static_cast<const uint32_t*>(args.buffers[3]); \
    svdq::by_wgmma<N>(args.buffers[0], args.buffers[1], held, d);       \
  }
WGMMA(64)
WGMMA(128)
WGMMA(192)
WGMMA(256)

// buffers: a, b, a_scales, b_scales, d
#define TCGEN05(N)                                                                           \
  SVDQ_CUDA_KERNEL(tcgen05_##N, 128, 0, 2 * 128 * 32 + 2 * 512 + 16, 5, 0) {                 \
    svdq::by_tcgen05<N>(args.buffers[0], args.buffers[1], args.buffers[2], args.buffers[3],  \
                        static_cast<float*>(args.buffers[4]));                               \
  }
TCGEN05(64)
TCGEN05(128)

// buffers: four 64-bit words: operands' descriptors, the instruction's for 64 and 128 columns
SVDQ_CUDA_KERNEL(descriptors, 32, 0, 16, 1, 0) {
  uint64_t* const to = static_cast<uint64_t*>(args.buffers[0]);
  if (svdq::thread_id() != 0) return;
  to[0] = svdq::wgmma_operand(svdq::shared_memory(), 128, 1024);
  to[1] = svdq::tcgen05_operand(svdq::shared_memory(), 128, 256);
  to[2] = svdq::tcgen05_shape<64>();
  to[3] = svdq::tcgen05_shape<128>();
}
