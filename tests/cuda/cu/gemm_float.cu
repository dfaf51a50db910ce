// Products with float weights, per kind of weight, of tensor core and of left operand: what
// tests/cuda/test_gemm_float.py runs. The test defines KERNELS(X) before this text;
// X(name, math, weight, source of x, min CTAs, tile...).
#include "svdq_cuda/gemm_float.h"
#include "svdq_cuda/kernel.h"

constexpr int kStage = 32;

// An operand in f16 that the kernel itself widens, transposed: element (r, k) at x[k * ldx + r].
struct Transposed {
  const uint16_t* x;
  int64_t ldx;
  SVDQ_METHOD float operator()(int64_t r, int64_t k) const {
    return svdq::f16_to_f32(x[k * ldx + r]);
  }
};

template <int BM>
struct Vector : svdq::RowsX<BM, true> {
  SVDQ_METHOD Vector(const void* x, int64_t ldx, int64_t row, int64_t rows, int64_t k)
      : svdq::RowsX<BM, true>{static_cast<const float*>(x) + row * ldx, ldx, rows, k} {}
};
template <int BM>
struct Single : svdq::RowsX<BM, false> {
  SVDQ_METHOD Single(const void* x, int64_t ldx, int64_t row, int64_t rows, int64_t k)
      : svdq::RowsX<BM, false>{static_cast<const float*>(x) + row * ldx, ldx, rows, k} {}
};
template <int BM>
struct Element {
  Transposed f;
  svdq::ElementX<BM, Transposed> x;
  SVDQ_METHOD Element(const void* from, int64_t ldx, int64_t row, int64_t rows, int64_t k)
      : f{static_cast<const uint16_t*>(from) + row, ldx}, x{f, rows, k} {}
  template <int BK, int LD, int THREADS>
  SVDQ_METHOD void load(float* stage, int64_t k0) const {
    x.template load<BK, LD, THREADS>(stage, k0);
  }
};

// buffers: x, w, bias or null, out; scalars: rows, columns, k, ldx, row stride of out.
template <class Gemm, class Tile, class X>
SVDQ_INLINE void run(const svdq::KernelArgs<4, 5>& args) {
  const int64_t m = args.scalars[0], n = args.scalars[1], k = args.scalars[2];
  const int64_t ldx = args.scalars[3], ldo = args.scalars[4];
  const uint32_t column_tiles = (static_cast<uint32_t>(n) + Tile::BN - 1) / Tile::BN;
  const int64_t row = int64_t{svdq::cta_id() / column_tiles} * Tile::BM;
  const int64_t column = int64_t{svdq::cta_id() % column_tiles} * Tile::BN;
  const int64_t rows = svdq::min_i64(Tile::BM, m - row);
  Gemm gemm(svdq::shared_memory());
  const X x(args.buffers[0], ldx, row, rows, k);
  gemm.load({args.buffers[1], column, n, k}, x);
  const float* const bias = static_cast<const float*>(args.buffers[2]);
  gemm.start(bias == nullptr ? 0 : n - column,
             [&](int64_t c) SVDQ_LAMBDA { return bias[column + c]; });
  gemm.multiply(x);
  float* const tile = reinterpret_cast<float*>(svdq::shared_memory());
  float* const out = static_cast<float*>(args.buffers[3]);
  SVDQ_NO_UNROLL
  for (int slab = 0; slab < Tile::kSlabs; ++slab) {
    const int64_t first = row + slab * Tile::kSlabRows;
    if (first >= m) break;
    gemm.store_slab(slab, tile);
    const int64_t slab_rows = svdq::min_i64(Tile::kSlabRows, m - first);
    for (int64_t i = svdq::thread_id(); i < slab_rows * Tile::BN; i += Tile::kThreads) {
      const int64_t r = i / Tile::BN, c = i % Tile::BN;
      if (column + c < n) out[(first + r) * ldo + column + c] = tile[r * Tile::kLd + c];
    }
  }
}

#define TEST_KERNEL(name, math, weight, source, min_ctas, ...)                                \
  using name##_tile = svdq::GemmTile<__VA_ARGS__>;                                            \
  using name##_gemm = svdq::FloatGemm<name##_tile, svdq::math, svdq::Stored::weight, kStage>; \
  SVDQ_CUDA_KERNEL(name, name##_tile::kThreads, min_ctas, name##_gemm::kSharedBytes, 4, 5) {  \
    run<name##_gemm, name##_tile, source<name##_tile::BM>>(args);                             \
  }
KERNELS(TEST_KERNEL)
