// Threads that walk a list of launches together.
//
// A model is hundreds of launches, some of 10 microseconds, so waking threads for each would cost
// more than the work. Instead every thread walks the whole list: at each launch it takes chunks of
// tasks until none is left, then waits, spinning briefly before it sleeps, until the others have
// finished theirs. A thread that comes late, or never (it has no core), is not waited for: what
// counts is that all tasks are done.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace svdq {

// Sleeping and waking on a 32-bit word.
void sleep_while_equal(const std::atomic<uint32_t>* word, uint32_t value);
void wake_all(const std::atomic<uint32_t>* word);

class Pool {
 public:
  using Body = void (*)(void* context, unsigned thread);

  explicit Pool(unsigned num_threads);  // the caller of `run` is one of them
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // body(context, 0) here, and body(context, i) on those workers that are in time. Returns when all
  // have left it.
  void run(Body body, void* context);

 private:
  void work(unsigned thread);

  Body body_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<bool> open_{false};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> inside_{0};
  std::atomic<int> sleepers_{0};
  int owner_pid_;
  std::vector<std::thread> workers_;
};

// One launch as the threads see it.
struct alignas(64) LaunchState {
  std::atomic<int64_t> next{0};  // the first task nobody has taken
  std::atomic<int64_t> done{0};
  int64_t num_tasks = 0;
  int64_t chunk = 1;
};

// The meeting point of the threads between launches.
class Barrier {
 public:
  void wait_until_done(const LaunchState& launch);
  void finished();  // called by the thread that finished a launch's last task

 private:
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<int> waiters_{0};
};

}  // namespace svdq
