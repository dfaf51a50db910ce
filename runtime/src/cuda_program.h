// A variant on a GPU: its proved plan, its kernels and its weights there, shared by the sessions of
// that model and GPU.
#pragma once

#include <memory>

#include "cuda_code.h"
#include "cuda_weights.h"

namespace svdq::cuda {

struct Program {
  // `container` must outlive this: the sessions that share this hold the model.
  Program(std::shared_ptr<const Device> device, const Container& container, const Variant& variant,
          Plan plan);

  const std::shared_ptr<const Device> device;
  const Plan plan;
  const LoadedKernels kernels;
  Weights weights;
};

// The variant for this GPU. Throws SVDQ_WRONG_MACHINE, saying what the file has and how to compile
// for this GPU.
size_t choose_variant(const Container& container, const Device& device);

// Why none of these GPUs can run the variant; "" if one can.
std::string why_unfit(const Variant& variant, const std::vector<DeviceInfo>& devices);

// The variant's target and the archive of its code have the right form. Throws SVDQ_BAD_CODE,
// SVDQ_MALFORMED.
void check_code(const Container& container, const Variant& variant);

}  // namespace svdq::cuda
