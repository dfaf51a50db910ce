#include "cuda_arch.h"

#include <algorithm>

#include "error.h"

namespace svdq::cuda {
namespace {

// NVIDIA's rules (CUDA programming guide, "Binary compatibility"): code for X.Y runs on X.Z with Z
// >= Y; code with the suffix 'a' on X.Y only; with 'f' on the family of X.Y; GPUs of single-board
// computers run code for themselves only.
enum class Rule { same_major, exact, family };

Rule rule_of(const Arch& arch) {
  if (arch.suffix == 'a') return Rule::exact;
  if (arch.suffix == 'f') return Rule::family;
  return Rule::same_major;
}

constexpr struct {
  int major, minor;
} kBoards[] = {{5, 3}, {6, 2}, {7, 2}, {8, 7}, {10, 1}, {11, 0}};

// Members of a family share its first GPU's instructions.
constexpr struct {
  int major, first, last;
} kFamilies[] = {{10, 0, 3}, {12, 0, 1}};

bool is_board(const Capability& gpu) {
  return std::any_of(std::begin(kBoards), std::end(kBoards), [&](const auto& board) {
    return board.major == gpu.major && board.minor == gpu.minor;
  });
}

bool in_family(const Arch& arch, const Capability& gpu) {
  return std::any_of(std::begin(kFamilies), std::end(kFamilies), [&](const auto& family) {
    return family.major == arch.major && arch.minor >= family.first && gpu.minor >= arch.minor &&
           gpu.minor <= family.last;
  });
}

// Higher is more special.
int rank(const Arch& arch) {
  const int suffix = arch.suffix == 'a' ? 2 : arch.suffix == 'f' ? 1 : 0;
  return suffix * 1000 + arch.minor;
}

bool digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

bool is_for_gpu(const Variant& variant) { return variant.target.compare(0, 5, "cuda:") == 0; }

bool parse_target(const std::string& target, Arch* arch) {
  constexpr std::string_view kPrefix = "cuda:sm_";
  if (target.compare(0, kPrefix.size(), kPrefix) != 0) return false;
  std::string_view rest = std::string_view(target).substr(kPrefix.size());
  *arch = {};
  if (!rest.empty() && (rest.back() == 'a' || rest.back() == 'f')) {
    arch->suffix = rest.back();
    rest.remove_suffix(1);
  }
  if (rest.size() < 2 || rest.size() > 3 || !std::all_of(rest.begin(), rest.end(), digit)) {
    return false;
  }
  arch->minor = rest.back() - '0';
  rest.remove_suffix(1);
  for (const char c : rest) arch->major = 10 * arch->major + (c - '0');
  return true;
}

bool runs_on(const Arch& arch, const Capability& gpu) {
  if (arch.major != gpu.major) return false;
  const Rule rule = is_board(gpu) ? Rule::exact : rule_of(arch);
  switch (rule) {
    case Rule::exact:
      return arch.minor == gpu.minor;
    case Rule::family:
      return in_family(arch, gpu);
    case Rule::same_major:
      return gpu.minor >= arch.minor;
  }
  return false;
}

size_t best_variant(const std::vector<Variant>& variants, const Capability& gpu) {
  size_t best = SIZE_MAX;
  int best_rank = -1;
  for (size_t i = 0; i < variants.size(); ++i) {
    Arch arch;
    if (!parse_target(variants[i].target, &arch) || !runs_on(arch, gpu) ||
        !variants[i].isa_features.empty()) {
      continue;
    }
    if (rank(arch) > best_rank) {
      best = i;
      best_rank = rank(arch);
    }
  }
  return best;
}

std::string capability_text(const Capability& gpu) { return str(gpu.major, ".", gpu.minor); }

std::string target_for(const Capability& gpu) {
  return str("cuda:sm_", gpu.major, gpu.minor, gpu.major >= 9 ? "a" : "");
}

std::string runs_on_text(const Arch& arch) {
  const std::string from = str(arch.major, ".", arch.minor);
  const Rule rule = rule_of(arch);
  if (rule == Rule::exact || arch.minor == 9) return str("compute capability ", from);
  return str("compute capability ", from, " to ", arch.major,
             rule == Rule::family ? ".x of its family" : ".9");
}

}  // namespace svdq::cuda
