// attention_mma.h: attention on 16-bit tensor cores, in the form of FlashAttention-2 (arXiv
// 2307.08691): scores and probabilities stay in registers, softmax is streamed over blocks of keys.
//
//   MmaAttention<HEAD_DIM, V_DIM, QUERIES, KEYS, PARTS, MASKED>::run(args, query_begin, rows,
//                                                                    shared, write)
//     2 QUERIES threads, a warp for each 16 queries; shared: kSharedBytes, aligned to 16
//     write(r, d, value)   is called once per element of the result with r < rows, d < V_DIM, after
//                          a barrier: what lay in `shared` may be overwritten
//   MASKED: a mask may be given
//
// Every operand block (queries, keys, values) is multiplied by the power of two that brings its
// largest magnitude to [2^13, 2^14), so that f16 holds any f32 model's numbers, and is split:
//   PARTS 1   one f16: 11 bits, more than the bf16 that models are trained in
//   PARTS 2   two f16, hi + lo: 22 bits below the block's largest; products hi lo + lo hi + hi hi
// The result is off by at most about (PARTS 1: 2^-10, PARTS 2: 2^-19) times
// (1 + |q| |k| scale) max |v|. A query that sees no key gets zeros.
#ifndef SVDQ_CUDA_ATTENTION_MMA_H
#define SVDQ_CUDA_ATTENTION_MMA_H

#include "svdq_cuda/attention_args.h"
#include "svdq_cuda/attention_block.h"
#include "svdq_cuda/math.h"
#include "svdq_cuda/mma.h"

namespace svdq {

template <int HEAD_DIM, int V_DIM, int QUERIES, int KEYS, int PARTS, bool MASKED>
struct MmaAttention {
  static constexpr int kWarps = QUERIES / 16, kThreads = 32 * kWarps;
  using QBlock = HalfBlock<QUERIES, HEAD_DIM, PARTS, kWarps>;
  using KBlock = HalfBlock<KEYS, HEAD_DIM, PARTS, kWarps>;
  using VBlock = HalfBlock<KEYS, V_DIM, PARTS, kWarps>;
  static constexpr int kSharedBytes = QBlock::kBytes + KBlock::kBytes + VBlock::kBytes + 64;
  static constexpr int kSteps = QBlock::kColumns / 16;
  static constexpr int kKeyTiles = KEYS / 8, kValueTiles = VBlock::kColumns / 8;
  static_assert(QUERIES % 16 == 0 && KEYS % 16 == 0, "tiles of mma");

  // Of this lane: rows g and g + 8 of its warp's queries; s and o as mma.h lays out a result.
  float s[kKeyTiles][4], o[kValueTiles][4];
  float largest[2], total[2], v_unit;

  template <class Write>
  SVDQ_METHOD static void run(const AttentionArgs& args, int64_t query_begin, int64_t rows,
                              char* shared, const Write& write) {
    MmaAttention attention;
    attention.compute(args, query_begin, rows, shared);
    cta_sync();
    attention.finish(rows, write);
  }

 private:
  SVDQ_METHOD void compute(const AttentionArgs& args, int64_t query_begin, int64_t rows,
                           char* shared) {
    uint16_t* const q = reinterpret_cast<uint16_t*>(shared);
    uint16_t* const k = reinterpret_cast<uint16_t*>(shared + QBlock::kBytes);
    uint16_t* const v = reinterpret_cast<uint16_t*>(shared + QBlock::kBytes + KBlock::kBytes);
    float* const warps = reinterpret_cast<float*>(shared + kSharedBytes - 64);
    SVDQ_UNROLL
    for (int j = 0; j < kValueTiles; ++j) {
      SVDQ_UNROLL
      for (int c = 0; c < 4; ++c) o[j][c] = 0.0f;
    }
    largest[0] = largest[1] = -kInf;
    total[0] = total[1] = 0.0f;
    v_unit = kSmallestUnit;

    QBlock q_block;
    q_block.fetch(args.q + query_begin * args.q_row, args.q_row, args.q_col, rows);
    const float q_unit = q_block.store(q, warps, kSmallestUnit) * args.scale * kLog2E;
    const int64_t end = args.causal ? min_i64(args.kv_len, query_begin + rows) : args.kv_len;
    SVDQ_NO_UNROLL
    for (int64_t begin = 0; begin < end; begin += KEYS) {
      KBlock k_block;
      k_block.fetch(args.k + begin * args.k_row, args.k_row, args.k_col, end - begin);
      const float k_unit = k_block.store(k, warps, kSmallestUnit);
      // The values travel while the scores are computed.
      VBlock v_block;
      v_block.fetch(args.v + begin * args.v_row, args.v_row, args.v_col, end - begin);
      cta_sync();
      scores(q, k);
      mask(args, query_begin, begin, end, q_unit * k_unit);
      softmax();
      // A block of larger values than those before: the sums go over to its unit.
      const float unit = v_block.store(v, warps, v_unit);
      const float growth = v_unit * power_inverse(unit);
      SVDQ_UNROLL
      for (int j = 0; j < kValueTiles; ++j) {
        SVDQ_UNROLL
        for (int c = 0; c < 4; ++c) o[j][c] *= growth;
      }
      v_unit = unit;
      cta_sync();
      values(v);
    }
  }

