// y = 2 x through shared memory, in three stages of 64 threads x 16, 8 or 4 bytes.
// Buffers: x [n] f32, y [n] f32; scalars: n, bytes of one copy. One CTA copies 4096 floats.
#include "svdq_cuda/kernel.h"

using namespace svdq;

template <int Bytes>
SVDQ_INLINE void copy_doubled(const float* x, float* y, int64_t n) {
  constexpr int kFloats = Bytes / 4, kStages = 3;
  float* const shared = reinterpret_cast<float*>(shared_memory());
  const int64_t first = static_cast<int64_t>(cta_id()) * 4096, step = 64 * kFloats;
  const int64_t steps = 4096 / step;
  const auto begin = [&](int64_t at) SVDQ_LAMBDA {
    if (at < steps) {
      const int64_t column = at * step + thread_id() * kFloats;
      cp_async<Bytes>(shared + at % kStages * step + thread_id() * kFloats, x + first + column,
                      first + column < n);
    }
    cp_async_commit();
  };
  for (int64_t at = 0; at < kStages - 1; ++at) begin(at);
  for (int64_t at = 0; at < steps; ++at) {
    cp_async_wait<kStages - 2>();
    cta_sync();
    begin(at + kStages - 1);
    for (int64_t i = 0; i < kFloats; ++i) {
      const int64_t column = at * step + i * 64 + thread_id();  // another thread's copy
      if (first + column < n) {
        y[first + column] = 2 * shared[at % kStages * step + i * 64 + thread_id()];
      }
    }
  }
}

SVDQ_CUDA_KERNEL(staged_copy, 64, 0, 3 * 64 * 16, 2, 2) {
  const float* const x = static_cast<const float*>(args.buffers[0]);
  float* const y = static_cast<float*>(args.buffers[1]);
  if (args.scalars[1] == 16) copy_doubled<16>(x, y, args.scalars[0]);
  if (args.scalars[1] == 8) copy_doubled<8>(x, y, args.scalars[0]);
  if (args.scalars[1] == 4) copy_doubled<4>(x, y, args.scalars[0]);
}
