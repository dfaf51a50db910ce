#include "binding.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace svdq {
namespace {

constexpr uint32_t kMissing = UINT32_MAX;

std::string shape_text(const svdq_tensor& tensor) {
  std::string text = "[";
  for (int32_t d = 0; d < tensor.ndim; ++d) text += str(d == 0 ? "" : ", ", tensor.shape[d]);
  return text + "]";
}

std::string range_text(int64_t lo, int64_t hi, int64_t multiple) {
  if (lo == hi) return str("exactly ", lo);
  return multiple > 1 ? str(lo, " to ", hi, ", a multiple of ", multiple) : str(lo, " to ", hi);
}

std::string names_text(const std::vector<Port>& ports) {
  std::string text;
  for (const Port& port : ports) text += str(text.empty() ? "'" : ", '", port.name, "'");
  return text.empty() ? "none" : text;
}

int64_t value_at(const Plan& plan, ExprIndex expr, const int64_t* dims) {
  int64_t value = 0;
  const EvalError error = evaluate(plan.code(expr), dims, plan.dims.size(), &value);
  if (error != EvalError::none)
    fail(SVDQ_BAD_PLAN, "run", "shape", describe(error), "compile the model again");
  return value;
}

// The dim's value that gives this size, or -1. Sizes grow with dims, so a binary search finds it.
int64_t solve(const Plan& plan, size_t d, const Binder& binder, int64_t size, int64_t* dims) {
  const Dim& dim = plan.dims[d];
  int64_t lo = dim.lo / dim.multiple, hi = dim.hi / dim.multiple;
  while (lo < hi) {
    const int64_t middle = lo + (hi - lo) / 2;
    dims[d] = middle * dim.multiple;
    if (value_at(plan, binder.expr, dims) < size) {
      lo = middle + 1;
    } else {
      hi = middle;
    }
  }
  dims[d] = lo * dim.multiple;
  return value_at(plan, binder.expr, dims) == size ? dims[d] : -1;
}

bool overlap(const svdq_tensor& a, size_t a_bytes, const svdq_tensor& b, size_t b_bytes) {
  const uintptr_t a_begin = reinterpret_cast<uintptr_t>(a.data),
                  b_begin = reinterpret_cast<uintptr_t>(b.data);
  return a_bytes > 0 && b_bytes > 0 && a_begin < b_begin + b_bytes && b_begin < a_begin + a_bytes;
}

size_t num_bytes(const svdq_tensor& tensor,
                 svdq_dtype dtype) {  // shapes were checked against the plan
  size_t total = item_bytes(dtype);
  for (int32_t d = 0; d < tensor.ndim; ++d) total *= static_cast<size_t>(tensor.shape[d]);
  return total;
}

}  // namespace

void match_ports(const std::vector<Port>& ports, const char* direction, const svdq_tensor* tensors,
                 size_t num_tensors, bool may_be_on_gpu, uint32_t* order) {
  std::fill_n(order, ports.size(), kMissing);
  for (uint32_t i = 0; i < num_tensors; ++i) {
    size_t p = i;
    if (tensors[i].name != nullptr) {  // most callers keep the plan's order
      if (i >= ports.size() || ports[i].name != tensors[i].name) {
        p = static_cast<size_t>(
            std::find_if(ports.begin(), ports.end(),
                         [&](const Port& port) { return port.name == tensors[i].name; }) -
            ports.begin());
      }
    }
    if (p >= ports.size()) {
      const std::string name = tensors[i].name != nullptr ? tensors[i].name : str("#", i);
      fail(SVDQ_BAD_INPUT, "run", name, str("the model has no ", direction, " of this name"),
           str("its ", direction, "s are ", names_text(ports)));
    }
    if (order[p] != kMissing) {
      fail(SVDQ_BAD_INPUT, "run", ports[p].name, str("this ", direction, " is given twice"),
           "give it once");
    }
    order[p] = i;
  }
  for (size_t p = 0; p < ports.size(); ++p) {
    const Port& port = ports[p];
    if (order[p] == kMissing) {
      fail(SVDQ_BAD_INPUT, "run", port.name, str("this ", direction, " is missing"),
           str("give every ", direction, ": ", names_text(ports)));
    }
    const svdq_tensor& tensor = tensors[order[p]];
    const int32_t dtype = tensor.dtype & ~SVDQ_ON_DEVICE;
    if (is_on_device(tensor) && dtype == port.dtype && !may_be_on_gpu) {
      fail(SVDQ_BAD_INPUT, "run", port.name, "it is in a GPU's memory, the session on the CPU",
           "move it to the CPU, or make the session on that GPU");
    }
    if (dtype != port.dtype) {
      const bool known = dtype >= SVDQ_F32 && dtype <= SVDQ_BOOL;
      fail(SVDQ_BAD_INPUT, "run", port.name,
           str("its dtype is ", known ? dtype_name(static_cast<svdq_dtype>(dtype)) : "unknown"),
           str("the model takes ", dtype_name(port.dtype), "; convert it"));
    }
    if (tensor.ndim != static_cast<int32_t>(port.shape.size())) {
      const bool printable = tensor.ndim >= 0 && tensor.ndim <= SVDQ_MAX_RANK;
      fail(SVDQ_BAD_INPUT, "run", port.name,
           str("it has ", tensor.ndim, " dimensions", printable ? " " + shape_text(tensor) : ""),
           str("the model takes ", port.shape.size()));
    }
  }
}

