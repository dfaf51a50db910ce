#include "session.h"

#include <algorithm>

#include "binding.h"
#include "error.h"
#include "plan_verify.h"

namespace svdq {

Session::Session(std::shared_ptr<const Model> model, const Plan& plan, bool on_gpu, bool profiling)
    : model_(std::move(model)),
      plan_(plan),
      on_gpu_(on_gpu),
      profiling_(profiling),
      dims_(plan.dims.size()),
      values_(plan.exprs.size()),
      scalars_(plan.scalars.size()),
      input_order_(plan.inputs.size()),
      output_order_(plan.outputs.size()),
      next_dims_(plan.dims.size()) {
  for (uint32_t a = 0; a < plan.args.size(); ++a) {
    const BufferKind kind = plan.buffers[plan.args[a].buffer].kind;
    if (kind == BufferKind::input || kind == BufferKind::output) port_args_.push_back(a);
  }
  if (!profiling_) return;
  for (const Launch& launch : plan.launches) {
    times_.push_back({launch.label.c_str(), plan.kernels[launch.kernel].name.c_str(), 0.0});
  }
}

void Session::bind(const int64_t* dims) {
  if (bound_ && std::equal(dims_.begin(), dims_.end(), dims)) return;
  bound_ = false;
  evaluate_all(plan_, dims, values_.data(), container().path);
  check_sizes(plan_, container().tensors, values_.data(), container().path);
  for (size_t i = 0; i < scalars_.size(); ++i) scalars_[i] = values_[plan_.scalars[i]];
  std::copy_n(dims, dims_.size(), dims_.begin());
  prepare();
  bound_ = true;
}

void Session::run(const svdq_tensor* inputs, size_t num_inputs, const svdq_tensor* outputs,
                  size_t num_outputs, void* stream) {
  const std::lock_guard<std::mutex> turn(mutex_);
  match_ports(plan_.inputs, "input", inputs, num_inputs, on_gpu_, input_order_.data());
  match_ports(plan_.outputs, "output", outputs, num_outputs, on_gpu_, output_order_.data());
  bind_dims(plan_, inputs, input_order_.data(), next_dims_.data());
  for (size_t o = 0; o < plan_.outputs.size(); ++o) {
    check_shape(plan_, plan_.outputs[o], "output", outputs[output_order_[o]], next_dims_.data());
  }
  check_memory(plan_, inputs, input_order_.data(), outputs, output_order_.data());
  bind(next_dims_.data());
  execute(inputs, outputs, stream);
}

void Session::output_shapes(const svdq_tensor* inputs, size_t num_inputs, svdq_tensor* outputs,
                            size_t num_outputs) {
  const std::lock_guard<std::mutex> turn(mutex_);
  if (num_outputs != plan_.outputs.size()) {
    fail(SVDQ_BAD_ARGUMENT, "output_shapes", container().path,
         str("room for ", num_outputs, " outputs"), str("the model has ", plan_.outputs.size()));
  }
  match_ports(plan_.inputs, "input", inputs, num_inputs, on_gpu_, input_order_.data());
  bind_dims(plan_, inputs, input_order_.data(), next_dims_.data());
  for (size_t o = 0; o < num_outputs; ++o) {
    const Port& port = plan_.outputs[o];
    outputs[o].name = port.name.c_str();
    outputs[o].dtype = port.dtype;
    outputs[o].ndim = static_cast<int32_t>(port.shape.size());
    for (size_t axis = 0; axis < port.shape.size(); ++axis) {
      const EvalError error = evaluate(plan_.code(port.shape[axis]), next_dims_.data(),
                                       next_dims_.size(), &outputs[o].shape[axis]);
      if (error != EvalError::none || outputs[o].shape[axis] < 0) {
        fail(SVDQ_BAD_PLAN, "output_shapes", port.name, "impossible size",
             "compile the model again");
      }
    }
  }
}

const std::vector<svdq_launch_time>& Session::profile() {
  const std::lock_guard<std::mutex> turn(mutex_);
  if (!profiling_) {
    fail(SVDQ_BAD_ARGUMENT, "profile", container().path, "the session does not measure",
         "create it with profile=1");
  }
  read_times();
  return times_;
}

}  // namespace svdq
