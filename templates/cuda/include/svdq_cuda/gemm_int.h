// gemm_int.h: the product of coded activations and coded weights, exact per group, on tensor cores.
//
//   acc[m, n] += sum_g  x_scale[m, g] * w_scale[n, g] * sum_{k in g} x_codes[m, k] * w_codes[n, k]
//
//   IntGemm<Tile, Codes, GROUP, BK> gemm(shared)   kSharedBytes, 128-byte aligned
//   gemm.load(operands)                 the first tiles are under way
//   gemm.start(columns, bias)           what the sums begin with (Accumulators), then
//   add_low_rank(gemm, ...)             what else is added (gemm_low_rank.h)
//   gemm.multiply()
//   for each slab: gemm.store_slab(s, tile)        `tile` may be `shared` itself
//
// All operands in global memory, 16-byte aligned:
//   x_codes  [rows, K] row-major, 4-bit (two a byte, the low nibble first) or 8-bit; K % 32 == 0
//   x_scale  [rows, K / GROUP] f32; GROUP 0: [rows]
//   w        blocks of 32 columns by 64 k in fragment order (gemm_codes.h), zero padded
//   w_scale  "scale_mma", [N/32, K / GROUP, 4, 4, 2] bf16: of column 8 j + 2 t + i at [.., t, j, i]
//   multipliers   "multiplier_mma" (gemm_codes.h) of Codes that have them, else null
//
// Per group and element two operations in f32: integer sums start at 1.5 * 2^23 as the bits of a
// float, whose last places they count, so no conversion is needed:
//   t   = fma(bits, w_scale, -1.5 * 2^23 * w_scale)   = sum * w_scale, exact: sums of 4-bit codes
//                                                       have 14 bits, scales 8
//   acc = fma(t, x_scale, acc)
// Groups come in rising order, onto what the sums began with: the bits equal the CPU's.
//
// GROUP 0: one scale for a row of either side, and the sums of all of K are integers until the end
// (K < 2^17 of 8-bit codes): acc = fma(float(sum) * w_scale, x_scale, acc). Codes that promote
// (E4M3) are summed in acc every stage and scaled there, so it starts from nothing: bias (add) and
// branch come after multiply.
#ifndef SVDQ_CUDA_GEMM_INT_H
#define SVDQ_CUDA_GEMM_INT_H

#include "svdq_cuda/gemm_codes.h"
#include "svdq_cuda/gemm_tile.h"

namespace svdq {

constexpr int32_t kMagicBits = 0x4b400000;
constexpr float kMagic = 12582912.0f;  // of these bits: 1.5 * 2^23

struct IntGemmOperands {
  const void* x_codes;   // at the tile's first row
  const float* x_scale;  // at the tile's first row
  int64_t rows;          // of the tile that exist, at most BM
  const void* w;
  const uint16_t* w_scale;
  int64_t column;   // the tile's first
  int64_t columns;  // of the whole weight
  int64_t k;
  const int8_t* multipliers;
};

template <class Tile, class Codes, int GROUP, int BK>
struct IntGemm : Accumulators<Tile> {
  using Base = Accumulators<Tile>;
  using Sum = typename Codes::Sum;
  static constexpr int kRowBytes = BK * Codes::kA / 8;  // of x_codes in a stage
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr bool kWhole = GROUP == 0;
  static constexpr int kGroups = kWhole ? 0 : BK / (kWhole ? 1 : GROUP);  // in a stage
  // A stage: x_codes, then x_scale [kGroups, BM], then w_scale [kGroups, BN / 32, 64 bytes].
  static constexpr int kXScale = Tile::BM * kRowBytes;
  static constexpr int kWScale = kXScale + Tile::BM * kGroups * 4;
  static constexpr int kWScaleChunks = kGroups * Tile::BN / 8;
  static constexpr int kStageBytes = kWScale + kWScaleChunks * 16;
  static constexpr int kLoadBytes = kStageBytes * Tile::STAGES;
  static constexpr int kSharedBytes = kLoadBytes > Tile::kSlabBytes ? kLoadBytes : Tile::kSlabBytes;
  // A step is what the registers hold of both operands: 64 k, or a group where that is longer.
  static constexpr int kStep = GROUP > 64 ? GROUP : 64;
  static constexpr int kSteps = BK / kStep, kBlocks = kStep / 64,
                       kStepGroups = kWhole ? 0 : kStep / (kWhole ? 1 : GROUP);
  static constexpr int kLoads = Codes::kB;  // of 16 bytes, for 32 columns by 64 k
  static constexpr int kBlockBytes = kLoads * 512;
  static constexpr bool kPromotes = Codes::kPromotes;
  static constexpr int kMultipliers = Codes::kMultipliers;
  static_assert(kWhole || !kPromotes, "floats have one scale for a row of either side");
  static_assert(kWhole || GROUP == 32 || GROUP == 64 || GROUP == 128, "group");
  static_assert(BK % kStep == 0, "steps in a stage");
  static_assert(kRowBytes == 64 || kRowBytes % 128 == 0, "rows are swizzled in 64 or 128 bytes");
  static_assert(Tile::BM * kChunks % Tile::kThreads == 0, "threads share the copies evenly");
  static_assert(Tile::kThreads % kChunks == 0 && Tile::kThreads % (kWhole ? 1 : kGroups) == 0,
                "rows of a thread");
  static_assert(GROUP * Codes::kLargest <= 1 << 22, "sums stay in the last places of 1.5 * 2^23");

