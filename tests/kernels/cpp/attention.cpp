// attention_f32 behind a C interface: all (batch, head) pairs are the caller's loop.
#include "svdq_cpu/attention.h"

extern "C" int64_t attention_scratch(int64_t head_dim, int64_t v_dim) {
  return svdq::attention_scratch_bytes(head_dim, v_dim);
}

// strides: q_row, k_row, v_row, out_row, q_col, k_col, v_col, mask_row, mask_col.  sizes: q_len,
// kv_len, head_dim, v_dim.
extern "C" void run_attention(const float* q, const float* k, const float* v, float* out,
                              const int64_t* sizes, const int64_t* strides, const float* mask_f32,
                              const uint8_t* mask_bool, float scale, int64_t causal,
                              int64_t q_begin, int64_t q_end, void* scratch) {
  svdq::AttentionArgs args;
  args.q = q;
  args.k = k;
  args.v = v;
  args.out = out;
  args.q_len = sizes[0];
  args.kv_len = sizes[1];
  args.head_dim = sizes[2];
  args.v_dim = sizes[3];
  args.q_row = strides[0];
  args.k_row = strides[1];
  args.v_row = strides[2];
  args.out_row = strides[3];
  args.q_col = strides[4];
  args.k_col = strides[5];
  args.v_col = strides[6];
  args.mask_row = strides[7];
  args.mask_col = strides[8];
  args.mask_f32 = mask_f32;
  args.mask_bool = mask_bool;
  args.scale = scale;
  args.causal = causal != 0;
  svdq::attention_f32(args, q_begin, q_end, scratch);
}
