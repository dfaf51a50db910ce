// attention.h: out = softmax(scale * q k^T + mask) v for one (batch, head), streaming over blocks
// of keys.
//
// A block of kQueryBlock queries keeps its running maximum m, sum l and unscaled output o. Per
// block of kKvBlock keys, k and v are packed into panels once, and per tile of kQueryTile queries:
//   s = q k^T (in units of log2 e: q is scaled beforehand);  s += mask
//   m' = max(m, max s);  p = 2^(s - m');  l = l 2^(m - m') + sum p;  o = o 2^(m - m') + p v
// and finally out = o / l, or 0 where no key is visible (l = 0), as PyTorch's CPU kernels do.
//
// Key blocks, and the limits of causal tiles, lie at absolute positions, so a query's bits do not
// depend on the range it is computed in.
#ifndef SVDQ_CPU_ATTENTION_H
#define SVDQ_CPU_ATTENTION_H

#include "svdq_cpu/gemm_f32.h"
#include "svdq_cpu/vec_math.h"

namespace svdq {

struct AttentionArgs {
  // One (batch, head). All strides are in elements.
  const float* q;
  const float* k;
  const float* v;
  float* out;
  int64_t q_len, kv_len, head_dim, v_dim;   // kv_len may be 0
  int64_t q_row, k_row, v_row, out_row;     // from one token to the next
  int64_t q_col = 1, k_col = 1, v_col = 1;  // from one element of a head to the next; out's is 1
  float scale = 1.0f;
  // At most one mask, at (query 0, key 0); strides may be 0. A false byte hides the key; floats are
  // added to the scores.
  const float* mask_f32 = nullptr;
  const uint8_t* mask_bool = nullptr;
  int64_t mask_row = 0, mask_col = 0;
  bool causal = false;  // key j is visible to query i where j <= i
};

constexpr int64_t kQueryBlock = 192;
constexpr int64_t kQueryTile = 24;
constexpr int64_t kKvBlock = 384;

constexpr int64_t attention_scratch_bytes(int64_t head_dim, int64_t v_dim) {
  const int64_t v_width = round_up(v_dim, kLanes);
  return 4 * (kQueryBlock * (head_dim + v_width + 2) + kKvBlock * (head_dim + v_width) +
              kQueryTile * kKvBlock);
}

namespace detail {

constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0: 0 below -126, NaN stays NaN. Fit 2^-29.
SVDQ_INLINE f32x16 exp2_poly(f32x16 r) {
  f32x16 p = set1(1.534580751e-04f);
  p = fma(p, r, set1(1.339993118e-03f));
  p = fma(p, r, set1(9.618488974e-03f));
  p = fma(p, r, set1(5.550328777e-02f));
  p = fma(p, r, set1(2.402264689e-01f));
  p = fma(p, r, set1(6.931472057e-01f));
  return fma(p, r, set1(1.0f));
}

#if SVDQ_ISA_AVX512
SVDQ_INLINE f32x16 exp2_nonpositive(f32x16 x) {
  const f32x16 bounded = max(set1(-200.0f), x);  // the second operand where either is NaN
  const f32x16 n = {_mm512_roundscale_ps(bounded.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  return {_mm512_scalef_ps(exp2_poly(bounded - n).v, n.v)};
}
#elif SVDQ_ISA_AVX2
SVDQ_INLINE __m256 shift_exponent(__m256 p, __m256 shifted, __m256 x) {
  const __m256i n =
      _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);  // the integer in the low mantissa bits
  const __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
  return _mm256_and_ps(y, _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ));
}
SVDQ_INLINE f32x16 exp2_nonpositive(f32x16 x) {
  const f32x16 bounded = max(set1(-126.0f), x);
  const f32x16 shifted = bounded + set1(12582912.0f);
  const f32x16 p = exp2_poly(bounded - (shifted - set1(12582912.0f)));
  return {shift_exponent(p.lo, shifted.lo, x.lo), shift_exponent(p.hi, shifted.hi, x.hi)};
}
#else
SVDQ_INLINE f32x16 exp2_nonpositive(f32x16 x) {
  float lane[kLanes];
  store(lane, x);
  for (int i = 0; i < kLanes; ++i) lane[i] = exp2(lane[i]);
  return load(lane);
}
#endif

// Hide or shift the scores s[j] of one query, j in [0, count), which belong to keys kv_begin + j.
SVDQ_INLINE void mask_scores(const AttentionArgs& args, int64_t query, int64_t kv_begin,
                             int64_t count, float* s) {
  const int64_t offset = query * args.mask_row + kv_begin * args.mask_col;
  if (args.mask_f32 != nullptr) {
    const float* mask = args.mask_f32 + offset;
    if (args.mask_col == 1) {
      for (int64_t j = 0; j < count; ++j) s[j] = mad(mask[j], kLog2E, s[j]);
    } else {
      for (int64_t j = 0; j < count; ++j) s[j] = mad(mask[j * args.mask_col], kLog2E, s[j]);
    }
  } else if (args.mask_bool != nullptr) {
    const uint8_t* mask = args.mask_bool + offset;
    if (args.mask_col == 1) {
      for (int64_t j = 0; j < count; ++j) s[j] = mask[j] ? s[j] : -kInf;
    } else {
      for (int64_t j = 0; j < count; ++j) s[j] = mask[j * args.mask_col] ? s[j] : -kInf;
    }
  }
  if (args.causal) {
    for (int64_t j = max_i64(0, query + 1 - kv_begin); j < count; ++j) s[j] = -kInf;
  }
}

// Scores of one query to probabilities in place; updates its maximum and sum and returns the factor
// of what came before.
SVDQ_INLINE float softmax_step(float* s, int64_t width, float* row_max, float* row_sum) {
  f32x16 largest = set1(-kInf);
  for (int64_t j = 0; j < width; j += kLanes) largest = max(largest, load(s + j));
  const float before = *row_max;
  const float block_max = reduce_max(largest);
  const float after = block_max > before ? block_max : before;
  const float reference = after == -kInf ? 0.0f : after;  // nothing visible yet: 2^(-inf - 0) = 0
  f32x16 sum = zero();
  for (int64_t j = 0; j < width; j += kLanes) {
    const f32x16 p = exp2_nonpositive(load(s + j) - set1(reference));
    store(s + j, p);
    sum = sum + p;
  }
  const float factor = exp2(before - reference);
  *row_max = after;
  *row_sum = mad(*row_sum, factor, reduce_add(sum));
  return factor;
}

struct AttentionScratch {
  float *q, *o, *row_max, *row_sum, *k_packed, *v_packed, *s;

