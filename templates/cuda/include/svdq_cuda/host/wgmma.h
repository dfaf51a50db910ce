// host/wgmma.h: what a warpgroup's products mean; see wgmma.h. Its threads meet, and the last to
// come computes the whole product.
#ifndef SVDQ_CUDA_HOST_WGMMA_H
#define SVDQ_CUDA_HOST_WGMMA_H

#include <vector>

#include "svdq_cuda/convert_fp8.h"
#include "svdq_cuda/host/convert.h"
#include "svdq_cuda/host/cta.h"

namespace svdq {

SVDQ_INLINE uint64_t wgmma_operand(const void* start, uint32_t k_step, uint32_t row_step) {
  host::checked_shared("wgmma_operand", start, 16, 16);
  if (k_step % 16 != 0 || row_step % 16 != 0 || k_step >= 1u << 18 || row_step >= 1u << 18) {
    host::cta().fail("wgmma_operand: steps are multiples of 16 below 2^18");
  }
  return static_cast<uint64_t>(shared_address(start) >> 4) |
         static_cast<uint64_t>(k_step >> 4) << 16 | static_cast<uint64_t>(row_step >> 4) << 32;
}
SVDQ_INLINE uint64_t wgmma_advance(uint64_t operand, uint32_t bytes) {
  return operand + (bytes >> 4);
}

template <int R>
SVDQ_INLINE void give_registers() {
  static_assert(R % 8 == 0 && R >= 24 && R <= 256, "registers");
}
template <int R>
SVDQ_INLINE void take_registers() {
  give_registers<R>();
}

SVDQ_INLINE void wgmma_fence() {}
SVDQ_INLINE void wgmma_commit() {}
template <int Pending>
SVDQ_INLINE void wgmma_wait() {}

namespace host {

// 32 bytes of k of one row of an operand.
inline void operand_row(uint64_t operand, int row, uint8_t (&bytes)[32]) {
  const uint32_t start = static_cast<uint32_t>(operand & 0x3fffu) << 4;
  const uint32_t k_step = static_cast<uint32_t>(operand >> 16 & 0x3fffu) << 4;
  const uint32_t row_step = static_cast<uint32_t>(operand >> 32 & 0x3fffu) << 4;
  for (int half = 0; half < 2; ++half) {
    const uint32_t at = start + row / 8 * row_step + half * k_step + row % 8 * 16;
    memcpy(bytes + 16 * half, checked_shared("wgmma", cta().shared + at, 16, 16), 16);
  }
}

// Of a thread: the left operand in shared memory, or four registers of it.
template <typename T>
struct WgmmaShare {
  uint64_t a, b;
  T* d;
  bool accumulate;
  const uint32_t* registers;
};

// 32 bytes of k of one row of the left operand: mma.h's fragment, where it is in registers.
template <typename T>
inline void left_row(WgmmaShare<T>** thread, int row, uint8_t (&bytes)[32]) {
  if (thread[0]->registers == nullptr) return operand_row(thread[0]->a, row, bytes);
  for (int part = 0; part < 8; ++part) {
    const WgmmaShare<T>& owner = *thread[row / 16 * 32 + row % 8 * 4 + part % 4];
    memcpy(bytes + 4 * part, owner.registers + part / 4 * 2 + row % 16 / 8, 4);
  }
}

// decode(bytes, k): element k of a row. ELEMENTS of them in 32 bytes.
template <int N, int ELEMENTS, typename T, typename Decode>
inline void wgmma(const char* what, const WgmmaShare<T>& of_thread, const Decode& decode) {
  WgmmaShare<T> mine = of_thread;
  group_collective(what, 128, mine, [&decode](WgmmaShare<T>** thread) {
    std::vector<T> right(ELEMENTS * N), sums(N);
    uint8_t bytes[32];
    for (int column = 0; column < N; ++column) {
      operand_row(thread[0]->b, column, bytes);
      for (int k = 0; k < ELEMENTS; ++k) right[k * N + column] = decode(bytes, k);
    }
    for (int row = 0; row < 64; ++row) {
      WgmmaShare<T>** const owners = thread + row / 16 * 32 + row % 8 * 4;
      const int half = row % 16 / 8 * 2;
      for (int column = 0; column < N; ++column) {
        const WgmmaShare<T>& owner = *owners[column % 8 / 2];
        sums[column] =
            owner.accumulate ? owner.d[column / 8 * 4 + half + column % 2] : static_cast<T>(0);
      }
      left_row(thread, row, bytes);
      for (int k = 0; k < ELEMENTS; ++k) {
        const T left = decode(bytes, k);
        const T* const of_k = right.data() + k * N;
        for (int column = 0; column < N; ++column) sums[column] += left * of_k[column];
      }
      for (int column = 0; column < N; ++column) {
        owners[column % 8 / 2]->d[column / 8 * 4 + half + column % 2] = sums[column];
      }
    }
  });
}

inline int32_t s8_element(const uint8_t* bytes, int k) { return static_cast<int8_t>(bytes[k]); }
inline float bf16_element(const uint8_t* bytes, int k) {
  uint16_t bits;
  memcpy(&bits, bytes + 2 * k, 2);
  return bf16_to_f32(bits);
}
}  // namespace host

template <int N>
SVDQ_INLINE void wgmma_s8(int32_t (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  host::WgmmaShare<int32_t> mine{a, b, d, accumulate, nullptr};
  host::wgmma<N, 32>("wgmma_s8", mine, host::s8_element);
}
template <int N>
SVDQ_INLINE void wgmma_s8(int32_t (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                          bool accumulate) {
  host::WgmmaShare<int32_t> mine{0, b, d, accumulate, a};
  host::wgmma<N, 32>("wgmma_s8", mine, host::s8_element);
}
template <int N>
SVDQ_INLINE void wgmma_e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  host::WgmmaShare<float> mine{a, b, d, accumulate, nullptr};
  host::wgmma<N, 32>("wgmma_e4m3", mine,
                     [](const uint8_t* bytes, int k) { return e4m3_to_f32(bytes[k]); });
}
template <int N>
SVDQ_INLINE void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  host::WgmmaShare<float> mine{a, b, d, accumulate, nullptr};
  host::wgmma<N, 16>("wgmma_bf16", mine, host::bf16_element);
}
template <int N>
SVDQ_INLINE void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                            bool accumulate) {
  host::WgmmaShare<float> mine{0, b, d, accumulate, a};
  host::wgmma<N, 16>("wgmma_bf16", mine, host::bf16_element);
}

}  // namespace svdq

#endif  // SVDQ_CUDA_HOST_WGMMA_H
