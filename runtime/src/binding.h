// Matching a caller's tensors to the plan's ports, and their shapes to the dims.
#pragma once

#include "plan.h"

namespace svdq {

// order[port] = the position in `tensors` of the tensor for that port. Unnamed tensors go by
// position. Checks names, that all are given once, dtypes and ranks, and that none is on a GPU
// where that is not allowed. Allocates only to report. Throws SVDQ_BAD_INPUT.
void match_ports(const std::vector<Port>& ports, const char* direction, const svdq_tensor* tensors,
                 size_t num_tensors, bool may_be_on_gpu, uint32_t* order);

// Reads the dims from the inputs' shapes and checks every size. Throws SVDQ_BAD_DIM or
// SVDQ_BAD_INPUT.
void bind_dims(const Plan& plan, const svdq_tensor* inputs, const uint32_t* order, int64_t* dims);

// Throws SVDQ_BAD_INPUT unless the tensor has the port's shape at `dims`.
void check_shape(const Plan& plan, const Port& port, const char* direction,
                 const svdq_tensor& tensor, const int64_t* dims);

// Whether its memory is a GPU's (SVDQ_ON_DEVICE).
inline bool is_on_device(const svdq_tensor& tensor) { return (tensor.dtype & SVDQ_ON_DEVICE) != 0; }

// Throws SVDQ_BAD_INPUT for a null or misaligned pointer, or an output whose memory another tensor
// shares.
void check_memory(const Plan& plan, const svdq_tensor* inputs, const uint32_t* input_order,
                  const svdq_tensor* outputs, const uint32_t* output_order);

}  // namespace svdq