  static_assert(kMultipliers == 0 || kWhole, "multiplied codes need no scale per group");

  struct Weights {
    uint4 codes[Tile::kPanels][kBlocks][kLoads];
    uint32_t multipliers[Tile::kPanels][kMultipliers > 0 ? kMultipliers : 1];
  };

  char* const shared;
  const char* x_codes;
  const float* x_scale;
  const char* w[Tile::kPanels];
  const int8_t* multipliers[Tile::kPanels];
  const char* w_scale;
  int64_t row_bytes;
  int rows, k, columns, num_blocks, num_groups, num_tiles;
  Sum magic[4];
  Sum total[kWhole ? Tile::MT : 1][kWhole ? Tile::NT : 1][4] = {};

  SVDQ_METHOD explicit IntGemm(char* memory) : shared(memory) {}

  SVDQ_METHOD void load(const IntGemmOperands& from) {
    rows = static_cast<int>(from.rows);
    k = static_cast<int>(from.k);
    columns = static_cast<int>(from.columns - from.column);
    row_bytes = from.k * Codes::kA / 8;
    num_blocks = (k + 63) / 64;
    num_groups = kWhole ? 1 : k / (kWhole ? 1 : GROUP);
    num_tiles = (k + BK - 1) / BK;
    const int thread = static_cast<int>(thread_id());
    x_codes = static_cast<const char*>(from.x_codes) + thread / kChunks * row_bytes +
              thread % kChunks * 16;
    x_scale = from.x_scale;
    if constexpr (!kWhole) {
      x_scale += thread / kGroups * int64_t{num_groups} + thread % kGroups;
    }
    const int64_t warp_column = from.column + Base::warp_column * Tile::NT * 8;
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) {
      w[p] = static_cast<const char*>(from.w) +
             panel_at(warp_column, p, from.columns) * num_blocks * kBlockBytes + lane_id() * 16;
      if constexpr (kMultipliers > 0) {
        multipliers[p] = from.multipliers +
                         panel_at(warp_column, p, from.columns) * (k / Codes::kGroup) * 32 +
                         lane_id() / 4 * 4;
      }
    }
    w_scale = reinterpret_cast<const char*>(from.w_scale) + from.column / 32 * num_groups * 64;
    magic[0] = kMagicBits + (rows >> 31);
    magic[1] = kMagicBits + (num_blocks >> 31);
    magic[2] = kMagicBits + (num_groups >> 31);
    magic[3] = kMagicBits + (num_tiles >> 31);
    SVDQ_UNROLL
    for (int stage = 0; stage < Tile::STAGES - 1; ++stage) load_tile(stage, stage);
  }

