// attention_args.h: what every attention kernel is given.
#ifndef SVDQ_CUDA_ATTENTION_ARGS_H
#define SVDQ_CUDA_ATTENTION_ARGS_H

#include "svdq_cuda/intrinsics.h"

namespace svdq {

// Rows and columns of q [q_len, head_dim], k [kv_len, head_dim], v [kv_len, v_dim] and mask
// [q_len, kv_len] by stride. mask_bool: true where seen; mask_f32: added; causal: key <= query.
struct AttentionArgs {
  const float *q, *k, *v;
  int64_t q_len, kv_len;
  int64_t q_row, q_col, k_row, k_col, v_row, v_col;
  const uint8_t* mask_bool;
  const float* mask_f32;
  int64_t mask_row, mask_col;
  float scale;
  bool causal;
};

}  // namespace svdq

#endif  // SVDQ_CUDA_ATTENTION_ARGS_H
