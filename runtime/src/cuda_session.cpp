// Running on a GPU: the launches of the plan on one stream, in order.
#include <algorithm>
#include <cstring>

#include "binding.h"
#include "checked.h"
#include "cuda_graph.h"
#include "cuda_program.h"
#include "error.h"
#include "session.h"

namespace svdq {
namespace {

using cuda::Current;
using cuda::DeviceMemory;
using cuda::DevicePointer;
using cuda::Kernel;
using cuda::KernelNode;
using cuda::OwnedEvent;
using cuda::OwnedStream;
using cuda::Program;
using cuda::Stream;

// What kernels may rely on for inputs and outputs (FORMAT.md); others are copied to where it holds.
constexpr uint64_t kPortAlignment = 16, kAreaAlignment = 256;

class GpuSession : public Session {
 public:
  GpuSession(std::shared_ptr<const Model> model, std::shared_ptr<Program> program, bool profiling,
             bool graphs)
      : Session(std::move(model), program->plan, true, profiling),
        program_(std::move(program)),
        device_(*program_->device),
        stream_(program_->device),
        done_(program_->device, false),
        params_(plan_.args.size() + plan_.scalars.size() + kMaxParamWords),
        kernels_(plan_.launches.size()),
        port_addresses_(port_args_.size()),
        ports_(plan_.inputs.size() + plan_.outputs.size()),
        graphs_(program_->device, plan_.dims.size(), done_.get()),
        with_graphs_(graphs && !profiling) {
    cuda::check_room(device_, container().path, 0, plan_.arena_bytes);
    arena_ = DeviceMemory(program_->device, plan_.arena_bytes);
    for (size_t i = 0; i < kernels_.size(); ++i) {
      const Launch& launch = plan_.launches[i];
      const KernelEntry& kernel = plan_.kernels[launch.kernel];
      kernels_[i] = {program_->kernels.kernel(launch.kernel), 0, kernel.threads,
                     kernel.shared_bytes, params_.data() + launch.first_arg + launch.first_scalar};
    }
    find_port_kernels();
    lay_out_ports();
    for (size_t i = 0; profiling && i <= kernels_.size(); ++i)
      marks_.emplace_back(program_->device, true);
  }

  ~GpuSession() override {  // nothing may be under way when the memory goes
    cuda::Context popped;
    if (device_.api.push(device_.context()) != cuda::kSuccess) return;
    device_.api.event_synchronize(done_.get());
    device_.api.stream_synchronize(stream_.get());
    device_.api.pop(&popped);
  }

 private:
  struct PortState {
    uint64_t area_offset = 0;   // of its copy on the device
    DevicePointer address = 0;  // that kernels use in this run
    bool on_device = false;
  };

  // ---- once

  void find_port_kernels() {
    size_t next = 0;
    for (uint32_t i = 0; i < plan_.launches.size(); ++i) {
      const uint32_t end = plan_.launches[i].first_arg + plan_.launches[i].num_args;
      const size_t first = next;
      while (next < port_args_.size() && port_args_[next] < end) {
        port_words_.push_back(params_.data() + port_args_[next] + plan_.launches[i].first_scalar);
        ++next;
      }
      if (next > first) port_kernels_.push_back(i);
    }
  }

  void lay_out_ports() {
    for (size_t p = 0; p < ports_.size(); ++p) {
      const Port& port = port_of(p);
      uint64_t num_bytes = item_bytes(port.dtype);
      for (const ExprIndex size : port.shape)  // proved not to exceed 64 bits
        num_bytes *= static_cast<uint64_t>(std::max<int64_t>(0, plan_.bounds[size].hi));
      ports_[p].area_offset = area_bytes_;
      area_bytes_ += align_up(std::max<uint64_t>(1, num_bytes), kAreaAlignment);
    }
  }

  const Port& port_of(size_t p) const {
    return p < plan_.inputs.size() ? plan_.inputs[p] : plan_.outputs[p - plan_.inputs.size()];
  }

  // ---- when dims change

  void prepare() override {
    for (size_t i = 0; i < kernels_.size(); ++i) {
      const Launch& launch = plan_.launches[i];
      uint64_t* word = kernels_[i].params;
      for (uint32_t a = launch.first_arg; a < launch.first_arg + launch.num_args; ++a, ++word) {
        const Buffer& buffer = plan_.buffers[plan_.args[a].buffer];
        DevicePointer base = 0;
        if (buffer.kind == BufferKind::arena) base = arena_.data() + buffer.arena_offset;
        if (buffer.kind == BufferKind::weight) base = program_->weights.tensor(buffer.index);
        *word = base + static_cast<uint64_t>(values_[plan_.args[a].byte_offset]);
      }
      std::memcpy(word, scalars_.data() + launch.first_scalar, 8 * launch.num_scalars);
      kernels_[i].grid = static_cast<unsigned>(values_[launch.num_tasks]);  // <= 2^31 - 1: proved
    }
  }

