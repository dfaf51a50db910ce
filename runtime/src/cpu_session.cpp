// Running on the processor: every thread walks the list of launches.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>

#include "checked.h"
#include "cpu.h"
#include "error.h"
#include "pool.h"
#include "session.h"

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

// Zeroed pages, given by the system as they are touched.
class Pages {
 public:
  Pages(uint64_t num_bytes, const std::string& subject, const char* purpose) : size_(num_bytes) {
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
               " at its largest dims; this machine has ", available_memory_bytes(),
               " bytes free of ", total),
           "compile it with smaller upper bounds of its dims, or use a machine with more memory");
    }
#if defined(MADV_HUGEPAGE)
    if (num_bytes >= (4u << 20)) madvise(mapped, num_bytes, MADV_HUGEPAGE);
#endif
    data_ = static_cast<uint8_t*>(mapped);
  }
  ~Pages() {
    if (data_ != nullptr) munmap(data_, size_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

class CpuSession : public Session {
 public:
  CpuSession(std::shared_ptr<const Model> model, std::shared_ptr<const CpuProgram> program,
             unsigned threads, bool profiling)
      : Session(std::move(model), program->plan, false, profiling),
        program_(std::move(program)),
        num_threads_(std::min(kMaxThreads, threads == 0 ? usable_threads() : threads)),
        arena_(plan_.arena_bytes, container().path, "activations"),
        scratch_(stride_of(plan_.scratch_bytes) * num_threads_, container().path, "scratch"),
        scratch_stride_(stride_of(plan_.scratch_bytes)),
        pointers_(plan_.args.size()),
        launches_(plan_.launches.size()),
        finished_ns_(profiling ? plan_.launches.size() : 0),
        pool_(num_threads_) {}

 private:
  void prepare() override {
    for (size_t a = 0; a < plan_.args.size(); ++a) {
      const Buffer& buffer = plan_.buffers[plan_.args[a].buffer];
      uint8_t* base = nullptr;
      if (buffer.kind == BufferKind::arena) base = arena_.data() + buffer.arena_offset;
      if (buffer.kind == BufferKind::weight) {
        // Read-only pages; verify_plan saw to it that kernels only read.
        base = const_cast<uint8_t*>(container().file->data()) +
               container().tensors[buffer.index].offset;
      }
      if (base != nullptr) pointers_[a] = base + values_[plan_.args[a].byte_offset];
    }
    for (size_t i = 0; i < launches_.size(); ++i) {
      launches_[i].num_tasks = values_[plan_.launches[i].num_tasks];
      launches_[i].chunk =
          std::max<int64_t>(1, launches_[i].num_tasks / (kChunksPerThread * num_threads_));
    }
  }

  void execute(const svdq_tensor* inputs, const svdq_tensor* outputs, void*) override {
    for (const uint32_t a : port_args_) {
      const svdq_tensor& tensor = port_tensor(plan_.buffers[plan_.args[a].buffer], inputs, outputs);
      pointers_[a] = static_cast<uint8_t*>(tensor.data) + values_[plan_.args[a].byte_offset];
    }
    for (LaunchState& launch : launches_) {
      launch.next.store(0, std::memory_order_relaxed);
      launch.done.store(0, std::memory_order_relaxed);
    }
    started_ns_ = profiling_ ? now_ns() : 0;
    pool_.run([](void* self, unsigned thread) { static_cast<CpuSession*>(self)->walk(thread); },
              this);
  }

  void walk(unsigned thread) {
    const DefaultFloatMode mode;
    svdq_kernel_args args;
    args.scratch = scratch_.data() + scratch_stride_ * thread;
    for (size_t i = 0; i < launches_.size(); ++i) {
      LaunchState& state = launches_[i];
      const Launch& launch = plan_.launches[i];
      if (state.num_tasks == 0) continue;
      if (state.done.load() == state.num_tasks) continue;
      args.buffers = pointers_.data() + launch.first_arg;
      args.scalars = scalars_.data() + launch.first_scalar;
      const svdq_kernel_fn kernel = program_->code->kernel(launch.kernel);
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

  void read_times() override {
    int64_t before = started_ns_;
    for (size_t i = 0; i < times_.size(); ++i) {
      // Nobody finishes a launch without tasks; threads pass it at different times.
      if (launches_[i].num_tasks == 0) {
        times_[i].microseconds = 0;
        continue;
      }
      times_[i].microseconds = static_cast<double>(finished_ns_[i] - before) / 1000.0;
      before = finished_ns_[i];
    }
  }

  const std::shared_ptr<const CpuProgram> program_;
  const unsigned num_threads_;
  Pages arena_, scratch_;
  const uint64_t scratch_stride_;
  std::vector<void*> pointers_;  // per entry of plan.args
  std::vector<LaunchState> launches_;
  std::vector<int64_t> finished_ns_;
  int64_t started_ns_ = 0;
  Barrier barrier_;
  Pool pool_;  // last: its threads use all of the above
};

}  // namespace

std::unique_ptr<Session> make_cpu_session(std::shared_ptr<const Model> model, unsigned threads,
                                          bool profiling) {
  std::shared_ptr<const CpuProgram> program = model->cpu_program();
  return std::make_unique<CpuSession>(std::move(model), std::move(program), threads, profiling);
}

}  // namespace svdq