  AttentionScratch(void* memory, int64_t head_dim, int64_t v_width) {
    q = static_cast<float*>(memory);
    o = q + kQueryBlock * head_dim;
    row_max = o + kQueryBlock * v_width;
    row_sum = row_max + kQueryBlock;
    k_packed = row_sum + kQueryBlock;
    v_packed = k_packed + kKvBlock * head_dim;
    s = v_packed + kKvBlock * v_width;
  }
};

// The last key that some query of the tile of `query` sees, plus one: of the whole tile, so that it
// does not depend on the range.
SVDQ_INLINE int64_t visible_end(const AttentionArgs& args, int64_t query) {
  return args.causal ? min_i64(args.kv_len, round_up(query + 1, kQueryTile)) : args.kv_len;
}

// Queries [tile_begin, tile_end), rows from `row` of the scratch, against the packed keys
// [kv_begin, kv_begin + kv_count).
SVDQ_INLINE void attention_tile(const AttentionArgs& args, const AttentionScratch& scratch,
                                int64_t row, int64_t tile_begin, int64_t tile_end, int64_t kv_begin,
                                int64_t kv_count) {
  const int64_t v_width = round_up(args.v_dim, kLanes);
  const int64_t count = min_i64(kv_count, visible_end(args, tile_begin) - kv_begin);
  if (count <= 0) return;
  const int64_t width = round_up(count, kLanes);
  const int64_t num_rows = tile_end - tile_begin;
  gemm_f32(num_rows, args.head_dim, scratch.q + row * args.head_dim, args.head_dim,
           scratch.k_packed, 0, width / kLanes, scratch.s, kKvBlock, false);
  for (int64_t i = 0; i < num_rows; ++i) {
    float* s = scratch.s + i * kKvBlock;
    mask_scores(args, tile_begin + i, kv_begin, count, s);
    for (int64_t j = count; j < width; ++j) s[j] = -kInf;
    const float factor =
        softmax_step(s, width, scratch.row_max + row + i, scratch.row_sum + row + i);
    if (factor != 1.0f) {
      float* o = scratch.o + (row + i) * v_width;
      for (int64_t j = 0; j < v_width; j += kLanes) store(o + j, load(o + j) * set1(factor));
    }
  }
  gemm_f32_strided(num_rows, count, scratch.s, kKvBlock, scratch.v_packed, kv_count * kLanes, 0,
                   v_width / kLanes, scratch.o + row * v_width, v_width, true);
}

SVDQ_OUTLINE void attention_block(const AttentionArgs& args, const AttentionScratch& scratch,
                                  int64_t q_begin, int64_t q_end) {
  const int64_t v_width = round_up(args.v_dim, kLanes);
  const int64_t num_rows = q_end - q_begin;
  const float scale = args.scale * kLog2E;
  for (int64_t i = 0; i < num_rows; ++i) {
    const float* q = args.q + (q_begin + i) * args.q_row;
    float* q_scaled = scratch.q + i * args.head_dim;
    for (int64_t d = 0; d < args.head_dim; ++d) q_scaled[d] = q[d * args.q_col] * scale;
    scratch.row_max[i] = -kInf;
    scratch.row_sum[i] = 0.0f;
  }
  memset(scratch.o, 0, static_cast<size_t>(num_rows * v_width) * sizeof(float));

  const int64_t kv_end = visible_end(args, q_end - 1);
  for (int64_t kv_begin = 0; kv_begin < kv_end; kv_begin += kKvBlock) {
    const int64_t kv_count = min_i64(kKvBlock, args.kv_len - kv_begin);
    pack_b(args.head_dim, kv_count, args.k + kv_begin * args.k_row, args.k_col, args.k_row,
           scratch.k_packed);
    pack_b(kv_count, args.v_dim, args.v + kv_begin * args.v_row, args.v_row, args.v_col,
           scratch.v_packed);
    for (int64_t tile = q_begin; tile < q_end;) {
      const int64_t tile_end = min_i64(q_end, round_up(tile + 1, kQueryTile));
      attention_tile(args, scratch, tile - q_begin, tile, tile_end, kv_begin, kv_count);
      tile = tile_end;
    }
  }

  for (int64_t i = 0; i < num_rows; ++i) {
    const float* o = scratch.o + i * v_width;
    float* out = args.out + (q_begin + i) * args.out_row;
    const float sum = scratch.row_sum[i];
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int64_t d = 0; d < args.v_dim; ++d) out[d] = o[d] * inverse;
  }
}

}  // namespace detail

// Queries [q_begin, q_end); scratch: attention_scratch_bytes(head_dim, v_dim).
SVDQ_INLINE void attention_f32(const AttentionArgs& args, int64_t q_begin, int64_t q_end,
                               void* scratch) {
  const detail::AttentionScratch areas(scratch, args.head_dim, round_up(args.v_dim, kLanes));
  // Blocks of about equal size: each packs all keys and values once.
  const int64_t num_blocks = ceil_div(q_end - q_begin, kQueryBlock);
  const int64_t block =
      num_blocks == 0 ? 1 : round_up(ceil_div(q_end - q_begin, num_blocks), kQueryTile);
  for (int64_t begin = q_begin; begin < q_end; begin += block) {
    detail::attention_block(args, areas, begin, min_i64(q_end, begin + block));
  }
}

}  // namespace svdq

#endif  // SVDQ_CPU_ATTENTION_H