void bind_dims(const Plan& plan, const svdq_tensor* inputs, const uint32_t* order, int64_t* dims) {
  for (size_t d = 0; d < plan.dims.size(); ++d) dims[d] = plan.dims[d].lo;
  for (size_t d = 0; d < plan.dims.size(); ++d) {
    const Dim& dim = plan.dims[d];
    const Binder& binder = plan.binders[d];
    if (binder.input == kMissing) continue;  // a dim with one legal value
    const int64_t size = inputs[order[binder.input]].shape[binder.axis];
    int64_t value = size;
    if (!binder.plain) value = solve(plan, d, binder, size, dims);
    if (value < dim.lo || value > dim.hi || value % dim.multiple != 0) {
      const Interval sizes = plan.bounds[binder.expr];
      fail(SVDQ_BAD_DIM, "run", plan.inputs[binder.input].name,
           str("dimension ", binder.axis, " ('", dim.name, "') is ", size),
           binder.plain ? str("it must be ", range_text(dim.lo, dim.hi, dim.multiple))
                        : str("it must be ", range_text(sizes.lo, sizes.hi, 1), ", set by '",
                              dim.name, "' in ", range_text(dim.lo, dim.hi, dim.multiple)));
    }
    dims[d] = value;
  }
  for (size_t p = 0; p < plan.inputs.size(); ++p)
    check_shape(plan, plan.inputs[p], "input", inputs[order[p]], dims);
}

void check_shape(const Plan& plan, const Port& port, const char* direction,
                 const svdq_tensor& tensor, const int64_t* dims) {
  for (size_t axis = 0; axis < port.shape.size(); ++axis) {
    const int64_t required = value_at(plan, port.shape[axis], dims);
    if (tensor.shape[axis] == required) continue;
    const Code code = plan.code(port.shape[axis]);
    std::string why;
    if (code.count == 1 && code.first[0].op == Op::dim) {
      const size_t d = static_cast<size_t>(code.first[0].operand);
      const Binder& binder = plan.binders[d];
      why = str(": '", plan.dims[d].name, "' is ", dims[d]);
      if (binder.input != kMissing) why += str(" in input '", plan.inputs[binder.input].name, "'");
    }
    fail(plan.bounds[port.shape[axis]].lo == plan.bounds[port.shape[axis]].hi ? SVDQ_BAD_INPUT
                                                                              : SVDQ_BAD_DIM,
         "run", port.name,
         str("dimension ", axis, " of this ", direction, " is ", tensor.shape[axis], " in ",
             shape_text(tensor)),
         str("it must be ", required, why));
  }
}

void check_memory(const Plan& plan, const svdq_tensor* inputs, const uint32_t* input_order,
                  const svdq_tensor* outputs, const uint32_t* output_order) {
  const auto check = [](const Port& port, const svdq_tensor& tensor) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(tensor.data);
    if (tensor.data == nullptr && num_bytes(tensor, port.dtype) > 0) {
      fail(SVDQ_BAD_INPUT, "run", port.name, "its data pointer is null",
           "point it at the tensor's memory");
    }
    if (address % item_bytes(port.dtype) != 0) {
      fail(SVDQ_BAD_INPUT, "run", port.name, "its memory is not aligned to its dtype",
           "copy it to aligned memory");
    }
  };
  for (size_t p = 0; p < plan.inputs.size(); ++p) check(plan.inputs[p], inputs[input_order[p]]);
  for (size_t o = 0; o < plan.outputs.size(); ++o) {
    const Port& port = plan.outputs[o];
    const svdq_tensor& output = outputs[output_order[o]];
    check(port, output);
    const auto apart = [&](const Port& other_port, const svdq_tensor& other) {
      if (overlap(output, num_bytes(output, port.dtype), other,
                  num_bytes(other, other_port.dtype))) {
        fail(SVDQ_BAD_INPUT, "run", port.name, str("it shares memory with '", other_port.name, "'"),
             "give each output memory of its own");
      }
    };
    for (size_t p = 0; p < plan.inputs.size(); ++p) apart(plan.inputs[p], inputs[input_order[p]]);
    for (size_t q = 0; q < o; ++q) apart(plan.outputs[q], outputs[output_order[q]]);
  }
}

}  // namespace svdq
