// A whole 4-bit linear as generated kernels run it, for tests/bench/cpu_linear.py: blocks of rows
// over a few threads, each quantize -> down-projection -> per range of columns: bias,
// up-projection, 4-bit product.
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include "svdq_cpu/gemm_f32.h"
#include "svdq_cpu/gemm_s4.h"

namespace {

constexpr int kGroup = 64;
constexpr svdq::ActRange kRange = svdq::ActRange::Signed8;

struct Linear {
  int64_t rows, k, n, rank;
  const float* x;             // [rows, k]
  const float* inv_smooth;    // [k]
  const uint8_t* w;           // s4_n16k4
  const uint16_t* w_scale;    // bf16_scale_n16
  const uint16_t* lora_down;  // [rank, k]: bf16_n16, or bf16_n16k2 if bf16_dot
  const uint16_t* lora_up;    // [n, rank]: likewise
  const float* bias;          // [n]
  float* out;                 // [rows, n], n % 16 == 0
  int64_t block_rows, threads, bf16_dot, rotate;
};

// `count` values, 64-aligned as a runtime's scratch memory is.
template <typename T>
struct Aligned {
  explicit Aligned(int64_t count)
      : values(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {}
  ~Aligned() { std::free(values); }
  T* data() { return values; }
  T* values;
};

struct Scratch {
  explicit Scratch(const Linear& l)
      : hat(l.block_rows * (l.k + 16)),
        hat_bf16(l.block_rows * (l.k + 32)),
        codes(l.block_rows * l.k),
        scale(l.block_rows * (l.k / kGroup)),
        low(l.block_rows * l.rank),
        low_bf16(l.block_rows * l.rank),
        packed(svdq::packed_codes_bytes(l.block_rows, l.k, kGroup)) {}
  Aligned<float> hat;
  Aligned<uint16_t> hat_bf16;
  Aligned<int8_t> codes;
  Aligned<float> scale, low;
  Aligned<uint16_t> low_bf16;
  Aligned<char> packed;
};

template <bool ROTATE>
void quantize_and_project(const Linear& l, int64_t rows, const float* x, Scratch& s) {
  const int64_t panels = l.rank / 16;
  if (l.bf16_dot) {
    svdq::quantize_s4_bf16<kGroup, kRange, ROTATE>(rows, l.k, x, l.k, l.inv_smooth, 0.0f,
                                                   s.hat_bf16.data(), l.k + 32, s.codes.data(),
                                                   s.scale.data());
    svdq::gemm_bf16dot(rows, l.k, s.hat_bf16.data(), l.k + 32, l.lora_down, 0, panels, s.low.data(),
                       l.rank, false);
    svdq::round_rows_bf16(rows, l.rank, s.low.data(), l.rank, s.low_bf16.data(), l.rank);
  } else {
    svdq::quantize_s4<kGroup, kRange, ROTATE>(rows, l.k, x, l.k, l.inv_smooth, 0.0f, s.hat.data(),
                                              l.k + 16, s.codes.data(), s.scale.data());
    svdq::gemm_wbf16(rows, l.k, s.hat.data(), l.k + 16, l.lora_down, 0, panels, s.low.data(),
                     l.rank, false);
  }
}

void run_block(const Linear& l, int64_t block, Scratch& s) {
  const int64_t row = block * l.block_rows;
  const int64_t rows = l.rows - row < l.block_rows ? l.rows - row : l.block_rows;
  if (l.rotate) {
    quantize_and_project<true>(l, rows, l.x + row * l.k, s);
  } else {
    quantize_and_project<false>(l, rows, l.x + row * l.k, s);
  }
  svdq::pack_codes_s4<kGroup>(rows, l.k, s.codes.data(), s.scale.data(), s.packed.data());
  float* out = l.out + row * l.n;
  const auto start = [&](int64_t begin, int64_t end, float* to) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < (end - begin) * 16; j += 16) {
        svdq::store(to + i * l.n + j, svdq::load(l.bias + begin * 16 + j));
      }
    }
    if (l.bf16_dot) {
      svdq::gemm_bf16dot(rows, l.rank, s.low_bf16.data(), l.rank, l.lora_up, begin, end, to, l.n,
                         true);
    } else {
      svdq::gemm_wbf16(rows, l.rank, s.low.data(), l.rank, l.lora_up, begin, end, to, l.n, true);
    }
  };
  svdq::gemm_s4_onto<kGroup, kRange>(rows, l.k, s.packed.data(), l.w, l.w_scale, 0, l.n / 16, out,
                                     l.n, true, start);
}

}  // namespace

extern "C" void linear_s4(const Linear* linear) {
  const int64_t blocks = (linear->rows + linear->block_rows - 1) / linear->block_rows;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    Scratch scratch(*linear);
    for (int64_t block; (block = next++) < blocks;) run_block(*linear, block, scratch);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < linear->threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
}
