// Every exchange between threads. Buffers: x [grid, threads] f32, out [grid, 12, threads] f32, bits
// [grid, 3, threads] u32, wide [grid, threads] f64.
#include "svdq_cuda/kernel.h"

using namespace svdq;

SVDQ_CUDA_KERNEL(exchange, 128, 2, 128 * 4, 4, 0) {
  const uint32_t thread = thread_id(), lane = lane_id(), block = cta_id() * num_threads();
  float* const shared = reinterpret_cast<float*>(shared_memory());
  const float x = static_cast<const float*>(args.buffers[0])[block + thread];
  float* const out = static_cast<float*>(args.buffers[1]) + 12 * block + thread;
  uint32_t* const bits = static_cast<uint32_t*>(args.buffers[2]) + 3 * block + thread;
  double* const wide = static_cast<double*>(args.buffers[3]) + block + thread;

  out[0 * 128] = shuffle(x, (lane * 5 + 3) % 32);
  out[1 * 128] = shuffle_xor(x, 9);
  out[2 * 128] = shuffle_up(x, 3);
  out[3 * 128] = shuffle_down(x, 7);
  out[4 * 128] = lanes_sum(x);
  out[5 * 128] = lanes_sum<4>(x);
  out[6 * 128] = lanes_max<8>(x);
  out[7 * 128] = lanes_min(x);
  // Half a warp at a time: masks that do not overlap.
  const uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  out[8 * 128] = lanes_sum<16>(x, half);

  // A sum over the CTA.
  const float warp_total = lanes_sum(x);
  if (lane == 0) shared[warp_id()] = warp_total;
  cta_sync();
  out[9 * 128] = shared[0] + shared[1] + shared[2] + shared[3];
  cta_sync();

  // A neighbour in another warp, by a barrier of two warps.
  const uint32_t pair = warp_id() / 2;
  shared[thread] = x;
  barrier_sync(1 + pair, 64);
  out[10 * 128] = shared[thread ^ 32];
  cta_sync();

  // Warps 1 to 3 make something that warp 0 waits for.
  if (warp_uniform(warp_id()) != 0) {
    shared[thread] = x + 1;
    barrier_arrive(5, 128);
    out[11 * 128] = 0;
  } else {
    barrier_sync(5, 128);
    out[11 * 128] = shared[thread + 32] + shared[thread + 64] + shared[thread + 96];
  }

  bits[0 * 128] = warp_ballot(x > 0);
  bits[1 * 128] = warp_any(x > 2) | warp_all(x > -2) << 1;
  bits[2 * 128] = cta_any(x > 3) | cta_any(false) << 1;
#if defined(SVDQ_CUDA_HOST)
  // The group operation that warpgroup intrinsics are made of: here, the group's threads reversed.
  struct Operands {
    float in, out;
  } mine{x, 0};
  host::group_collective("reverse", 64, mine, [](Operands** of) {
    for (uint32_t i = 0; i < 64; ++i) of[i]->out = of[63 - i]->in;
  });
  out[11 * 128] += mine.out;
#endif
  *wide = lanes_sum(static_cast<double>(x));
}
