// Modules, kernels and graphs.
#include <dlfcn.h>

#include <cstring>
#include <sstream>

#include "fake.h"

extern "C" fake::Result cuDeviceGetAttribute(int* value, fake::DeviceAttribute which,
                                             fake::DeviceId device);

namespace fake {
namespace {

constexpr size_t kElfHeaderBytes = 64;

uint16_t read16(const uint8_t* bytes) { return static_cast<uint16_t>(bytes[0] | bytes[1] << 8); }

// Compute capability that a cubin is for, times ten; 0: not a cubin.
int capability_of(const uint8_t* image) {
  static constexpr uint8_t kElf64[] = {0x7f, 'E', 'L', 'F', 2, 1};
  if (std::memcmp(image, kElf64, sizeof kElf64) != 0 || read16(image + 18) != 190) return 0;
  return image[7] == 0x41 ? image[49] : image[48];
}

// The library of the list that has this kernel.
void* find_library(const std::string& libraries, const char* kernel) {
  std::istringstream paths(libraries);
  for (std::string path; std::getline(paths, path, ':');) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      Driver::get().violation(std::string("kernels: ") + dlerror());
    } else if (dlsym(library, kernel) != nullptr) {
      return library;
    }
  }
  return nullptr;
}

KernelCall call_of(FakeFunction* function, unsigned grid, unsigned threads, unsigned shared_bytes,
                   void** kernel_params) {
  KernelCall call{function, grid, threads, shared_bytes, {}};
  if (function == nullptr || function->info == nullptr || kernel_params == nullptr) return call;
  const size_t num_bytes = 8 * (function->info->num_buffers + function->info->num_scalars);
  const auto* block = static_cast<const uint8_t*>(kernel_params[0]);
  call.params.assign(block, block + num_bytes);
  return call;
}

}  // namespace

bool Driver::check_call(const KernelCall& call) {
  const FakeFunction* function = call.function;
  if (function == nullptr) return false;
  const std::string& name = function->name;
  const size_t before = violations.size();
  if (call.grid == 0 || call.grid > 0x7fffffffu) violation(name + ": grid out of range");
  if (call.threads == 0 || call.threads > 1024) violation(name + ": threads out of range");
  if (call.shared_bytes > static_cast<unsigned>(function->max_dynamic_shared)) {
    violation(name + ": more dynamic shared memory than its attribute allows");
  }
  if (function->info != nullptr) {
    if (call.threads != function->info->threads) violation(name + ": not its number of threads");
    if (call.shared_bytes != function->info->shared_bytes) {
      violation(name + ": not its shared memory");
    }
    for (uint32_t i = 0; i < function->info->num_buffers; ++i) {
      DevicePointer pointer;
      std::memcpy(&pointer, call.params.data() + 8 * i, 8);
      check_device_range((name + ": buffer " + std::to_string(i)).c_str(), pointer, 0);
    }
  }
  return violations.size() == before;
}

Result Driver::run_call(const KernelCall& call) {
  const int count = ++calls["kernel"];
  const auto failure = settings.failures.find("kernel");
  if (failure != settings.failures.end() && failure->second.nth == count) {
    return failure->second.code;
  }
  call.function->run(call.params.data(), call.grid);
  const char* error = call.function->error != nullptr ? call.function->error() : nullptr;
  if (error != nullptr) {
    violation(error);
    return kIllegalAddress;
  }
  check_tails();
  return kSuccess;
}

}  // namespace fake

using namespace fake;

FAKE_API Result cuModuleLoadData(Module* module, const void* image) {
  FAKE_ENTER(cuModuleLoadData, true);
  const auto* bytes = static_cast<const uint8_t*>(image);
  const int built_for = capability_of(bytes), here = driver.devices[driver.current()]->capability;
  if (built_for == 0) return kInvalidImage;
  if (built_for / 10 != here / 10 || built_for > here) return kNoBinaryForGpu;
  auto* made = driver.create<FakeModule>(Kind::module);
  made->image.assign(bytes, bytes + kElfHeaderBytes);
  *module = reinterpret_cast<Module>(static_cast<Object*>(made));
  return kSuccess;
}

FAKE_API Result cuModuleUnload(Module handle) {
  FAKE_ENTER(cuModuleUnload, true);
  auto* module = driver.lookup<FakeModule>(handle, Kind::module, "module");
  if (module == nullptr) return kInvalidHandle;
  driver.finish_all(module->device);
  for (auto it = driver.objects.begin(); it != driver.objects.end();) {
    const bool of_it = it->second->kind == Kind::function &&
                       static_cast<FakeFunction*>(it->second.get())->module == module;
    it = of_it ? driver.objects.erase(it) : std::next(it);
  }
  driver.objects.erase(static_cast<Object*>(module));
  return kSuccess;
}