  SVDQ_METHOD void multiply() {
    Weights weights;
    SVDQ_UNROLL
    for (int p = 0; p < Tile::kPanels; ++p) load_weights(weights, p, 0);
    int slot = 0, next_slot = Tile::STAGES - 1;
    SVDQ_NO_UNROLL
    for (int tile = 0; tile < num_tiles; ++tile) {
      cp_async_wait<Tile::STAGES - 2>();
      cta_sync();
      load_tile(next_slot, tile + Tile::STAGES - 1);
      // Unrolled, it would take more registers than there are.
      SVDQ_NO_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        multiply_step(shared + slot * kStageBytes, tile, step, weights);
      }
      if constexpr (kPromotes) Base::promote(total);
      slot = slot + 1 == Tile::STAGES ? 0 : slot + 1;
      next_slot = next_slot + 1 == Tile::STAGES ? 0 : next_slot + 1;
    }
    cp_async_wait<0>();
    if constexpr (kWhole) add_total();
  }

 private:
  // 16-byte chunk c of a row lies at chunk c ^ swizzle(row), so that eight rows of a column of
  // chunks, which ldmatrix reads at a time, lie on different banks.
  SVDQ_METHOD static int swizzle(int row) { return kRowBytes == 64 ? row / 2 % 4 : row % 8; }

  // Stage `slot` gets tile `tile` of k, zeros outside; nothing past the last tile.
  SVDQ_METHOD void load_tile(int slot, int tile) {
    if (tile < num_tiles) {
      char* const stage = shared + slot * kStageBytes;
      const int thread = static_cast<int>(thread_id());
      const int row = thread / kChunks, chunk = thread % kChunks;
      constexpr int kRows = Tile::kThreads / kChunks;  // at a time
      const bool inside = tile * kRowBytes + chunk * 16 < static_cast<int>(row_bytes);
      const char* const x = x_codes + tile * kRowBytes;
      char* const to = stage + row * kRowBytes + (chunk ^ swizzle(row)) * 16;
      static_assert(kRows % 8 == 0, "rows of a thread have the same swizzle");
      SVDQ_UNROLL
      for (int i = 0; i < Tile::BM / kRows; ++i) {
        const bool valid = inside && row + i * kRows < rows;
        cp_async_16(to + i * kRows * kRowBytes, valid ? x + i * kRows * row_bytes : x_codes, valid);
      }
      if constexpr (!kWhole) load_scales(stage, tile);
    }
    cp_async_commit();
  }

  // The scales of a stage.
  SVDQ_METHOD void load_scales(char* stage, int tile) {
    const int thread = static_cast<int>(thread_id());
    constexpr int kScaleRows = Tile::kThreads / kGroups;  // at a time
    const bool has_group = tile * kGroups + thread % kGroups < num_groups;
    float* const scale_to =
        reinterpret_cast<float*>(stage + kXScale) + thread % kGroups * Tile::BM + thread / kGroups;
    SVDQ_UNROLL
    for (int i = 0; i * kScaleRows < Tile::BM; ++i) {
      const int at = thread / kGroups + i * kScaleRows;
      if (Tile::BM % kScaleRows != 0 && at >= Tile::BM) break;
      const bool valid = has_group && at < rows;
      const int64_t ahead = tile * kGroups + int64_t{i} * kScaleRows * num_groups;
      cp_async<4>(scale_to + i * kScaleRows, valid ? x_scale + ahead : x_scale, valid);
    }
    SVDQ_UNROLL
    for (int first = 0; first < kWScaleChunks; first += Tile::kThreads) {
      const int index = first + thread, group = index / (Tile::BN / 8);
      if (first + Tile::kThreads > kWScaleChunks && index >= kWScaleChunks) break;
      const int panel = index / 4 % (Tile::BN / 32), at = tile * kGroups + group;
      const bool valid = panel * 32 < columns && at < num_groups;
      cp_async_16(stage + kWScale + index * 16,
                  w_scale + (valid ? (panel * num_groups + at) * 64 + index % 4 * 16 : 0), valid);
    }
  }

  // Past the end of k the last weights again: the activations there are zero.
  SVDQ_METHOD void load_weights(Weights& weights, int panel, int step) {
    SVDQ_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const int wanted = step * kBlocks + b;
      const int block = wanted < num_blocks ? wanted : num_blocks - 1;
      SVDQ_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        weights.codes[panel][b][i] = load_16(w[panel] + block * kBlockBytes + i * 512);
      }
      if constexpr (kMultipliers > 0) {
        Codes::load_multipliers(multipliers[panel], k, block, weights.multipliers[panel]);
      }
    }
  }

  SVDQ_METHOD void load_codes(const char* stage, int i, int block, uint32_t (&raw)[Codes::kA]) {
    const int lane = static_cast<int>(lane_id());
    const int row = (i * Tile::WARPS_M + Base::warp_row) * 16 + lane % 16;
    SVDQ_UNROLL
    for (int part = 0; part < Codes::kA / 4; ++part) {
      const int chunk = (block * Codes::kA / 4 + part) * 2 + lane / 16;
      uint32_t four[4];
      ldmatrix_x4(four, stage + row * kRowBytes + (chunk ^ swizzle(lane % 16)) * 16);
      SVDQ_UNROLL
      for (int r = 0; r < 4; ++r) raw[4 * part + r] = four[r];
    }
  }

  SVDQ_METHOD void multiply_step(const char* stage, int tile, int step, Weights& weights) {
    uint32_t a[Tile::MT][kBlocks][Codes::kAOps];
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) {
      SVDQ_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        uint32_t raw[Codes::kA];
        load_codes(stage, i, step * kBlocks + b, raw);
        Codes::widen_a(raw, a[i][b]);
      }
    }
    if constexpr (kWhole) multiply_whole(a, tile * kSteps + step + 1, weights);
    SVDQ_UNROLL
    for (int g = 0; g < kStepGroups; ++g) {
      const int group = step * kStepGroups + g;
      const float* const x_scales =
          reinterpret_cast<const float*>(stage + kXScale) + group * Tile::BM;
      const char* const w_scales =
          stage + kWScale + (group * (Tile::BN / 32) + Base::warp_column * Tile::kPanels) * 64 +
          lane_id() % 4 * 16;
      float x_scale_of[Tile::MT][2];
      SVDQ_UNROLL
      for (int i = 0; i < Tile::MT; ++i) {
        x_scale_of[i][0] = x_scales[Base::row_of(i)];
        x_scale_of[i][1] = x_scales[Base::row_of(i) + 8];
      }
      uint4 four_scales;
      SVDQ_UNROLL
      for (int j = 0; j < Tile::NT; ++j) {
        if (j % 4 == 0) four_scales = *reinterpret_cast<const uint4*>(w_scales + j / 4 * 64);
        uint32_t b[kBlocks][Codes::kBOps];
        SVDQ_UNROLL
        for (int block = 0; block < kBlocks; ++block) {
          load_b(weights, j, block, b[block]);
        }
        const float2 pair = unpack_bf16x2(word_of(four_scales, j % 4));
        const float scale[2] = {pair.x * Codes::kUnit, pair.y * Codes::kUnit};
        const float minus[2] = {pair.x * (-kMagic * Codes::kUnit),
                                pair.y * (-kMagic * Codes::kUnit)};
        SVDQ_UNROLL
        for (int i = 0; i < Tile::MT; ++i) {
          Sum sum[4];
          if constexpr (GROUP == 32) {
            Codes::mma_32(g, sum, a[i][0], b[0], magic);
          } else {
            SVDQ_UNROLL
            for (int block = 0; block < kBlocks; ++block) {
              Codes::mma_64(sum, a[i][block], b[block], block == 0 ? magic : sum);
            }
          }
          SVDQ_UNROLL
          for (int c = 0; c < 4; ++c) {
            const float scaled =
                mad(float_of(static_cast<uint32_t>(sum[c])), scale[c % 2], minus[c % 2]);
            Base::acc[i][j][c] = mad(scaled, x_scale_of[i][c / 2], Base::acc[i][j][c]);
          }
        }
        if (j % 4 == 3 && g + 1 == kStepGroups) {
          load_weights(weights, j / 4, tile * kSteps + step + 1);
        }
      }
    }
  }

  // The operand of columns 8 j ... 8 j + 7 from a panel's words.
  SVDQ_METHOD static void load_b(const Weights& weights, int j, int block,
                                 uint32_t (&b)[Codes::kBOps]) {
    const uint4(&words)[kLoads] = weights.codes[j / 4][block];
    uint32_t raw[Codes::kB];
    SVDQ_UNROLL
    for (int r = 0; r < Codes::kB; ++r) {
      const int word = j % 4 * Codes::kB + r;
      raw[r] = word_of(words[word / 4], word % 4);
    }
    if constexpr (kMultipliers > 0) {
      Codes::widen_b(raw, weights.multipliers[j / 4], j % 4, b);
    } else {
      Codes::widen_b(raw, b);
    }
  }

  SVDQ_METHOD void multiply_whole(const uint32_t (&a)[Tile::MT][kBlocks][Codes::kAOps],
                                  int next_step, Weights& weights) {
    SVDQ_UNROLL
    for (int j = 0; j < Tile::NT; ++j) {
      uint32_t b[Codes::kBOps];
      load_b(weights, j, 0, b);
      SVDQ_UNROLL
      for (int i = 0; i < Tile::MT; ++i) Codes::mma_64(total[i][j], a[i][0], b, total[i][j]);
      if (j % 4 == 3) load_weights(weights, j / 4, next_step);
    }
  }

  SVDQ_METHOD void add_total() {
    SVDQ_UNROLL
    for (int i = 0; i < Tile::MT; ++i) {
      const int row = Base::row_of(i);
      const float of_row[2] = {row < rows ? x_scale[row] : 0.0f,
                               row + 8 < rows ? x_scale[row + 8] : 0.0f};
      SVDQ_UNROLL
      for (int j = 0; j < Tile::NT; ++j) {
        const int column = Base::column_of(j);  // at [panel][t][j % 4][2]
        const int at = column / 32 * 64 + static_cast<int>(lane_id() % 4) * 16 + j % 4 * 4;
        const float2 of_column =
            unpack_bf16x2(column < columns ? load_4(w_scale + at) : uint32_t{0});
        SVDQ_UNROLL
        for (int c = 0; c < 4; ++c) {
          float& acc = Base::acc[i][j][c];
          const float sum = kPromotes ? acc * Codes::kUnit : static_cast<float>(total[i][j][c]);
          const float of_both = sum * (c % 2 == 0 ? of_column.x : of_column.y);
          acc = kPromotes ? of_both * of_row[c / 2] : mad(of_both, of_row[c / 2], acc);
        }
      }
    }
  }

  SVDQ_METHOD static uint32_t word_of(const uint4& words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GEMM_INT_H
