// The code of a cuda: variant: an archive of cubins (runtime/FORMAT.md, "Code"), checked, then
// loaded on a device.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "container.h"
#include "cuda_device.h"
#include "plan.h"

namespace svdq::cuda {

struct Cubin {
  std::string kernel;
  uint64_t offset, size;  // in the section
};

// Every entry of the archive, ascending by name: inside the section, an ELF file of CUDA code for
// `arch`. Nothing of it is run or given to a driver. Throws SVDQ_BAD_CODE; `subject` names the file
// in messages.
std::vector<Cubin> read_archive(const uint8_t* bytes, uint64_t num_bytes, const Arch& arch,
                                const std::string& subject);

// The kernels of a plan, loaded on a device and ready to be launched with what the plan says.
class LoadedKernels {
 public:
  // Throws SVDQ_ALTERED, SVDQ_BAD_CODE, SVDQ_BAD_PLAN, SVDQ_NO_DEVICE (the driver is too old for
  // the code).
  LoadedKernels(std::shared_ptr<const Device> device, const Container& container,
                const Variant& variant, const Plan& plan);
  ~LoadedKernels();
  LoadedKernels(const LoadedKernels&) = delete;
  LoadedKernels& operator=(const LoadedKernels&) = delete;

  Function kernel(size_t index) const { return functions_[index]; }

 private:
  void load(const uint8_t* cubin, const KernelEntry& kernel, size_t num_param_bytes);
  void unload();

  std::shared_ptr<const Device> device_;
  const std::string subject_;  // in messages
  std::vector<Module> modules_;
  std::vector<Function> functions_;
};

}  // namespace svdq::cuda
