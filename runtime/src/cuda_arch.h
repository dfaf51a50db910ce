// Which code runs on which GPU.
#pragma once

#include <string>
#include <vector>

#include "container.h"

namespace svdq::cuda {

// "cuda:sm_90a": major 9, minor 0, suffix 'a'. The suffix is 0 for code that newer GPUs of the same
// major number run too.
struct Arch {
  int major = 0, minor = 0;
  char suffix = 0;
};

struct Capability {
  int major = 0, minor = 0;
};

bool is_for_gpu(const Variant& variant);  // by its target's name

// False for a target that is none: "cuda:", "cuda:sm_x".
bool parse_target(const std::string& target, Arch* arch);

bool runs_on(const Arch& arch, const Capability& gpu);

// The variant that was built most specially for this GPU; the first of equals; SIZE_MAX for none.
size_t best_variant(const std::vector<Variant>& variants, const Capability& gpu);

std::string capability_text(const Capability& gpu);  // "9.0"
std::string target_for(const Capability& gpu);       // "cuda:sm_90a", for svdqc compile
std::string runs_on_text(const Arch& arch);          // "compute capability 8.0 to 8.9"

}  // namespace svdq::cuda