FAKE_API Result cuModuleGetFunction(Function* function, Module handle, const char* name) {
  FAKE_ENTER(cuModuleGetFunction, true);
  auto* module = driver.lookup<FakeModule>(handle, Kind::module, "module");
  if (module == nullptr) return kInvalidHandle;
  void* library = find_library(driver.settings.kernels, name);
  if (library == nullptr) return kNotFound;
  void* info = dlsym(library, (std::string(name) + "_info").c_str());
  if (info == nullptr) return driver.violation(std::string(name) + " has no info", kNotFound);
  auto* made = driver.create<FakeFunction>(Kind::function);
  made->name = name;
  made->module = module;
  made->run = reinterpret_cast<void (*)(const void*, uint32_t)>(dlsym(library, name));
  made->error = reinterpret_cast<const char* (*)()>(dlsym(library, "svdq_host_error"));
  made->info = static_cast<const KernelInfo*>(info);
  *function = reinterpret_cast<Function>(static_cast<Object*>(made));
  return kSuccess;
}

FAKE_API Result cuFuncGetAttribute(int* value, FunctionAttribute which, Function handle) {
  FAKE_ENTER(cuFuncGetAttribute, true);
  auto* function = driver.lookup<FakeFunction>(handle, Kind::function, "function");
  if (function == nullptr) return kInvalidHandle;
  switch (which) {
    case kFunctionMaxThreads:
      *value = 1024;
      return kSuccess;
    case kFunctionStaticSharedBytes:
      *value = 0;
      return kSuccess;
    case kFunctionMaxDynamicSharedBytes:
      *value = function->max_dynamic_shared;
      return kSuccess;
  }
  return driver.violation("a function attribute that is not of the list");
}

FAKE_API Result cuFuncSetAttribute(Function handle, FunctionAttribute which, int value) {
  FAKE_ENTER(cuFuncSetAttribute, true);
  auto* function = driver.lookup<FakeFunction>(handle, Kind::function, "function");
  if (function == nullptr || which != kFunctionMaxDynamicSharedBytes) return kInvalidValue;
  int limit = 0;
  cuDeviceGetAttribute(&limit, kMaxSharedBytesOptIn, driver.current());
  if (value < 0 || value > limit) return kInvalidValue;
  function->max_dynamic_shared = value;
  return kSuccess;
}

FAKE_API Result cuFuncGetParamInfo(Function handle, size_t index, size_t* offset,
                                   size_t* num_bytes) {
  FAKE_ENTER(cuFuncGetParamInfo, true);
  auto* function = driver.lookup<FakeFunction>(handle, Kind::function, "function");
  if (function == nullptr) return kInvalidHandle;
  if (index > 0) return kInvalidValue;
  *offset = 0;
  *num_bytes = 8 * (function->info->num_buffers + function->info->num_scalars);
  return kSuccess;
}

FAKE_API Result cuLaunchKernel(Function handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                               unsigned block_x, unsigned block_y, unsigned block_z,
                               unsigned shared_bytes, Stream stream_handle, void** kernel_params,
                               void** extra) {
  FAKE_ENTER(cuLaunchKernel, true);
  auto* function = driver.lookup<FakeFunction>(handle, Kind::function, "function");
  FakeStream* stream = driver.stream(stream_handle);
  if (function == nullptr || stream == nullptr) return kInvalidHandle;
  if (grid_y * grid_z * block_y * block_z != 1 || extra != nullptr) {
    return driver.violation("a launch that is not one-dimensional");
  }
  const KernelCall call = call_of(function, grid_x, block_x, shared_bytes, kernel_params);
  if (!driver.check_call(call)) return kInvalidValue;
  driver.enqueue(stream, [call] { return Driver::get().run_call(call); });
  return kSuccess;
}

// ---- graphs

FAKE_API Result cuGraphCreate(Graph* graph, unsigned flags) {
  FAKE_ENTER(cuGraphCreate, true);
  if (flags != 0) return driver.violation("cuGraphCreate with flags");
  *graph = reinterpret_cast<Graph>(static_cast<Object*>(driver.create<FakeGraph>(Kind::graph)));
  return kSuccess;
}

