#include "cuda_graph.h"

#include <algorithm>

namespace svdq::cuda {

KernelNode node_of(const Kernel& kernel, void** param_list) {
  param_list[0] = kernel.params;
  return {kernel.function,     kernel.grid, 1,      1, kernel.threads, 1, 1,
          kernel.shared_bytes, param_list,  nullptr};
}

GraphCache::GraphCache(std::shared_ptr<const Device> device, size_t num_dims, Event done)
    : device_(std::move(device)), done_(done), entries_(kMaxGraphs) {
  for (Entry& entry : entries_) entry.dims.resize(num_dims);
}

GraphCache::~GraphCache() {
  Context popped;
  if (device_->api.push(device_->context()) != kSuccess) return;
  for (Entry& entry : entries_) drop(entry);
  device_->api.pop(&popped);
}

void GraphCache::drop(Entry& entry) {
  const Driver& api = device_->api;
  if (entry.exec != nullptr) {
    api.event_synchronize(done_);
    api.graph_exec_destroy(entry.exec);
  }
  if (entry.graph != nullptr) api.graph_destroy(entry.graph);
  entry.exec = nullptr;
  entry.graph = nullptr;
  entry.num_runs = 0;
  entry.refused = false;
}

GraphCache::Entry& GraphCache::find(const std::vector<int64_t>& dims) {
  Entry* oldest = &entries_[0];
  for (Entry& entry : entries_) {
    if (entry.last_use > 0 && entry.dims == dims) {
      entry.last_use = ++clock_;
      return entry;
    }
    if (entry.last_use < oldest->last_use) oldest = &entry;
  }
  drop(*oldest);
  oldest->dims = dims;
  oldest->last_use = ++clock_;
  return *oldest;
}

// A chain: every kernel after the one before it, as in the plan.
bool GraphCache::make(Entry& entry, const std::vector<Kernel>& kernels) {
  const Driver& api = device_->api;
  entry.nodes.assign(kernels.size(), nullptr);
  bool made = api.graph_create(&entry.graph, 0) == kSuccess;
  GraphNode before = nullptr;
  for (size_t i = 0; made && i < kernels.size(); ++i) {
    if (kernels[i].grid == 0) continue;
    void* param_list[1];
    const KernelNode kernel = node_of(kernels[i], param_list);
    made = api.graph_add_kernel(&entry.nodes[i], entry.graph, &before, before != nullptr ? 1 : 0,
                                &kernel) == kSuccess;
    before = entry.nodes[i];
  }
  made = made && api.graph_instantiate(&entry.exec, entry.graph, 0) == kSuccess;
  if (!made) {
    drop(entry);
    entry.refused = true;
  }
  return made;
}

bool GraphCache::launch(const std::vector<int64_t>& dims, const std::vector<Kernel>& kernels,
                        const std::vector<uint32_t>& port_kernels,
                        const std::vector<uint64_t>& port_addresses, Stream stream) {
  const Driver& api = device_->api;
  if (!api.has_graphs() || kernels.size() < kMinLaunches) return false;
  Entry& entry = find(dims);
  if (entry.refused || entry.num_runs++ < kRunsBefore) return false;
  if (entry.exec == nullptr) {
    if (!make(entry, kernels)) return false;
    entry.port_addresses = port_addresses;
  } else if (entry.port_addresses != port_addresses) {
    for (const uint32_t i : port_kernels) {
      if (entry.nodes[i] == nullptr) continue;
      void* param_list[1];
      const KernelNode kernel = node_of(kernels[i], param_list);
      device_->check(api.graph_exec_set_kernel(entry.exec, entry.nodes[i], &kernel),
                     "cuGraphExecKernelNodeSetParams");
    }
    std::copy(port_addresses.begin(), port_addresses.end(), entry.port_addresses.begin());
  }
  device_->check(api.graph_launch(entry.exec, stream), "cuGraphLaunch");
  return true;
}

}  // namespace svdq::cuda
