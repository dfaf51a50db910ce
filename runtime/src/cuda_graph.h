// A plan's launches as CUDA graphs, one for each of the dims that come up again and again: the
// device then goes from kernel to kernel without waiting for the host.
#pragma once

#include <memory>
#include <vector>

#include "cuda_device.h"

namespace svdq::cuda {

// One launch with everything decided.
struct Kernel {
  Function function = nullptr;
  unsigned grid = 0, threads = 0, shared_bytes = 0;
  uint64_t* params = nullptr;  // the block; at least 4 KiB can be read from it
};

// Node of a graph or argument of a launch: the driver copies the block at the call.
KernelNode node_of(const Kernel& kernel, void** param_list);

class GraphCache {
 public:
  static constexpr size_t kMaxGraphs = 8;     // different dims; the one unused for longest goes
  static constexpr unsigned kRunsBefore = 1;  // with the same dims, before a graph is worth making
  static constexpr size_t kMinLaunches = 4;   // fewer are launched as fast one by one

  // `done` is recorded behind every run: a graph is not given up before.
  GraphCache(std::shared_ptr<const Device> device, size_t num_dims, Event done);
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Enqueues the kernels in order as one graph, made now if dims have come up often enough; false
  // if they are to be launched one by one. The kernels at `port_kernels` are those whose params
  // change between runs of the same dims.
  bool launch(const std::vector<int64_t>& dims, const std::vector<Kernel>& kernels,
              const std::vector<uint32_t>& port_kernels,
              const std::vector<uint64_t>& port_addresses, Stream stream);

 private:
  struct Entry {
    std::vector<int64_t> dims;
    uint64_t last_use = 0;
    unsigned num_runs = 0;
    bool refused = false;  // the driver would not make it
    Graph graph = nullptr;
    GraphExec exec = nullptr;
    std::vector<GraphNode> nodes;          // by kernel; null where there are no tasks
    std::vector<uint64_t> port_addresses;  // as in exec
  };
  Entry& find(const std::vector<int64_t>& dims);
  bool make(Entry& entry, const std::vector<Kernel>& kernels);
  void drop(Entry& entry);

  const std::shared_ptr<const Device> device_;
  const Event done_;
  std::vector<Entry> entries_;
  uint64_t clock_ = 0;
};

}  // namespace svdq::cuda
