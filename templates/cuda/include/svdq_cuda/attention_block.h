// attention_block.h: a block of f32 rows as f16 in shared memory, for attention_mma.h.
//
//   HalfBlock<ROWS, COLUMNS, PARTS, WARPS> block
//   block.fetch(from, row, col, rows)       reads it; rows past `rows` and columns up to kColumns
//   are 0 unit = block.store(to, warps, least)    writes parts of x / unit; unit >= least is a
//   power of two,
//                                           the same in all threads. Two barriers of the CTA; what
//                                           lay in `to` may be in use until the first
//
// to: [PARTS][ROWS, kLd] f16; warps: WARPS floats of shared memory. kLd = kColumns + 8 puts rows
// that ldmatrix reads together on different banks.
#ifndef SVDQ_CUDA_ATTENTION_BLOCK_H
#define SVDQ_CUDA_ATTENTION_BLOCK_H

#include "svdq_cuda/fast_math.h"
#include "svdq_cuda/reduce.h"

namespace svdq {

// Brings numbers of 2^-100 to 2^13: whatever is smaller is nothing beside what a sum holds.
constexpr float kSmallestUnit = 0x1p-113f;

// The power of two that divides `largest` into [2^13, 2^14), but no less than `least`.
SVDQ_INLINE float half_unit(float largest, float least) {
  const uint32_t exponent = bits_of(largest) >> 23;
  const uint32_t within = exponent < 14 ? 14 : exponent > 254 ? 254 : exponent;
  return larger(float_of((within - 13) << 23), least);
}

// 1 / x of a power of two between 2^-126 and 2^126.
SVDQ_INLINE float power_inverse(float x) { return float_of((254u << 23) - bits_of(x)); }

// take(part, two values in a register): hi, and for PARTS 2 what remains.
template <int PARTS, class Take>
SVDQ_INLINE void split_pair(float x, float y, const Take& take) {
  const uint32_t hi = pack_f16x2(x, y);
  take(0, hi);
  if constexpr (PARTS == 2) {
    const float2 near = unpack_f16x2(hi);
    take(1, pack_f16x2(x - near.x, y - near.y));
  }
}

template <int ROWS, int COLUMNS, int PARTS, int WARPS>
struct HalfBlock {
  static constexpr int kColumns = (COLUMNS + 15) / 16 * 16;
  static constexpr int kLd = kColumns + 8, kPart = ROWS * kLd;
  static constexpr int kBytes = 2 * PARTS * kPart;
  static constexpr int kRows = ROWS / WARPS, kPairs = (kColumns + 63) / 64;  // of a warp, of a lane
  static_assert(ROWS % WARPS == 0, "warps share the rows evenly");

  float2 x[kRows][kPairs];

  SVDQ_METHOD void fetch(const float* from, int64_t row, int64_t col, int64_t rows) {
    // Pairs that lie together are loaded together; the test is the same for all threads.
    const bool paired =
        COLUMNS % 2 == 0 && col == 1 &&
        (reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(row) * 4) % 8 == 0;
    if (paired) {
      each(rows, [&](int r, int c) SVDQ_LAMBDA {
        const uint2 two = load_8(from + r * row + c);
        return make_float2(float_of(two.x), float_of(two.y));
      });
    } else {
      each(rows, [&](int r, int c) SVDQ_LAMBDA {
        const float* const at = from + r * row + c * col;
        return make_float2(at[0], c + 1 < COLUMNS ? at[col] : 0.0f);
      });
    }
  }

  SVDQ_METHOD float store(uint16_t* to, float* warps, float least) const {
    float most = 0.0f;
    SVDQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      SVDQ_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        most = larger(most, larger(magnitude(x[i][p].x), magnitude(x[i][p].y)));
      }
    }
    most = lanes_max<32>(most);
    cta_sync();  // `warps` and `to` are read no more
    if (lane_id() == 0) warps[warp_id()] = most;
    cta_sync();
    most = warps[0];
    SVDQ_UNROLL
    for (int w = 1; w < WARPS; ++w) most = larger(most, warps[w]);
    const float unit = half_unit(most, least);
    const float inverse = power_inverse(unit);
    const int first = static_cast<int>(warp_id()) * kRows, column = static_cast<int>(lane_id()) * 2;
    SVDQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      SVDQ_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        const int c = column + p * 64;
        if (c >= kColumns) continue;
        uint16_t* const at = to + (first + i) * kLd + c;
        split_pair<PARTS>(x[i][p].x * inverse, x[i][p].y * inverse,
                          [&](int part, uint32_t two) SVDQ_LAMBDA {
                            *reinterpret_cast<uint32_t*>(at + part * kPart) = two;
                          });
      }
    }
    return unit;
  }

 private:
  template <class Load>
  SVDQ_METHOD void each(int64_t rows, const Load& load) {
    const int first = static_cast<int>(warp_id()) * kRows, column = static_cast<int>(lane_id()) * 2;
    const int count = static_cast<int>(min_i64(rows - first, kRows));
    SVDQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      SVDQ_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        const int c = column + p * 64;
        x[i][p] = i < count && c < COLUMNS ? load(first + i, c) : make_float2(0.0f, 0.0f);
      }
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_ATTENTION_BLOCK_H
