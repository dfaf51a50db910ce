// host/threads.h: the threads of one CTA as fibres of one OS thread.
//
// A fibre runs until it must wait; then the next that may run continues, in a fixed order, so every
// run of a kernel is the same. The order is by choice: a kernel whose result changes with it reads
// what another thread has not yet been made to write. Shared memory begins as 0xff bytes, which are
// NaN in every float format and -1 in integers, with guards on both sides that are checked at the
// end. When nobody can run, what each thread waits for is the error text.
#ifndef SVDQ_CUDA_HOST_THREADS_H
#define SVDQ_CUDA_HOST_THREADS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <new>
#include <string>
#include <vector>

#include "svdq_cuda/base.h"
#include "svdq_cuda/host/switch.h"

#define SVDQ_HOST_EXPORT __attribute__((visibility("default")))

namespace svdq::host {

constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxWarps = kMaxThreads / kWarp;
constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = 32 * kPage;
constexpr size_t kGuardBytes = 4096;  // beside shared memory
constexpr unsigned char kPoison = 0xff, kGuard = 0xa5;

// Which fibre runs next: 0 lowest thread first, 1 highest first, else pseudo-random from this seed.
inline uint32_t schedule = 0;

// One copy that cp_async has begun.
struct AsyncCopy {
  char* shared;
  const char* global;
  uint32_t bytes;
  bool valid;
  uint32_t group;
};

struct Thread {
  Stack stack;
  const char* waits_for = nullptr;
  bool (*may_go)(const void*) = nullptr;  // of a thread that waits for a condition
  const void* condition = nullptr;
  std::vector<AsyncCopy> copies;
  uint32_t group = 0;  // cp_async groups committed
};

// Lanes that meet in one warp-collective operation.
struct Meeting {
  const char* what;
  uint32_t mask, arrived;
  void* operands[kWarp];
};

// Threads of several warps that meet in one collective operation.
struct GroupMeeting {
  const char* what;
  uint32_t arrived, num_threads;
  void* operands[kMaxThreads];
};

struct Barrier {
  uint32_t expected, arrived;
  uint32_t waiting[kMaxWarps];
  bool flag;    // the OR of cta_any
  bool result;  // of the last completed phase
};

class Cta {
 public:
  uint32_t cta_id = 0, num_ctas = 0, num_threads = 0, num_warps = 0;
  char* shared = nullptr;
  uint32_t shared_bytes = 0;
  uint32_t current = 0;  // thread
  Meeting meetings[kMaxWarps][4];
  GroupMeeting group_meetings[kMaxWarps];  // by first warp
  Barrier barriers[16];
  Thread threads[kMaxThreads];
  uint32_t tensor_columns = 0;  // that tcgen05_alloc gave
  std::vector<uint32_t> tensor_memory;
  std::string error;

  Cta() = default;
  Cta(const Cta&) = delete;
  Cta& operator=(const Cta&) = delete;
  ~Cta() {
    for (char* stack : stacks_) munmap(stack, kStackBytes + kPage);
    free(memory_);
  }

  // Threads and shared memory for CTAs of this shape; false where the machine has no memory.
  bool reserve(uint32_t threads_of_cta, uint32_t bytes) {
    num_threads = threads_of_cta;
    num_warps = threads_of_cta / kWarp;
    shared_bytes = bytes;
    while (stacks_.size() < num_threads) {
      void* const stack = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) return false;
      mprotect(stack, kPage, PROT_NONE);  // an overflow faults here
      stacks_.push_back(static_cast<char*>(stack));
    }
    free(memory_);
    const size_t total = (bytes + 1023) / 1024 * 1024 + 2 * kGuardBytes;
    memory_ = static_cast<char*>(aligned_alloc(4096, (total + 4095) / 4096 * 4096));
    shared = memory_ + kGuardBytes;
    return memory_ != nullptr;
  }

  // Run body(block) in every thread of one CTA; false, with `error`, if it cannot finish.
  bool run(void (*kernel)(const void*), const void* params, uint32_t id, uint32_t grid_x) {
    body_ = kernel;
    params_ = params;
    cta_id = id;
    num_ctas = grid_x;
    error.clear();
    random_ = (schedule + 1) * 2654435761u + id;
    memset(memory_, kGuard, kGuardBytes);
    memset(shared, kPoison, shared_bytes);
    memset(shared + shared_bytes, kGuard, kGuardBytes);
    memset(meetings, 0, sizeof meetings);
    for (GroupMeeting& meeting : group_meetings) meeting.arrived = 0;
    memset(barriers, 0, sizeof barriers);
    memset(polling_, 0, sizeof polling_);
    ready_warps_ = num_warps == kMaxWarps ? ~0u : (1u << num_warps) - 1;
    for (uint32_t warp = 0; warp < num_warps; ++warp) ready_[warp] = kFullWarp;
    for (uint32_t i = 0; i < num_threads; ++i) {
      // Tops at different distances from a page: at equal ones they would share few cache sets.
      const size_t bytes = kStackBytes - i % 64 * 192;
      threads[i].stack = prepare_stack(stacks_[i] + kPage, bytes, &Cta::enter);
      threads[i].waits_for = nullptr;
      threads[i].copies.clear();
      threads[i].group = 0;
    }
    tensor_columns = 0;
    alive_ = num_threads;
    active() = this;
    current = pick(ready_warps_) * kWarp;
    current = next();
    switch_stack(&main_, threads[current].stack);
    active() = nullptr;
    if (error.empty()) check_guards();
    if (error.empty() && tensor_columns != 0) {
      error = "cta " + std::to_string(cta_id) + " kept its tensor memory";
    }
    return error.empty();
  }

