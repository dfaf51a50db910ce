// A CUDA driver over host memory, for tests: what the runtime asks of libcuda.so.1 (cuda_api.h),
// with a strict eye on every argument.
//
// - Work on streams is put off until something waits for it, and then only what that wait needs is
//   done: a missing cuStreamWaitEvent gives wrong numbers every time, not once a month.
// - Fresh device memory is full of 0xFF (NaN in every float type), and its unused tail is watched.
// - Every handle and pointer is known, or that is a violation; `fake_cuda_report` lists them, with
//   what is still alive.
// - cuLaunchKernel runs `void name(const void* params, uint32_t grid_x)` of the host-built kernels.
//
// Settings, in $SVDQ_FAKE_CUDA or through fake_cuda_reset, are words such as `devices=9.0,8.0`:
//
//   devices   compute capability of each GPU (default 8.0); empty: none
//   version   of the driver (default 13000)
//   memory    bytes of each GPU (default 1 GiB)
//   kernels   shared objects, separated by colons (default $SVDQ_FAKE_CUDA_KERNELS)
//   mixed     1: streams take turns, operation by operation, wherever their order is not fixed
//   fail      name:n:code: the n-th call (0: every one) of a function, or `kernel`, gives that
//             error
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda_api.h"

namespace fake {

using namespace svdq::cuda;

struct Failure {
  int nth;
  Result code;
};

struct Settings {
  std::vector<int> devices = {80};  // 10 * major + minor
  int version = 13000;
  uint64_t memory = uint64_t{1} << 30;
  std::string kernels;
  bool mixed = false;
  std::map<std::string, Failure> failures;
};

// Something queued on a stream; others may wait for it.
struct Ticket {
  struct FakeStream* stream;
  bool done = false;
  int64_t order = 0;  // when it was done
};
using TicketPtr = std::shared_ptr<Ticket>;

struct Operation {
  std::function<Result()> body;
  std::vector<TicketPtr> needs;
  TicketPtr ticket;
};

enum class Kind { stream, event, module, function, graph, graph_exec };
struct Object {
  Kind kind;
  int device;
  virtual ~Object() = default;
};

struct FakeStream : Object {
  bool blocking = true;  // takes turns with the legacy stream
  bool capturing = false;
  std::deque<Operation> queue;
  TicketPtr last;
};

struct FakeEvent : Object {
  TicketPtr recorded;
  bool timed = true;
};

struct FakeModule : Object {
  std::vector<uint8_t> image;
};

// What a host-built kernel says about itself (`<name>_info`, svdq_cuda/host/grid.h).
struct KernelInfo {
  uint32_t threads, shared_bytes, num_buffers, num_scalars;
};

struct FakeFunction : Object {
  std::string name;
  FakeModule* module = nullptr;
  void (*run)(const void* params, uint32_t grid_x) = nullptr;
  const KernelInfo* info = nullptr;
  const char* (*error)() = nullptr;  // svdq_host_error of its library
  int max_dynamic_shared = 48 * 1024;
};

struct KernelCall {
  FakeFunction* function = nullptr;
  unsigned grid = 0, threads = 0, shared_bytes = 0;
  std::vector<uint8_t> params;
};

struct GraphNodeEntry {
  KernelCall call;
  std::vector<size_t> after;
};

struct FakeGraph : Object {
  std::vector<std::unique_ptr<GraphNodeEntry>> nodes;
};

struct FakeGraphExec : Object {
  std::vector<KernelCall> calls;
  std::map<GraphNode, size_t> index;
};

struct Allocation {
  uint8_t* base;
  size_t size, room;  // room: to the guard page
  int device;         // -1: pinned host memory
};

struct Device {
  int capability;
  int retained = 0;
  uint64_t used = 0, peak = 0;
  Result sticky = kSuccess;  // after a failed kernel, until reset
  FakeStream legacy;
};

class Driver {
 public:
  static Driver& get();
  std::recursive_mutex mutex;
  Settings settings;
  bool initialized = false;
  std::vector<std::unique_ptr<Device>> devices;
  std::map<void*, std::unique_ptr<Object>> objects;
  std::map<uint8_t*, Allocation> allocations;
  std::map<std::string, int> calls;
  std::vector<std::string> violations;
  int64_t clock = 0;
  uint32_t dice = 1;

  void configure(const char* text);
  Result violation(const std::string& what, Result code = kInvalidValue);

  // streams
  FakeStream* stream(Stream handle);  // of the current context; null after a violation
  void enqueue(FakeStream* stream, std::function<Result()> body);
  Result finish(FakeStream* stream, const TicketPtr& until);  // null: all of it
  Result finish_all(int device);
  void run_front(FakeStream* stream);
  void let_others_run(FakeStream* stream);

  // memory
  const Allocation* find(const void* pointer) const;
  bool check_device_range(const char* who, DevicePointer pointer, size_t num_bytes);
  bool is_pinned(const void* pointer, size_t num_bytes) const;
  void check_tails();
  Result add_allocation(size_t num_bytes, int device, void** pointer);
  Result remove_allocation(void* pointer, bool host);

  // kernels
  bool check_call(const KernelCall& call);
  Result run_call(const KernelCall& call);

  template <class T>
  T* create(Kind kind) {
    auto made = std::make_unique<T>();
    made->kind = kind;
    made->device = current();
    T* raw = made.get();
    objects[raw] = std::move(made);
    return raw;
  }
  template <class T>
  T* lookup(void* handle, Kind kind, const char* what) {
    const auto found = objects.find(handle);
    if (found == objects.end() || found->second->kind != kind) {
      violation(std::string("not a live ") + what);
      return nullptr;
    }
    if (current() >= 0 && found->second->device != current()) {
      violation(std::string(what) + " of another device");
      return nullptr;
    }
    return static_cast<T*>(found->second.get());
  }

  int current() const;  // device of this thread's context, -1 without one
};

std::vector<int>& context_stack();  // of this thread: devices

// At the head of each call: takes the lock, counts, injects failures, demands a context.
class Entry {
 public:
  Entry(const char* name, bool needs_context);
  Result result = kSuccess;  // not kSuccess: return it
 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

}  // namespace fake

#define FAKE_ENTER(name, needs_context)                      \
  const ::fake::Entry entry(#name, needs_context);           \
  if (entry.result != ::fake::kSuccess) return entry.result; \
  [[maybe_unused]] ::fake::Driver& driver = ::fake::Driver::get()

#define FAKE_API extern "C" __attribute__((visibility("default")))
