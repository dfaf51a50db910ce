// What CuTe says of NVIDIA's tensor cores, for tests/cuda/test_cutlass.py: a line for each fact,
// its name and then integers, written to the file that the argument names.
//
//   NAME.a, .b, .c        of mma.sync: which elements the lanes hold, lane by lane, a lane's in the
//                         order of its registers, as row + rows * k (c: row + rows * column)
//   NAME.a_scale, .b_scale   the same of the scales that a lane gives for each of its 64 k
//   wgmma.N               the same of a warpgroup's results: row + 64 * column
//   wgmma.a               the same of its left operand of bytes in registers: row + 64 * k
//   wgmma.stage           where byte k of row r lies in 128 rows of 128 bytes of k, core matrices
//                         along k together; by r, then k
//   wgmma.operand, tcgen05.operand   descriptors, of address 0, of operands that lie so (the
//                         latter: of 32 bytes of k)
//   tcgen05.e2m1.N        instruction descriptor: E2M1 with E4M3 scales, M 128
//   tcgen05.scales        where the scale of row r and group g, of four, lies; by r, then g
//   tcgen05.load.N        the words of tensor memory that a thread gets: lane + 16 * column
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cute/arch/mma_sm100_desc.hpp>
#include <cute/atom/copy_traits_sm100.hpp>
#include <cute/atom/mma_traits_sm100.hpp>
#include <cute/atom/mma_traits_sm120.hpp>
#include <cute/atom/mma_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm89.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include <cutlass/detail/sm100_blockscaled_layout.hpp>

using namespace cute;

namespace {

std::FILE* facts;

// A layout of (thread, value) pairs.
template <class Layout>
void tell(const char* name, const char* part, const Layout& layout) {
  std::fprintf(facts, "%s%s", name, part);
  for (int thread = 0; thread < int(size<0>(layout)); ++thread) {
    for (int value = 0; value < int(size<1>(layout)); ++value) {
      std::fprintf(facts, " %d", int(layout(thread, value)));
    }
  }
  std::fprintf(facts, "\n");
}

template <class Operation>
void tell_mma(const char* name) {
  using Traits = MMA_Traits<Operation>;
  tell(name, ".a", typename Traits::ALayout{});
  tell(name, ".b", typename Traits::BLayout{});
  tell(name, ".c", typename Traits::CLayout{});
}

template <class Operation>
void tell_scales(const char* name) {
  tell(name, ".a_scale", typename MMA_Traits<Operation>::SFALayout{});
  tell(name, ".b_scale", typename MMA_Traits<Operation>::SFBLayout{});
}

template <int N>
void tell_wgmma() {
  std::fprintf(facts, "wgmma.%d", N);
  tell("", "", SM90::GMMA::CLayout_64xN<N>{});
}

template <int N>
void tell_instruction() {
  const UMMA::InstrDescriptorBlockScaled descriptor =
      UMMA::make_instr_desc_block_scaled<float_e2m1_t, float_e2m1_t, float, float_ue4m3_t, 128, N,
                                         UMMA::Major::K, UMMA::Major::K>();
  std::fprintf(facts, "tcgen05.e2m1.%d %u\n", N, uint32_t(descriptor));
}

// CuTe counts bits.
template <class Operation>
void tell_load(const char* name) {
  using Traits = Copy_Traits<Operation>;
  const auto of_bit = typename Traits::DstLayout{};
  std::fprintf(facts, "%s", name);
  constexpr int kBits = int(decltype(size<1>(of_bit))::value);
  constexpr int kLaneBits = int(decltype(size<0>(typename Traits::ValID{}))::value);
  for (int thread = 0; thread < 32; ++thread) {
    for (int bit = 0; bit < kBits; bit += 32) {
      const int at = int(of_bit(thread, bit));
      std::fprintf(facts, " %d", at / kLaneBits + 16 * (at % kLaneBits / 32));
    }
  }
  std::fprintf(facts, "\n");
}

}  // namespace

int main(int, char** argv) {
  facts = std::fopen(argv[1], "w");
  if (facts == nullptr) return 1;
  tell_mma<SM75_8x8x16_S32S8S8S32_TN>("s8.m8n8k16");
  tell_mma<SM80_8x8x32_S32S4S4S32_TN>("s4.m8n8k32");
  tell_mma<SM80_16x8x32_S32S4S4S32_TN>("s4.m16n8k32");
  tell_mma<SM80_16x8x64_S32S4S4S32_TN>("s4.m16n8k64");
  tell_mma<SM80_16x8x64_S32U4S4S32_TN>("u4.m16n8k64");
  tell_mma<SM80_16x8x32_S32S8S8S32_TN>("s8.m16n8k32");
  tell_mma<SM80_16x8x32_S32U8S8S32_TN>("u8.m16n8k32");
  tell_mma<SM80_16x8x16_F32BF16BF16F32_TN>("bf16.m16n8k16");
  tell_mma<SM80_16x8x16_F32F16F16F32_TN>("f16.m16n8k16");
  tell_mma<SM89_16x8x32_F32E4M3E4M3F32_TN>("e4m3.m16n8k32");
  using E2m1 =
      SM120::BLOCKSCALED::SM120_16x8x64_TN_VS<float_e2m1_t, float_e2m1_t, float, float_ue4m3_t, 16>;
  tell_mma<E2m1>("e2m1.m16n8k64");
  tell_scales<E2m1>("e2m1.m16n8k64");

  tell("wgmma.a", "", SM90::GMMA::ALayout_64x32{});
  tell_wgmma<64>();
  tell_wgmma<128>();
  tell_wgmma<192>();
  tell_wgmma<256>();
  const auto stage =
      tile_to_shape(SM90::GMMA::Layout_K_INTER_Atom<int8_t>{}, Shape<_128, _128>{}, Step<_2, _1>{});
  std::fprintf(facts, "wgmma.stage");
  for (int row = 0; row < 128; ++row) {
    for (int k = 0; k < 128; ++k) std::fprintf(facts, " %d", int(stage(row, k)));
  }
  const auto operand = make_tensor(make_smem_ptr(static_cast<int8_t*>(nullptr)), stage);
  const GmmaDescriptor of_wgmma = SM90::GMMA::make_gmma_desc<SM90::GMMA::Major::K>(
      local_tile(operand, Shape<_128, _32>{}, make_coord(0, 0)));
  std::fprintf(facts, "\nwgmma.operand %llu\n", (unsigned long long)uint64_t(of_wgmma));

  const auto block =
      tile_to_shape(UMMA::Layout_K_INTER_Atom<uint8_t>{}, Shape<_128, _32>{}, Step<_2, _1>{});
  const UMMA::SmemDescriptor of_tcgen05 = UMMA::make_umma_desc<UMMA::Major::K>(
      make_tensor(make_smem_ptr(static_cast<uint8_t*>(nullptr)), block));
  std::fprintf(facts, "tcgen05.operand %llu\n", (unsigned long long)uint64_t(of_tcgen05));
  tell_instruction<64>();
  tell_instruction<128>();
  using Scales = cutlass::detail::Sm1xxBlockScaledBasicChunk<16>::SfKMajorAtom;
  std::fprintf(facts, "tcgen05.scales");
  for (int row = 0; row < 128; ++row) {
    for (int group = 0; group < 4; ++group)
      std::fprintf(facts, " %d", int(Scales{}(row, 16 * group)));
  }
  std::fprintf(facts, "\n");
  tell_load<SM100_TMEM_LOAD_16dp256b4x>("tcgen05.load.4");
  tell_load<SM100_TMEM_LOAD_16dp256b8x>("tcgen05.load.8");
  return std::fclose(facts);
}
