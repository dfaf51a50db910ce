// attention_simt.h: attention in f32 without tensor cores, keys and values in any layout, softmax
// streamed over blocks of keys. The meaning is that of svdq_cpu/attention.h.
//
//   SimtAttention<HEAD_DIM, V_DIM, QUERIES, KEYS>::run(args, query_begin, rows, shared, tile, ld)
//     256 threads; shared: kSharedBytes; tile: [QUERIES, ld] f32 in shared memory, the result
//
// A query that sees no key gets zeros.
#ifndef SVDQ_CUDA_ATTENTION_SIMT_H
#define SVDQ_CUDA_ATTENTION_SIMT_H

#include "svdq_cuda/attention_args.h"
#include "svdq_cuda/math.h"

namespace svdq {

template <int HEAD_DIM, int V_DIM, int QUERIES, int KEYS>
struct SimtAttention {
  static constexpr int kThreads = 256;
  static constexpr int kLdQ = HEAD_DIM + 1, kLdS = KEYS + 1;
  static constexpr int kLdKv = (HEAD_DIM > V_DIM ? HEAD_DIM : V_DIM) + 1;
  static constexpr int kSharedBytes = 4 * (QUERIES * (kLdQ + kLdS + 3) + KEYS * kLdKv);
  static_assert(QUERIES <= kThreads, "a thread for each query's softmax");

  SVDQ_METHOD static void run(const AttentionArgs& args, int64_t query_begin, int64_t rows,
                              char* shared, float* tile, int64_t ld) {
    float* const q = reinterpret_cast<float*>(shared);
    float* const kv = q + QUERIES * kLdQ;
    float* const s = kv + KEYS * kLdKv;
    float* const largest = s + QUERIES * kLdS;
    float* const total = largest + QUERIES;
    float* const factor = total + QUERIES;
    const int thread = static_cast<int>(thread_id());
    for (int e = thread; e < QUERIES * HEAD_DIM; e += kThreads) {
      const int m = e / HEAD_DIM, d = e % HEAD_DIM;
      q[m * kLdQ + d] =
          m < rows ? args.q[(query_begin + m) * args.q_row + d * args.q_col] * args.scale : 0.0f;
    }
    for (int e = thread; e < QUERIES * V_DIM; e += kThreads)
      tile[e / V_DIM * ld + e % V_DIM] = 0.0f;
    if (thread < QUERIES) {
      largest[thread] = -kInf;
      total[thread] = 0.0f;
    }
    const int64_t end = args.causal ? min_i64(args.kv_len, query_begin + rows) : args.kv_len;
    for (int64_t begin = 0; begin < end; begin += KEYS) {
      const int count = static_cast<int>(min_i64(KEYS, end - begin));
      cta_sync();
      copy<HEAD_DIM>(args.k + begin * args.k_row, args.k_row, args.k_col, count, kv);
      cta_sync();
      for (int e = thread; e < QUERIES * KEYS; e += kThreads) {
        const int m = e / KEYS, j = e % KEYS;
        float score = 0.0f;
        for (int d = 0; d < HEAD_DIM; ++d) score = mad(q[m * kLdQ + d], kv[j * kLdKv + d], score);
        s[m * kLdS + j] =
            m < rows && j < count ? masked(args, query_begin + m, begin + j, score) : -kInf;
      }
      cta_sync();
      if (thread < QUERIES) {
        const float before = largest[thread];
        float after = before;
        for (int j = 0; j < KEYS; ++j) after = max(after, s[thread * kLdS + j]);
        const float reference = after == -kInf ? 0.0f : after;
        float sum = 0.0f;
        for (int j = 0; j < KEYS; ++j) {
          const float p = exp(s[thread * kLdS + j] - reference);
          s[thread * kLdS + j] = p;
          sum += p;
        }
        factor[thread] = exp(before - reference);
        largest[thread] = after;
        total[thread] = mad(total[thread], factor[thread], sum);
      }
      copy<V_DIM>(args.v + begin * args.v_row, args.v_row, args.v_col, count, kv);
      cta_sync();
      for (int e = thread; e < QUERIES * V_DIM; e += kThreads) {
        const int m = e / V_DIM, d = e % V_DIM;
        float sum = tile[m * ld + d] * factor[m];
        for (int j = 0; j < count; ++j) sum = mad(s[m * kLdS + j], kv[j * kLdKv + d], sum);
        tile[m * ld + d] = sum;
      }
    }
    cta_sync();
    for (int e = thread; e < QUERIES * V_DIM; e += kThreads) {
      const int m = e / V_DIM;
      const float inverse = total[m] == 0.0f ? 0.0f : 1.0f / total[m];
      tile[m * ld + e % V_DIM] *= inverse;
    }
    cta_sync();
  }

 private:
  template <int WIDTH>
  SVDQ_METHOD static void copy(const float* from, int64_t row, int64_t col, int count, float* to) {
    for (int e = static_cast<int>(thread_id()); e < count * WIDTH; e += kThreads) {
      to[e / WIDTH * kLdKv + e % WIDTH] = from[e / WIDTH * row + e % WIDTH * col];
    }
  }

  SVDQ_METHOD static float masked(const AttentionArgs& args, int64_t query, int64_t key,
                                  float score) {
    if (args.causal && key > query) return -kInf;
    const int64_t at = query * args.mask_row + key * args.mask_col;
    if (args.mask_bool != nullptr) return args.mask_bool[at] != 0 ? score : -kInf;
    return args.mask_f32 != nullptr ? score + args.mask_f32[at] : score;
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_ATTENTION_SIMT_H