  // s = q k^T, in units of both blocks.
  SVDQ_METHOD void scores(const uint16_t* q, const uint16_t* k) {
    const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(warp_id());
    SVDQ_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      SVDQ_UNROLL
      for (int c = 0; c < 4; ++c) s[j][c] = 0.0f;
    }
    const uint16_t* const q_at = q + (warp * 16 + lane % 16) * QBlock::kLd + lane / 16 * 8;
    const uint16_t* const k_at = k + (lane / 16 * 8 + lane % 8) * KBlock::kLd + lane / 8 % 2 * 8;
    SVDQ_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[PARTS][4];
      SVDQ_UNROLL
      for (int part = 0; part < PARTS; ++part) {
        ldmatrix_x4(a[part], q_at + part * QBlock::kPart + step * 16);
      }
      SVDQ_UNROLL
      for (int j = 0; j < kKeyTiles; j += 2) {
        uint32_t b[PARTS][4];
        SVDQ_UNROLL
        for (int part = 0; part < PARTS; ++part) {
          ldmatrix_x4(b[part], k_at + part * KBlock::kPart + j * 8 * KBlock::kLd + step * 16);
        }
        multiply_pair(s[j], s[j + 1], a, b);
      }
    }
  }

  // Scores in base 2 of those pairs that see each other, -inf elsewhere.
  SVDQ_METHOD void mask(const AttentionArgs& args, int64_t query_begin, int64_t begin, int64_t end,
                        float unit) {
    const int lane = static_cast<int>(lane_id());
    const int64_t query = query_begin + warp_id() * 16 + lane / 4;
    const bool masked = MASKED && (args.mask_bool != nullptr || args.mask_f32 != nullptr);
    const bool whole =
        !masked && begin + KEYS <= end && (!args.causal || begin + KEYS <= query + 1);
    SVDQ_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      SVDQ_UNROLL
      for (int c = 0; c < 4; ++c) {
        s[j][c] *= unit;
        if (whole) continue;
        const int64_t key = begin + j * 8 + lane % 4 * 2 + c % 2, row = query + c / 2 * 8;
        s[j][c] = key < end ? seen(args, row, key, s[j][c]) : -kInf;
      }
    }
  }

  SVDQ_METHOD static float seen(const AttentionArgs& args, int64_t query, int64_t key,
                                float score) {
    if (query >= args.q_len || (args.causal && key > query)) return -kInf;
    if constexpr (!MASKED) return score;
    const int64_t at = query * args.mask_row + key * args.mask_col;
    if (args.mask_bool != nullptr) return args.mask_bool[at] != 0 ? score : -kInf;
    return args.mask_f32 != nullptr ? mad(args.mask_f32[at], kLog2E, score) : score;
  }

  // s becomes probabilities relative to the largest score so far; what was summed follows it.
  SVDQ_METHOD void softmax() {
    SVDQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      float most = largest[half];
      SVDQ_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        most = larger(most, larger(s[j][2 * half], s[j][2 * half + 1]));
      }
      most = lanes_max<4>(most);
      const float reference = most == -kInf ? 0.0f : most;
      const float factor = exp2_fast(largest[half] - reference);
      float sum = 0.0f;
      SVDQ_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        SVDQ_UNROLL
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          s[j][c] = exp2_fast(s[j][c] - reference);
          sum += s[j][c];
        }
      }
      largest[half] = most;
      total[half] = mad(total[half], factor, lanes_sum<4>(sum));
      SVDQ_UNROLL
      for (int j = 0; j < kValueTiles; ++j) {
        o[j][2 * half] *= factor;
        o[j][2 * half + 1] *= factor;
      }
    }
  }

  // o += probabilities v. A result of mma is laid out as the left operand of the next one.
  SVDQ_METHOD void values(const uint16_t* v) {
    const int lane = static_cast<int>(lane_id());
    const uint16_t* const v_at = v + lane % 16 * VBlock::kLd + lane / 16 * 8;
    SVDQ_UNROLL
    for (int step = 0; step < KEYS / 16; ++step) {
      uint32_t a[PARTS][4];
      SVDQ_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* const pair = s[2 * step + i / 2] + i % 2 * 2;
        split_pair<PARTS>(pair[0], pair[1],
                          [&](int part, uint32_t two) SVDQ_LAMBDA { a[part][i] = two; });
      }
      SVDQ_UNROLL
      for (int j = 0; j < kValueTiles; j += 2) {
        uint32_t b[PARTS][4];
        SVDQ_UNROLL
        for (int part = 0; part < PARTS; ++part) {
          ldmatrix_x4_trans(b[part], v_at + part * VBlock::kPart + step * 16 * VBlock::kLd + j * 8);
        }
        multiply_pair(o[j], o[j + 1], a, b);
      }
    }
  }

  // Two result tiles side by side; b[0], b[1] are the first one's operand, b[2], b[3] the second's.
  SVDQ_METHOD static void multiply_pair(float (&first)[4], float (&second)[4],
                                        const uint32_t (&a)[PARTS][4],
                                        const uint32_t (&b)[PARTS][4]) {
    SVDQ_UNROLL
    for (int order = PARTS * PARTS - 1; order >= 0; --order) {  // the smallest products first
      const int left = order / PARTS, right = order % PARTS;
      if (left + right == 2) continue;  // lo lo
      mma_f16(first, a[left], {b[right][0], b[right][1]});
      mma_f16(second, a[left], {b[right][2], b[right][3]});
    }
  }

  template <class Write>
  SVDQ_METHOD void finish(int64_t rows, const Write& write) const {
    const int lane = static_cast<int>(lane_id());
    SVDQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t r = warp_id() * 16 + lane / 4 + half * 8;
      const float inverse = total[half] == 0.0f ? 0.0f : v_unit * reciprocal_fast(total[half]);
      if (r >= rows) continue;
      SVDQ_UNROLL
      for (int j = 0; j < kValueTiles; ++j) {
        SVDQ_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int d = j * 8 + lane % 4 * 2 + c;
          if (d < V_DIM) write(r, d, o[j][2 * half + c] * inverse);
        }
      }
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_ATTENTION_MMA_H
