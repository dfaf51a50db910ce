// A variant's compiled code: copied to private memory, hashed there, trusted or refused, loaded
// from there.
#pragma once

#include <string>
#include <vector>

#include "container.h"
#include "plan.h"
#include "svdq_kernel.h"

namespace svdq {

// What the user trusts: sha256(sha256(code) || sha256(plan)). The plan is part of it, since it
// chooses the sizes and pointers that the code is called with.
Digest trust_digest(const Container& container, const Variant& variant);

// One digest per line in $XDG_STATE_HOME/svdqc/trusted, else ~/.local/state/svdqc/trusted.
std::string trust_registry_path();
bool is_trusted(const Digest& digest);

class LoadedCode {
 public:
  // Throws SVDQ_ALTERED, SVDQ_BAD_CODE.
  LoadedCode(const Container& container, const Variant& variant,
             const std::vector<KernelEntry>& kernels);
  ~LoadedCode();
  LoadedCode(const LoadedCode&) = delete;
  LoadedCode& operator=(const LoadedCode&) = delete;

  svdq_kernel_fn kernel(size_t index) const { return kernels_[index]; }

 private:
  int fd_ = -1;
  void* library_ = nullptr;
  std::vector<svdq_kernel_fn> kernels_;
};

// Why this machine cannot run the variant; empty if it can.
std::string why_unfit(const Container& container, const Variant& variant);

}  // namespace svdq
