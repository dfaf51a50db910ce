// The CUDA driver, loaded when a GPU is first asked for.
#pragma once

#include <string>

#include "cuda_api.h"

namespace svdq::cuda {

constexpr int kOldestDriver = 11040;  // as cuDriverGetVersion counts: CUDA 11.4

struct Driver {
#define SVDQ_CUDA_MEMBER(member, symbol, arguments) Result(*member) arguments = nullptr;
  SVDQ_CUDA_CALLS(SVDQ_CUDA_MEMBER)
  SVDQ_CUDA_OPTIONAL_CALLS(SVDQ_CUDA_MEMBER)
#undef SVDQ_CUDA_MEMBER
  std::string path;
  int version = 0;  // the newest CUDA that it can run

  bool has_graphs() const {
    return graph_create != nullptr && graph_add_kernel != nullptr && graph_launch != nullptr &&
           graph_instantiate != nullptr && graph_exec_set_kernel != nullptr &&
           graph_destroy != nullptr && graph_exec_destroy != nullptr;
  }

  // "CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)".
  std::string describe(Result error) const;
};

// $SVDQ_CUDA_DRIVER, else libcuda.so.1 as the loader finds it. Stays loaded. Throws SVDQ_NO_DEVICE,
// saying which of these is missing: the
// library, a new enough version, a GPU.
const Driver& driver();

// At least 1. Throws SVDQ_NO_DEVICE.
int count_devices(const Driver& driver);

std::string version_text(int version);  // 12040: "12.4"

}  // namespace svdq::cuda