  // ---- each run

  void execute(const svdq_tensor* inputs, const svdq_tensor* outputs, void* caller) override {
    for (size_t p = 0; p < ports_.size(); ++p) check_device(p, tensor_of(p, inputs, outputs));
    program_->weights.wait();
    const Current current(device_);
    const Stream stream = caller != nullptr ? static_cast<Stream>(caller) : stream_.get();
    const bool captured = caller != nullptr && is_captured(stream);
    if (!captured && last_stream_ != nullptr && last_stream_ != stream)
      check(device_.api.stream_wait(stream, done_.get(), 0), "cuStreamWaitEvent");
    try {
      take_inputs(inputs, outputs, stream);
      point_at_ports();
      launch_all(stream, captured);
      const bool on_host = give_outputs(outputs, stream);
      if (!captured) {
        check(device_.api.event_record(done_.get(), stream), "cuEventRecord");
        last_stream_ = stream;
      }
      if (caller == nullptr || on_host)
        check(device_.api.stream_synchronize(stream), "cuStreamSynchronize");
    } catch (...) {
      if (!captured) device_.api.stream_synchronize(stream);  // the caller may free its tensors
      throw;
    }
  }

  void check(cuda::Result result, const char* call) const { device_.check(result, call); }

  const svdq_tensor& tensor_of(size_t p, const svdq_tensor* inputs,
                               const svdq_tensor* outputs) const {
    return p < plan_.inputs.size() ? inputs[input_order_[p]]
                                   : outputs[output_order_[p - plan_.inputs.size()]];
  }

  uint64_t bytes_of(size_t p, const svdq_tensor& tensor) const {
    uint64_t num_bytes = item_bytes(port_of(p).dtype);
    for (int32_t d = 0; d < tensor.ndim; ++d) num_bytes *= static_cast<uint64_t>(tensor.shape[d]);
    return num_bytes;
  }

  static DevicePointer address_of(const svdq_tensor& tensor) {
    return reinterpret_cast<DevicePointer>(tensor.data);
  }

  // What is said to be in this GPU's memory is.
  void check_device(size_t p, const svdq_tensor& tensor) {
    ports_[p].on_device = is_on_device(tensor);
    if (!ports_[p].on_device || bytes_of(p, tensor) == 0) return;
    unsigned type = 0;
    int ordinal = -1;
    const cuda::Driver& api = device_.api;
    if (api.pointer_attribute(&type, cuda::kPointerMemoryType, address_of(tensor)) !=
            cuda::kSuccess ||
        type == cuda::kMemoryHost) {
      fail(SVDQ_BAD_INPUT, "run", port_of(p).name, "its memory is said to be a GPU's, and is not",
           "leave SVDQ_ON_DEVICE out for memory of the host");
    }
    api.pointer_attribute(&ordinal, cuda::kPointerDeviceOrdinal, address_of(tensor));
    if (ordinal != device_.ordinal) {
      fail(SVDQ_BAD_INPUT, "run", port_of(p).name,
           str("it is on cuda:", ordinal, ", this session is on cuda:", device_.ordinal),
           str("move it to cuda:", device_.ordinal));
    }
  }

  bool is_captured(Stream stream) const {
    int status = 0;
    return device_.api.stream_is_capturing(stream, &status) == cuda::kSuccess && status != 0;
  }

  DevicePointer area(size_t p) {
    if (area_.data() == 0) {  // once
      cuda::check_room(device_, container().path, 0, area_bytes_);
      area_ = DeviceMemory(program_->device, area_bytes_);
    }
    return area_.data() + ports_[p].area_offset;
  }

  // Kernels use the caller's device memory itself; what is on the host, or not aligned, through a
  // copy.
  void take_inputs(const svdq_tensor* inputs, const svdq_tensor* outputs, Stream stream) {
    for (size_t p = 0; p < ports_.size(); ++p) {
      const svdq_tensor& tensor = tensor_of(p, inputs, outputs);
      const uint64_t num_bytes = bytes_of(p, tensor);
      PortState& port = ports_[p];
      const bool direct = port.on_device && address_of(tensor) % kPortAlignment == 0;
      port.address = direct ? address_of(tensor) : area(p);
      if (direct || p >= plan_.inputs.size() || num_bytes == 0) continue;
      if (port.on_device) {
        check(device_.api.copy_within(port.address, address_of(tensor), num_bytes, stream),
              "cuMemcpyDtoDAsync");
      } else {
        check(device_.api.copy_in(port.address, tensor.data, num_bytes, stream),
              "cuMemcpyHtoDAsync");
      }
    }
  }

