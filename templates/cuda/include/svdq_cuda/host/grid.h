// host/grid.h: run the CTAs of a launch, on one OS thread or several.
//
// Of the shared object, beside its kernels:
//   svdq_host_error()                      text of what made the last launch fail, or NULL
//   svdq_host_configure(threads, schedule) OS threads per launch (1), and the order of fibres
#ifndef SVDQ_CUDA_HOST_GRID_H
#define SVDQ_CUDA_HOST_GRID_H

#include <pthread.h>

#include <atomic>
#include <memory>

#include "svdq_cuda/host/fibre.h"

namespace svdq::host {

// What a kernel was compiled for; a launch must say the same.
struct KernelInfo {
  uint32_t num_threads, shared_bytes, num_buffers, num_scalars;
};

inline uint32_t os_threads = 1;
inline std::string last_error;

struct Grid {
  const KernelInfo& info;
  void (*body)(const void*);
  const void* params;
  uint32_t grid_x;
  std::atomic<uint32_t> next_cta;
  std::atomic<bool> failed;
  pthread_mutex_t mutex;
  std::string error;

  void fail(const std::string& text) {
    pthread_mutex_lock(&mutex);
    if (error.empty() || text < error) error = text;
    failed = true;
    pthread_mutex_unlock(&mutex);
  }
};

inline void* run_ctas(void* context) {
  Grid& grid = *static_cast<Grid*>(context);
  static thread_local std::unique_ptr<Cta> cta;  // its stacks serve the next launch too
  if (!cta) cta.reset(new (std::nothrow) Cta);
  if (!cta || !cta->reserve(grid.info.num_threads, grid.info.shared_bytes)) {
    grid.fail("no memory for the stacks of a CTA");
    return nullptr;
  }
  while (!grid.failed) {
    const uint32_t id = grid.next_cta++;
    if (id >= grid.grid_x) break;
    const uint32_t ordered = schedule == 1 ? grid.grid_x - 1 - id : id;
    if (!cta->run(grid.body, grid.params, ordered, grid.grid_x)) grid.fail(cta->error);
  }
  return nullptr;
}

inline void run_grid(const char* name, const KernelInfo& info, void (*body)(const void*),
                     const void* params, uint32_t grid_x) {
  Grid grid{info, body, params, grid_x, {}, {}, PTHREAD_MUTEX_INITIALIZER, {}};
  std::vector<pthread_t> helpers;
  for (uint32_t i = 1; i < os_threads && i < grid_x; ++i) {
    pthread_t helper;
    if (pthread_create(&helper, nullptr, run_ctas, &grid) == 0) helpers.push_back(helper);
  }
  run_ctas(&grid);
  for (pthread_t helper : helpers) pthread_join(helper, nullptr);
  last_error = grid.error.empty() ? "" : std::string(name) + ": " + grid.error;
}

}  // namespace svdq::host

extern "C" {
SVDQ_HOST_EXPORT __attribute__((weak)) const char* svdq_host_error(void) {
  return svdq::host::last_error.empty() ? nullptr : svdq::host::last_error.c_str();
}
SVDQ_HOST_EXPORT __attribute__((weak)) void svdq_host_configure(uint32_t threads,
                                                                uint32_t schedule) {
  svdq::host::os_threads = threads == 0 ? 1 : threads;
  svdq::host::schedule = schedule;
}
}

#endif  // SVDQ_CUDA_HOST_GRID_H
