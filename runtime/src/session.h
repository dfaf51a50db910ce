// One execution context of a model on a device. What all devices share: matching the caller's
// tensors to ports, and their shapes to dims.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "model.h"

namespace svdq {

class Session {
 public:
  virtual ~Session() = default;

  // `stream`: the caller's CUstream, with which the run takes its place in order; null: all is done
  // when this returns.
  void run(const svdq_tensor* inputs, size_t num_inputs, const svdq_tensor* outputs,
           size_t num_outputs, void* stream);
  void output_shapes(const svdq_tensor* inputs, size_t num_inputs, svdq_tensor* outputs,
                     size_t num_outputs);
  const std::vector<svdq_launch_time>& profile();

 protected:
  // The plan lives as long as the session; the subclass sees to that.
  Session(std::shared_ptr<const Model> model, const Plan& plan, bool on_gpu, bool profiling);

  // The dims have changed: values_ and scalars_ hold what the plan needs at dims_.
  virtual void prepare() = 0;
  // Tensors in the plan's order: inputs[input_order_[p]], outputs[output_order_[o]].
  virtual void execute(const svdq_tensor* inputs, const svdq_tensor* outputs, void* stream) = 0;
  // Fills in times_ for the last run.
  virtual void read_times() = 0;

  const Container& container() const { return model_->container; }
  const svdq_tensor& port_tensor(const Buffer& buffer, const svdq_tensor* inputs,
                                 const svdq_tensor* outputs) const {
    return buffer.kind == BufferKind::input ? inputs[input_order_[buffer.index]]
                                            : outputs[output_order_[buffer.index]];
  }

  const std::shared_ptr<const Model> model_;
  const Plan& plan_;
  const bool on_gpu_;
  const bool profiling_;

  // All sized once, so that running allocates nothing.
  std::vector<int64_t> dims_;        // of the last run
  std::vector<int64_t> values_;      // per expression, at dims_
  std::vector<int64_t> scalars_;     // per entry of plan.scalars
  std::vector<uint32_t> port_args_;  // the args that point at inputs and outputs
  std::vector<uint32_t> input_order_, output_order_;
  std::vector<svdq_launch_time> times_;

 private:
  void bind(const int64_t* dims);

  std::mutex mutex_;
  std::vector<int64_t> next_dims_;
  bool bound_ = false;
};

// On the processor.
std::unique_ptr<Session> make_cpu_session(std::shared_ptr<const Model> model, unsigned threads,
                                          bool profiling);

// On a GPU. Throws SVDQ_NO_DEVICE, SVDQ_WRONG_MACHINE, SVDQ_NO_MEMORY.
std::unique_ptr<Session> make_gpu_session(std::shared_ptr<const Model> model, int ordinal,
                                          bool profiling, bool graphs);

}  // namespace svdq
