// host/tcgen05.h: what tensor memory and its products mean; see tcgen05.h. Copies and products are
// made when somebody waits for the barrier that they were committed to, so sums that are read, or
// operands that are overwritten, too early are wrong here as well; a load is made when it is
// waited for.
#ifndef SVDQ_CUDA_HOST_TCGEN05_H
#define SVDQ_CUDA_HOST_TCGEN05_H

#include "svdq_cuda/host/barrier.h"
#include "svdq_cuda/host/mma.h"

namespace svdq {

SVDQ_NOINLINE uint64_t tcgen05_operand(const void* start, uint32_t k_step, uint32_t row_step) {
  host::checked_shared("tcgen05_operand", start, 16, 16);
  if (k_step % 16 != 0 || row_step % 16 != 0 || k_step >= 1u << 18 || row_step >= 1u << 18) {
    host::cta().fail("tcgen05_operand: steps are multiples of 16 below 2^18");
  }
  return static_cast<uint64_t>(shared_address(start) >> 4) |
         static_cast<uint64_t>(k_step >> 4) << 16 | static_cast<uint64_t>(row_step >> 4) << 32 |
         uint64_t{1} << 46;
}

namespace host {

constexpr uint32_t kTensorLanes = 128, kTensorColumns = 512;

inline uint32_t& cell(uint32_t lane, uint32_t column) {
  return cta().tensor_memory[lane * kTensorColumns + column];
}

// The column of an address whose lane is `lane`, with `count` columns that the CTA has.
inline uint32_t tensor_column(const char* what, uint32_t address, uint32_t lane, uint32_t count) {
  const uint32_t column = address & 0xffffu;
  if (address >> 16 != lane || column + count > cta().tensor_columns) {
    cta().fail(std::string(what) + ": lane " + std::to_string(address >> 16) + ", columns " +
               std::to_string(column) + " + " + std::to_string(count) + " of " +
               std::to_string(cta().tensor_columns) + "; this one reaches lane " +
               std::to_string(lane));
  }
  return column;
}

// `bytes` from chunk `chunk` of 16 bytes along k of a row.
inline const char* operand_at(const char* what, uint64_t operand, int row, int chunk) {
  const uint32_t start = static_cast<uint32_t>(operand & 0x3fffu) << 4;
  const uint32_t k_step = static_cast<uint32_t>(operand >> 16 & 0x3fffu) << 4;
  const uint32_t row_step = static_cast<uint32_t>(operand >> 32 & 0x3fffu) << 4;
  if (operand >> 46 != 1) cta().fail(std::string(what) + ": no descriptor");
  const uint32_t at = start + static_cast<uint32_t>(row / 8) * row_step +
                      static_cast<uint32_t>(chunk) * k_step + static_cast<uint32_t>(row % 8) * 16;
  return checked_shared(what, cta().shared + at, 16, 16);
}

// Codes of 64 k of a row.
inline void decode_row(uint64_t operand, int row, float (&values)[64]) {
  for (int chunk = 0; chunk < 2; ++chunk) {
    uint32_t words[4];
    memcpy(words, operand_at("tcgen05_e2m1", operand, row, chunk), 16);
    for (int i = 0; i < 32; ++i) values[32 * chunk + i] = e2m1_of(words[i / 8], i % 8);
  }
}

inline void copy_scales(uint32_t to, uint64_t operand) {
  const uint32_t column = tensor_column("tcgen05_scales", to, 0, 4);
  for (int row = 0; row < 32; ++row) {
    uint32_t words[4];
    memcpy(words, operand_at("tcgen05_scales", operand, row, 0), 16);
    for (uint32_t lane = static_cast<uint32_t>(row); lane < kTensorLanes; lane += 32) {
      for (uint32_t i = 0; i < 4; ++i) cell(lane, column + i) = words[i];
    }
  }
}

// The scales of a row's 64 k; lanes of every quarter must have them.
inline void scales_of(uint32_t column, int row, float (&scales)[4]) {
  const uint32_t lane = static_cast<uint32_t>(row % 32),
                 at = column + static_cast<uint32_t>(row / 32);
  const uint32_t word = cell(lane, at);
  for (uint32_t quarter = 1; quarter < 4; ++quarter) {
    if (cell(lane + 32 * quarter, at) != word) cta().fail("tcgen05_e2m1: scales differ by quarter");
  }
  for (int block = 0; block < 4; ++block) scales[block] = e4m3_of(word & 0x7f7f7f7fu, block);
}

// Each 16 k are summed exactly, scaled, and then rounded into the sum, by rising k.
inline void multiply_e2m1(int columns, uint32_t sums, uint64_t a, uint64_t b, uint32_t a_scales,
                          uint32_t b_scales) {
  const uint32_t first = tensor_column("tcgen05_e2m1", sums, 0, static_cast<uint32_t>(columns));
  const uint32_t a_column = tensor_column("tcgen05_e2m1", a_scales, 0, 4);
  const uint32_t b_column =
      tensor_column("tcgen05_e2m1", b_scales, 0, static_cast<uint32_t>(columns + 31) / 32);
  const size_t n = static_cast<size_t>(columns);
  std::vector<float> right(64 * n), right_scales(4 * n), sum(n);
  float values[64], scales[4];
  for (int column = 0; column < columns; ++column) {
    float* const of_column = right.data() + column;
    decode_row(b, column, values);
    scales_of(b_column, column, scales);
    for (int k = 0; k < 64; ++k) of_column[k * columns] = values[k];
    for (int block = 0; block < 4; ++block) {
      right_scales.data()[block * columns + column] = scales[block];
    }
  }
  float* const partial = sum.data();
  for (int row = 0; row < 128; ++row) {
    decode_row(a, row, values);
    scales_of(a_column, row, scales);
    uint32_t* const cells = &cell(static_cast<uint32_t>(row), first);
    for (int block = 0; block < 4; ++block) {
      for (int column = 0; column < columns; ++column) partial[column] = 0.0f;
      for (int k = 16 * block; k < 16 * block + 16; ++k) {
        const float* const of_k = right.data() + k * columns;
        const float left = values[k];
        for (int column = 0; column < columns; ++column) partial[column] += left * of_k[column];
      }
      const float* const of_block = right_scales.data() + block * columns;
      for (int column = 0; column < columns; ++column) {
        const float scale = scales[block] * of_block[column];
        cells[column] = bits_of(float_of(cells[column]) + partial[column] * scale);
      }
    }
  }
}

struct LateLoad {
  uint32_t thread;
  float (*d)[4];
  uint32_t count, address;
};
inline std::vector<LateLoad>& late_loads() {
  static thread_local std::vector<LateLoad> loads;
  return loads;
}

// visit(register j, c of d, its cell), for the 16 lanes and 8 `count` columns of a thread's access.
template <typename Visit>
inline void for_each_cell(const char* what, uint32_t count, uint32_t address, const Visit& visit) {
  const uint32_t thread = cta().current, half = address >> 16 & 16;
  const uint32_t lane = thread / kWarp % 4 * 32 + half;
  const uint32_t column = tensor_column(what, address, lane, 8 * count);
  const uint32_t g = thread % kWarp / 4, t = thread % 4;
  for (uint32_t j = 0; j < count; ++j) {
    for (uint32_t c = 0; c < 4; ++c) {
      visit(j, c, cell(lane + g + c / 2 * 8, column + 8 * j + 2 * t + c % 2));
    }
  }
}

}  // namespace host

SVDQ_INLINE bool tcgen05_elect() { return lane_id() == 0; }

template <int COLUMNS>
SVDQ_NOINLINE void tcgen05_alloc(uint32_t* shared) {
  static_assert(COLUMNS >= 32 && COLUMNS <= 512 && (COLUMNS & (COLUMNS - 1)) == 0, "columns");
  uint32_t* mine = shared;
  host::warp_collective("tcgen05_alloc", mine, [](uint32_t*** lane) {
    host::Cta& here = host::cta();
    if (here.tensor_columns != 0) here.fail("tcgen05_alloc: the CTA has tensor memory already");
    here.tensor_columns = COLUMNS;
    here.tensor_memory.assign(host::kTensorLanes * host::kTensorColumns, 0xffffffffu);
    host::late_work().clear();
    host::uncommitted().clear();
    host::late_loads().clear();
    *reinterpret_cast<uint32_t*>(host::checked_shared("tcgen05_alloc", *lane[0], 4, 4)) = 0;
  });
}
template <int COLUMNS>
SVDQ_NOINLINE void tcgen05_free(uint32_t address) {
  uint32_t mine = address;
  host::warp_collective("tcgen05_free", mine, [](uint32_t** lane) {
    host::Cta& here = host::cta();
    if (*lane[0] != 0 || here.tensor_columns != COLUMNS) here.fail("tcgen05_free: not allocated");
    here.tensor_columns = 0;
  });
}

SVDQ_NOINLINE void tcgen05_scales(uint32_t to, uint64_t operand) {
  host::uncommitted().push_back([to, operand] { host::copy_scales(to, operand); });
}
template <int N>
SVDQ_NOINLINE void tcgen05_e2m1(uint32_t sums, uint64_t a, uint64_t b, uint32_t a_scales,
                                uint32_t b_scales) {
  host::uncommitted().push_back([=] { host::multiply_e2m1(N, sums, a, b, a_scales, b_scales); });
}
SVDQ_NOINLINE void tcgen05_commit(uint64_t* barrier) {
  host::state_of("tcgen05_commit", barrier);
  host::late_work().push_back({barrier, std::move(host::uncommitted())});
  host::uncommitted().clear();
}

template <int N>
SVDQ_NOINLINE void tcgen05_load(float (&d)[N][4], uint32_t address) {
  host::for_each_cell("tcgen05_load", N, address,
                      [&](uint32_t j, uint32_t c, uint32_t) { d[j][c] = float_of(0xffffffffu); });
  host::late_loads().push_back({host::cta().current, d, N, address});
}
SVDQ_NOINLINE void tcgen05_wait_load() {
  std::vector<host::LateLoad>& loads = host::late_loads();
  size_t kept = 0;
  for (const host::LateLoad& load : loads) {
    if (load.thread != host::cta().current) {
      loads[kept++] = load;
      continue;
    }
    host::for_each_cell(
        "tcgen05_load", load.count, load.address,
        [&](uint32_t j, uint32_t c, uint32_t value) { load.d[j][c] = float_of(value); });
  }
  loads.resize(kept);
}
template <int N>
SVDQ_NOINLINE void tcgen05_store(const float (&d)[N][4], uint32_t address) {
  host::for_each_cell("tcgen05_store", N, address,
                      [&](uint32_t j, uint32_t c, uint32_t& value) { value = bits_of(d[j][c]); });
}
SVDQ_INLINE void tcgen05_wait_store() {}
SVDQ_INLINE void tcgen05_fence_before() {}
SVDQ_INLINE void tcgen05_fence_after() {}

}  // namespace svdq

#endif  // SVDQ_CUDA_HOST_TCGEN05_H
