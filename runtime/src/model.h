// An opened artifact: checked, its plans proved, code loaded for the devices that sessions ask for.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "code.h"
#include "container.h"
#include "plan.h"

namespace svdq {

namespace cuda {
struct Program;  // cuda_program.h
}

// A CPU variant, proved and loaded.
struct CpuProgram {
  Plan plan;
  std::unique_ptr<LoadedCode> code;
};

class Model {
 public:
  Model(const std::string& path, uint32_t flags);

  Container container;
  std::shared_ptr<const Plan> plan;  // whose ports are shown: of the CPU variant, else of another
  size_t cpu_variant = SIZE_MAX;     // the one for this processor, if there is one
  bool inspect_only = false;
  bool looks_for_gpus = false;
  std::string description;  // JSON

  // Both are loaded when they are first asked for. Throw SVDQ_WRONG_MACHINE, SVDQ_UNTRUSTED and
  // what loading throws.
  std::shared_ptr<const CpuProgram> cpu_program() const;
  std::shared_ptr<cuda::Program> gpu_program(int ordinal) const;  // given up with its last session

 private:
  void require_trust(const Variant& variant) const;
  [[noreturn]] void refuse_cpu() const;

  bool trusts_ = false;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const CpuProgram> cpu_;
  mutable std::map<int, std::weak_ptr<cuda::Program>> gpus_;
};

// Decodes and proves a variant's plan.
Plan load_plan(const Container& container, const Variant& variant);

// All hashes, all plans, the form of all code.
void verify_model(const Model& model);

std::string describe_model(const Model& model);

}  // namespace svdq