  static Cta*& active() {
    static thread_local Cta* cta = nullptr;
    return cta;
  }

  // The calling thread waits; somebody calls release for its lane.
  void wait(const char* what) {
    const uint32_t thread = current;
    threads[thread].waits_for = what;
    ready_[thread / kWarp] &= ~(1u << thread % kWarp);
    if (ready_[thread / kWarp] == 0) ready_warps_ &= ~(1u << thread / kWarp);
    leave(thread);
    threads[thread].waits_for = nullptr;
  }

  void release(uint32_t warp, uint32_t lanes) {
    if (lanes == 0) return;
    ready_[warp] |= lanes;
    ready_warps_ |= 1u << warp;
  }

  // The calling thread waits until may_go(condition), which is asked whenever nobody else can run.
  void wait_until(const char* what, bool (*may_go)(const void*), const void* condition) {
    Thread& thread = threads[current];
    thread.may_go = may_go;
    thread.condition = condition;
    polling_[current / kWarp] |= 1u << current % kWarp;
    wait(what);
  }

  // The CTA ends here, with this text. What its threads hold is dropped.
  [[noreturn]] void fail(const std::string& text) {
    error = "cta " + std::to_string(cta_id) + ", thread " + std::to_string(current) + ": " + text;
    Stack unused;
    switch_stack(&unused, main_);
    abort();
  }

 private:
  static void enter() {
    Cta& cta = *active();
    cta.body_(cta.params_);
    const uint32_t thread = cta.current;
    cta.threads[thread].waits_for = nullptr;  // it has returned
    cta.ready_[thread / kWarp] &= ~(1u << thread % kWarp);
    if (cta.ready_[thread / kWarp] == 0) cta.ready_warps_ &= ~(1u << thread / kWarp);
    --cta.alive_;
    cta.leave(thread);
    abort();
  }

  // Continue with whoever may run: perhaps this thread again, or the caller of run at the end.
  void leave(uint32_t thread) {
    if (ready_warps_ == 0 && alive_ != 0 && !poll()) {
      error = deadlock();
      switch_stack(&threads[thread].stack, main_);
    }
    if (alive_ == 0) {
      switch_stack(&threads[thread].stack, main_);
    } else {
      current = next();
      if (current != thread) switch_stack(&threads[thread].stack, threads[current].stack);
    }
  }

  // The warp that runs goes on while one of its lanes can: operands stay in the cache.
  uint32_t next() {
    const uint32_t warp =
        ready_[current / kWarp] != 0 && schedule < 2 ? current / kWarp : pick(ready_warps_);
    return warp * kWarp + pick(ready_[warp]);
  }

  uint32_t pick(uint32_t set) {
    if (schedule == 0) return static_cast<uint32_t>(__builtin_ctz(set));
    if (schedule == 1) return 31 - static_cast<uint32_t>(__builtin_clz(set));
    random_ ^= random_ << 13;
    random_ ^= random_ >> 17;
    random_ ^= random_ << 5;
    const uint32_t turn = random_ % 32;
    const uint32_t turned = set >> turn | set << (32 - turn) % 32;
    return (static_cast<uint32_t>(__builtin_ctz(turned)) + turn) % 32;
  }

  bool poll() {
    for (uint32_t warp = 0; warp < num_warps; ++warp) {
      for (uint32_t set = polling_[warp]; set != 0; set &= set - 1) {
        const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(set));
        const Thread& thread = threads[warp * kWarp + lane];
        if (!thread.may_go(thread.condition)) continue;
        polling_[warp] &= ~(1u << lane);
        release(warp, 1u << lane);
      }
    }
    return ready_warps_ != 0;
  }

  // "deadlock in cta 3: threads 0-127 wait at cta_sync; threads 128-255 have returned"
  std::string deadlock() const {
    std::string text = "deadlock in cta " + std::to_string(cta_id) + ":";
    for (uint32_t first = 0; first < num_threads;) {
      uint32_t last = first;
      while (last + 1 < num_threads && same_wait(first, last + 1)) ++last;
      const char* const what = threads[first].waits_for;
      text += (first == 0 ? " threads " : "; threads ") + std::to_string(first) + "-" +
              std::to_string(last) + (what ? std::string(" wait at ") + what : " have returned");
      first = last + 1;
    }
    for (uint32_t id = 0; id < 16; ++id) {
      if (barriers[id].arrived == 0) continue;
      text += "; barrier " + std::to_string(id) + " has " + std::to_string(barriers[id].arrived) +
              " of " + std::to_string(barriers[id].expected) + " threads";
    }
    return text;
  }
  bool same_wait(uint32_t a, uint32_t b) const {
    const char *one = threads[a].waits_for, *two = threads[b].waits_for;
    return one == two || (one && two && strcmp(one, two) == 0);
  }

  void check_guards() {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      const unsigned char before = static_cast<unsigned char>(memory_[i]);
      const unsigned char after = static_cast<unsigned char>(shared[shared_bytes + i]);
      if (before == kGuard && after == kGuard) continue;
      error = "cta " + std::to_string(cta_id) + " wrote outside its " +
              std::to_string(shared_bytes) + " bytes of shared memory (" +
              (after != kGuard ? std::to_string(i) + " bytes behind" : "in front") + ")";
      return;
    }
  }

  void (*body_)(const void*) = nullptr;
  const void* params_ = nullptr;
  uint32_t ready_[kMaxWarps] = {}, polling_[kMaxWarps] = {};
  uint32_t ready_warps_ = 0, alive_ = 0, random_ = 1;
  char* memory_ = nullptr;
  Stack main_{};
  std::vector<char*> stacks_;
};

}  // namespace svdq::host

#endif  // SVDQ_CUDA_HOST_THREADS_H
