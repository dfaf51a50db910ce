#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace svdq {
namespace {

// About 25 us between launches, 100 us between runs: longer than a short launch, shorter than a
// time slice.
constexpr int kSpinsInRun = 1000, kSpinsIdle = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

#if defined(__linux__)
static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free);

void sleep_while_equal(const std::atomic<uint32_t>* word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake_all(const std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}
#else
void sleep_while_equal(const std::atomic<uint32_t>*, uint32_t) {
  std::this_thread::sleep_for(std::chrono::microseconds(50));
}
void wake_all(const std::atomic<uint32_t>*) {}
#endif

Pool::Pool(unsigned num_threads) : owner_pid_(getpid()) {
  sigset_t all, before;  // signals are for the program's own threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (unsigned i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {
    // Fewer threads than asked for is still correct.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Pool::~Pool() {
  if (getpid() != owner_pid_) {  // after a fork the threads are not in this process
    for (std::thread& worker : workers_) worker.detach();
    return;
  }
  stop_.store(true);
  generation_.fetch_add(1);
  wake_all(&generation_);
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run(Body body, void* context) {
  if (workers_.empty()) {
    body(context, 0);
    return;
  }
  // No worker is inside, so these are ours to write; open_ publishes them.
  body_ = body;
  context_ = context;
  open_.store(true);
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) wake_all(&generation_);
  body(context, 0);
  open_.store(false);
  // A worker counts itself in before it looks at open_, so after this loop none can be inside.
  for (int spins = 0; inside_.load() != 0; ++spins) {
    if (spins < kSpinsInRun) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void Pool::work(unsigned thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; generation_.load() == seen && spins < kSpinsIdle; ++spins) pause();
    while (generation_.load() == seen) {
      sleepers_.fetch_add(1);
      sleep_while_equal(&generation_, seen);
      sleepers_.fetch_sub(1);
    }
    seen = generation_.load();
    if (stop_.load()) return;
    inside_.fetch_add(1);
    if (open_.load()) body_(context_, thread);
    inside_.fetch_sub(1);
  }
}

void Barrier::wait_until_done(const LaunchState& launch) {
  const auto done = [&] { return launch.done.load() == launch.num_tasks; };
  for (int spins = 0; spins < kSpinsInRun; ++spins) {
    if (done()) return;
    pause();
  }
  for (;;) {
    // If the last task ends after `epoch` is read, either the word has changed or `finished` sees
    // this waiter.
    const uint32_t epoch = epoch_.load();
    waiters_.fetch_add(1);
    if (!done()) sleep_while_equal(&epoch_, epoch);
    waiters_.fetch_sub(1);
    if (done()) return;
  }
}

void Barrier::finished() {
  epoch_.fetch_add(1);
  if (waiters_.load() > 0) wake_all(&epoch_);
}

}  // namespace svdq