  // Whether some output is on the host.
  bool give_outputs(const svdq_tensor* outputs, Stream stream) {
    bool on_host = false;
    for (size_t p = plan_.inputs.size(); p < ports_.size(); ++p) {
      const svdq_tensor& tensor = tensor_of(p, nullptr, outputs);
      const uint64_t num_bytes = bytes_of(p, tensor);
      const PortState& port = ports_[p];
      on_host = on_host || !port.on_device;
      if (port.address == address_of(tensor) || num_bytes == 0) continue;
      if (port.on_device) {
        check(device_.api.copy_within(address_of(tensor), port.address, num_bytes, stream),
              "cuMemcpyDtoDAsync");
      } else {
        check(device_.api.copy_out(tensor.data, port.address, num_bytes, stream),
              "cuMemcpyDtoHAsync");
      }
    }
    return on_host;
  }

  void point_at_ports() {
    for (size_t i = 0; i < port_args_.size(); ++i) {
      const Arg& arg = plan_.args[port_args_[i]];
      const Buffer& buffer = plan_.buffers[arg.buffer];
      const size_t p = buffer.index + (buffer.kind == BufferKind::output ? plan_.inputs.size() : 0);
      port_addresses_[i] = ports_[p].address + static_cast<uint64_t>(values_[arg.byte_offset]);
      *port_words_[i] = port_addresses_[i];
    }
  }

  void launch_all(Stream stream, bool captured) {
    if (with_graphs_ && !captured &&
        graphs_.launch(dims_, kernels_, port_kernels_, port_addresses_, stream)) {
      return;
    }
    for (size_t i = 0; i < kernels_.size(); ++i) {
      mark(i, stream, captured);
      const Kernel& kernel = kernels_[i];
      if (kernel.grid == 0) continue;
      void* param_list[1] = {kernel.params};
      check(device_.api.launch(kernel.function, kernel.grid, 1, 1, kernel.threads, 1, 1,
                               kernel.shared_bytes, stream, param_list, nullptr),
            "cuLaunchKernel");
    }
    mark(kernels_.size(), stream, captured);
  }

  void mark(size_t i, Stream stream, bool captured) {
    if (profiling_ && !captured)
      check(device_.api.event_record(marks_[i].get(), stream), "cuEventRecord");
  }

  void read_times() override {
    const Current current(device_);
    check(device_.api.event_synchronize(done_.get()), "cuEventSynchronize");
    for (size_t i = 0; last_stream_ != nullptr && i < times_.size(); ++i) {
      float milliseconds = 0;
      check(device_.api.event_elapsed(&milliseconds, marks_[i].get(), marks_[i + 1].get()),
            "cuEventElapsedTime");
      times_[i].microseconds = 1000.0 * static_cast<double>(milliseconds);
    }
  }

  const std::shared_ptr<Program> program_;
  const cuda::Device& device_;
  OwnedStream stream_;
  OwnedEvent done_;               // behind the last run
  Stream last_stream_ = nullptr;  // of the last run
  DeviceMemory arena_, area_;     // area_: copies of the ports, if a caller ever needs one
  uint64_t area_bytes_ = 0;
  std::vector<uint64_t>
      params_;  // the launches' blocks, one behind the other; then padding that the driver may read
  std::vector<Kernel> kernels_;           // per launch
  std::vector<uint32_t> port_kernels_;    // launches with arguments that point at ports
  std::vector<uint64_t*> port_words_;     // where in params_, per entry of port_args_
  std::vector<uint64_t> port_addresses_;  // likewise, what they are now
  std::vector<PortState> ports_;          // inputs, then outputs
  std::vector<OwnedEvent> marks_;         // before each launch and after the last
  cuda::GraphCache graphs_;
  const bool with_graphs_;
};

}  // namespace

std::unique_ptr<Session> make_gpu_session(std::shared_ptr<const Model> model, int ordinal,
                                          bool profiling, bool graphs) {
  std::shared_ptr<Program> program = model->gpu_program(ordinal);
  return std::make_unique<GpuSession>(std::move(model), std::move(program), profiling, graphs);
}

}  // namespace svdq
