#include "session.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "binding.h"
#include "checked.h"
#include "cpu.h"
#include "error.h"
#include "plan_verify.h"

namespace svdq {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr int64_t kChunksPerThread = 4;  // enough to even out tasks of unequal cost

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// A page between threads, so that no cache line is shared.
uint64_t stride_of(uint64_t scratch_bytes) {
  return scratch_bytes == 0 ? 0 : align_up(scratch_bytes, 4096);
}

}  // namespace

Pages::Pages(uint64_t num_bytes, const std::string& subject, const char* purpose)
    : size_(num_bytes) {
  if (num_bytes == 0) return;
  const uint64_t total = total_memory_bytes();
  void* mapped = MAP_FAILED;
  if (total == 0 || num_bytes <= total) {
    mapped = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (mapped == MAP_FAILED) {
    fail(SVDQ_NO_MEMORY, "session", subject,
         str("needs ", num_bytes, " bytes of memory for ", purpose,
             " at its largest dims; this machine has ", available_memory_bytes(), " bytes free of ",
             total),
         "compile it with smaller upper bounds of its dims, or use a machine with more memory");
  }
#if defined(MADV_HUGEPAGE)
  if (num_bytes >= (4u << 20)) madvise(mapped, num_bytes, MADV_HUGEPAGE);
#endif
  data_ = static_cast<uint8_t*>(mapped);
}

Pages::~Pages() {
  if (data_ != nullptr) munmap(data_, size_);
}

Session::Session(std::shared_ptr<const Model> model, unsigned threads, bool profile)
    : model_(std::move(model)),
      profiling_(profile),
      num_threads_(std::min(kMaxThreads, threads == 0 ? usable_threads() : threads)),
      arena_(model_->plan.arena_bytes, model_->container.path, "activations"),
      scratch_(stride_of(model_->plan.scratch_bytes) * num_threads_, model_->container.path,
               "scratch"),
      scratch_stride_(stride_of(model_->plan.scratch_bytes)),
      dims_(model_->plan.dims.size()),
      next_dims_(model_->plan.dims.size()),
      values_(model_->plan.exprs.size()),
      scalars_(model_->plan.scalars.size()),
      pointers_(model_->plan.args.size()),
      input_order_(model_->plan.inputs.size()),
      output_order_(model_->plan.outputs.size()),
      launches_(model_->plan.launches.size()),
      pool_(num_threads_) {
  const Plan& plan = model_->plan;
  for (uint32_t a = 0; a < plan.args.size(); ++a) {
    const BufferKind kind = plan.buffers[plan.args[a].buffer].kind;
    if (kind == BufferKind::input || kind == BufferKind::output) port_args_.push_back(a);
  }
  if (profiling_) {
    finished_ns_.resize(plan.launches.size());
    for (const Launch& launch : plan.launches) {
      times_.push_back({launch.label.c_str(), plan.kernels[launch.kernel].name.c_str(), 0.0});
    }
  }
}

void Session::prepare(const int64_t* dims) {
  const Plan& plan = model_->plan;
  if (prepared_ && std::equal(dims_.begin(), dims_.end(), dims)) return;
  prepared_ = false;
  evaluate_all(plan, dims, values_.data(), model_->container.path);
  check_sizes(plan, model_->container.tensors, values_.data(), model_->container.path);
  for (size_t i = 0; i < scalars_.size(); ++i) scalars_[i] = values_[plan.scalars[i]];
  for (size_t a = 0; a < plan.args.size(); ++a) {
    const Buffer& buffer = plan.buffers[plan.args[a].buffer];
    uint8_t* base = nullptr;
    if (buffer.kind == BufferKind::arena) base = arena_.data() + buffer.arena_offset;
    if (buffer.kind ==
        BufferKind::weight) {  // read-only pages; verify_plan saw to it that kernels only read
      base = const_cast<uint8_t*>(model_->container.file->data()) +
             model_->container.tensors[buffer.index].offset;
    }
    if (base != nullptr) pointers_[a] = base + values_[plan.args[a].byte_offset];
  }
  for (size_t i = 0; i < launches_.size(); ++i) {
    launches_[i].num_tasks = values_[plan.launches[i].num_tasks];
    launches_[i].chunk =
        std::max<int64_t>(1, launches_[i].num_tasks / (kChunksPerThread * num_threads_));
  }
  std::copy_n(dims, dims_.size(), dims_.begin());
  prepared_ = true;
}

void Session::point_at_ports(const svdq_tensor* inputs, const svdq_tensor* outputs) {
  const Plan& plan = model_->plan;
  for (const uint32_t a : port_args_) {
    const Buffer& buffer = plan.buffers[plan.args[a].buffer];
    const svdq_tensor& tensor = buffer.kind == BufferKind::input
                                    ? inputs[input_order_[buffer.index]]
                                    : outputs[output_order_[buffer.index]];
    pointers_[a] = static_cast<uint8_t*>(tensor.data) + values_[plan.args[a].byte_offset];
  }
}

void Session::walk(unsigned thread) {
  const DefaultFloatMode mode;
  const Plan& plan = model_->plan;
  svdq_kernel_args args;
  args.scratch = scratch_.data() + scratch_stride_ * thread;
  for (size_t i = 0; i < launches_.size(); ++i) {
    LaunchState& state = launches_[i];
    const Launch& launch = plan.launches[i];
    if (state.num_tasks == 0) {
      if (thread == 0 && profiling_) finished_ns_[i] = now_ns();
      continue;
    }
    if (state.done.load() == state.num_tasks) continue;
    args.buffers = pointers_.data() + launch.first_arg;
    args.scalars = scalars_.data() + launch.first_scalar;
    const svdq_kernel_fn kernel = model_->code->kernel(launch.kernel);
    bool last = false;
    for (;;) {
      const int64_t begin = state.next.fetch_add(state.chunk);
      if (begin >= state.num_tasks) break;
      const int64_t end = std::min(begin + state.chunk, state.num_tasks);
      kernel(&args, begin, end);
      const int64_t finished_ns = profiling_ ? now_ns() : 0;
      last = state.done.fetch_add(end - begin) + (end - begin) == state.num_tasks;
      if (last && profiling_) finished_ns_[i] = finished_ns;
    }
    if (last) {
      barrier_.finished();
    } else {
      barrier_.wait_until_done(state);
    }
  }
}

void Session::run(const svdq_tensor* inputs, size_t num_inputs, const svdq_tensor* outputs,
                  size_t num_outputs) {
  const std::lock_guard<std::mutex> turn(mutex_);
  const Plan& plan = model_->plan;
  match_ports(plan.inputs, "input", inputs, num_inputs, input_order_.data());
  match_ports(plan.outputs, "output", outputs, num_outputs, output_order_.data());
  bind_dims(plan, inputs, input_order_.data(), next_dims_.data());
  for (size_t o = 0; o < plan.outputs.size(); ++o) {
    check_shape(plan, plan.outputs[o], "output", outputs[output_order_[o]], next_dims_.data());
  }
  check_memory(plan, inputs, input_order_.data(), outputs, output_order_.data());
  prepare(next_dims_.data());
  point_at_ports(inputs, outputs);
  for (LaunchState& launch : launches_) {
    launch.next.store(0, std::memory_order_relaxed);
    launch.done.store(0, std::memory_order_relaxed);
  }
  started_ns_ = profiling_ ? now_ns() : 0;
  pool_.run([](void* self, unsigned thread) { static_cast<Session*>(self)->walk(thread); }, this);
}

void Session::output_shapes(const svdq_tensor* inputs, size_t num_inputs, svdq_tensor* outputs,
                            size_t num_outputs) {
  const std::lock_guard<std::mutex> turn(mutex_);
  const Plan& plan = model_->plan;
  if (num_outputs != plan.outputs.size()) {
    fail(SVDQ_BAD_ARGUMENT, "output_shapes", model_->container.path,
         str("room for ", num_outputs, " outputs"), str("the model has ", plan.outputs.size()));
  }
  match_ports(plan.inputs, "input", inputs, num_inputs, input_order_.data());
  bind_dims(plan, inputs, input_order_.data(), next_dims_.data());
  for (size_t o = 0; o < num_outputs; ++o) {
    const Port& port = plan.outputs[o];
    outputs[o].name = port.name.c_str();
    outputs[o].dtype = port.dtype;
    outputs[o].ndim = static_cast<int32_t>(port.shape.size());
    for (size_t axis = 0; axis < port.shape.size(); ++axis) {
      const EvalError error = evaluate(plan.code(port.shape[axis]), next_dims_.data(),
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
    fail(SVDQ_BAD_ARGUMENT, "profile", model_->container.path, "the session does not measure",
         "create it with profile=1");
  }
  int64_t before = started_ns_;
  for (size_t i = 0; i < times_.size(); ++i) {
    times_[i].microseconds = static_cast<double>(finished_ns_[i] - before) / 1000.0;
    before = finished_ns_[i];
  }
  return times_;
}

}  // namespace svdq
