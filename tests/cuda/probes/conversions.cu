// Every conversion. Buffers: x [n] f32; bf16, f16 [n] u16; e4m3, e2m1 [n] u8; rounded [n] i32;
// packed [n/4, 4] u32; from_bf16, from_f16 [65536] f32; from_e4m3 [256], from_e2m1 [16] f32.
// Scalars: n, a multiple of 4.
#include "svdq_cuda/kernel.h"

using namespace svdq;

SVDQ_CUDA_KERNEL(conversions, 256, 1, 0, 11, 1) {
  const uint32_t stride = num_ctas() * num_threads(), n = static_cast<uint32_t>(args.scalars[0]);
  const uint32_t first = cta_id() * num_threads() + thread_id();
  const float* const x = static_cast<const float*>(args.buffers[0]);
  for (uint32_t i = first; i < n; i += stride) {
    static_cast<uint16_t*>(args.buffers[1])[i] = f32_to_bf16(x[i]);
    static_cast<uint16_t*>(args.buffers[2])[i] = f32_to_f16(x[i]);
    static_cast<uint8_t*>(args.buffers[3])[i] = f32_to_e4m3(x[i]);
    static_cast<uint8_t*>(args.buffers[4])[i] = f32_to_e2m1(x[i]);
    static_cast<int32_t*>(args.buffers[5])[i] = round_to_int(x[i]);
  }
  for (uint32_t i = first; i < n / 4; i += stride) {
    const float* const four = x + 4 * i;
    uint4 packed;
    packed.x = pack_bf16x2(four[0], four[1]);
    packed.y = pack_f16x2(four[2], four[3]);
    packed.z = pack_e4m3x4(four[0], four[1], four[2], four[3]);
    packed.w = pack_e2m1x2(four[0], four[1]);
    store_16(static_cast<uint32_t*>(args.buffers[6]) + 4 * i, packed);
  }
  for (uint32_t i = first; i < 65536; i += stride) {
    const uint32_t twice = i * 0x10001u;
    const float2 bf16 = unpack_bf16x2(twice), f16 = unpack_f16x2(twice);
    const uint16_t code = static_cast<uint16_t>(i);
    static_cast<float*>(args.buffers[7])[i] = bf16.x == bf16.y ? bf16_to_f32(code) : bf16.x;
    static_cast<float*>(args.buffers[8])[i] = f16.x == f16.y ? f16_to_f32(code) : f16.x;
  }
  if (first < 256) {
    static_cast<float*>(args.buffers[9])[first] = e4m3_to_f32(static_cast<uint8_t>(first));
  }
  if (first < 16) {
    const uint8_t code = static_cast<uint8_t>(first);
    const float2 twice = unpack_e2m1x2(static_cast<uint8_t>(first * 17));
    static_cast<float*>(args.buffers[10])[first] = twice.x == twice.y ? e2m1_to_f32(code) : twice.x;
  }
}