FAKE_API Result cuGraphDestroy(Graph handle) {
  FAKE_ENTER(cuGraphDestroy, true);
  auto* graph = driver.lookup<FakeGraph>(handle, Kind::graph, "graph");
  if (graph == nullptr) return kInvalidHandle;
  driver.objects.erase(static_cast<Object*>(graph));
  return kSuccess;
}

FAKE_API Result cuGraphAddKernelNode(GraphNode* node, Graph handle, const GraphNode* dependencies,
                                     size_t num_dependencies, const KernelNode* kernel) {
  FAKE_ENTER(cuGraphAddKernelNode, true);
  auto* graph = driver.lookup<FakeGraph>(handle, Kind::graph, "graph");
  auto* function = driver.lookup<FakeFunction>(kernel->function, Kind::function, "function");
  if (graph == nullptr || function == nullptr) return kInvalidHandle;
  auto made = std::make_unique<GraphNodeEntry>();
  made->call = call_of(function, kernel->grid_x, kernel->block_x, kernel->shared_bytes,
                       kernel->kernel_params);
  if (kernel->grid_y * kernel->grid_z * kernel->block_y * kernel->block_z != 1 ||
      kernel->extra != nullptr || !driver.check_call(made->call)) {
    return driver.violation("a kernel node that cannot be launched");
  }
  for (size_t d = 0; d < num_dependencies; ++d) {
    size_t i = 0;
    while (i < graph->nodes.size() &&
           reinterpret_cast<GraphNode>(graph->nodes[i].get()) != dependencies[d]) {
      ++i;
    }
    if (i == graph->nodes.size()) return driver.violation("a dependency of another graph");
    made->after.push_back(i);
  }
  if (made->after.empty() && !graph->nodes.empty()) {
    return driver.violation("kernels of a graph in no order");
  }
  *node = reinterpret_cast<GraphNode>(made.get());
  graph->nodes.push_back(std::move(made));
  return kSuccess;
}

FAKE_API Result cuGraphInstantiateWithFlags(GraphExec* exec, Graph handle,
                                            unsigned long long flags) {
  FAKE_ENTER(cuGraphInstantiateWithFlags, true);
  auto* graph = driver.lookup<FakeGraph>(handle, Kind::graph, "graph");
  if (graph == nullptr || flags != 0) return kInvalidHandle;
  auto* made = driver.create<FakeGraphExec>(Kind::graph_exec);
  for (const auto& node : graph->nodes) {  // added after what it depends on
    made->index[reinterpret_cast<GraphNode>(node.get())] = made->calls.size();
    made->calls.push_back(node->call);
  }
  *exec = reinterpret_cast<GraphExec>(static_cast<Object*>(made));
  return kSuccess;
}

FAKE_API Result cuGraphExecDestroy(GraphExec handle) {
  FAKE_ENTER(cuGraphExecDestroy, true);
  auto* exec = driver.lookup<FakeGraphExec>(handle, Kind::graph_exec, "graph");
  if (exec == nullptr) return kInvalidHandle;
  driver.objects.erase(static_cast<Object*>(exec));
  return kSuccess;
}

FAKE_API Result cuGraphExecKernelNodeSetParams(GraphExec handle, GraphNode node,
                                               const KernelNode* kernel) {
  FAKE_ENTER(cuGraphExecKernelNodeSetParams, true);
  auto* exec = driver.lookup<FakeGraphExec>(handle, Kind::graph_exec, "graph");
  auto* function = driver.lookup<FakeFunction>(kernel->function, Kind::function, "function");
  if (exec == nullptr || function == nullptr) return kInvalidHandle;
  const auto found = exec->index.find(node);
  if (found == exec->index.end()) return driver.violation("a node of another graph");
  KernelCall call = call_of(function, kernel->grid_x, kernel->block_x, kernel->shared_bytes,
                            kernel->kernel_params);
  if (!driver.check_call(call)) return kInvalidValue;
  exec->calls[found->second] = std::move(call);
  return kSuccess;
}

FAKE_API Result cuGraphLaunch(GraphExec handle, Stream stream_handle) {
  FAKE_ENTER(cuGraphLaunch, true);
  auto* exec = driver.lookup<FakeGraphExec>(handle, Kind::graph_exec, "graph");
  FakeStream* stream = driver.stream(stream_handle);
  if (exec == nullptr || stream == nullptr) return kInvalidHandle;
  for (const KernelCall& call : exec->calls) {
    if (!driver.check_call(call)) return kInvalidValue;
    driver.enqueue(stream, [call] { return Driver::get().run_call(call); });
  }
  return kSuccess;
}
