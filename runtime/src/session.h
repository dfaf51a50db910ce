// One execution context of a model: its dims, its memory, its threads.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "model.h"
#include "pool.h"

namespace svdq {

// Zeroed pages, given by the system as they are touched.
class Pages {
 public:
  Pages(uint64_t num_bytes, const std::string& subject, const char* purpose);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

class Session {
 public:
  Session(std::shared_ptr<const Model> model, unsigned threads, bool profile);

  void run(const svdq_tensor* inputs, size_t num_inputs, const svdq_tensor* outputs,
           size_t num_outputs);
  void output_shapes(const svdq_tensor* inputs, size_t num_inputs, svdq_tensor* outputs,
                     size_t num_outputs);
  const std::vector<svdq_launch_time>& profile();

 private:
  void prepare(const int64_t* dims);
  void point_at_ports(const svdq_tensor* inputs, const svdq_tensor* outputs);
  void walk(unsigned thread);

  const std::shared_ptr<const Model> model_;
  const bool profiling_;
  const unsigned num_threads_;
  std::mutex mutex_;
  Pages arena_, scratch_;
  const uint64_t scratch_stride_;

  // All sized once, so that running allocates nothing.
  std::vector<int64_t> dims_;  // of the last run
  std::vector<int64_t> next_dims_;
  bool prepared_ = false;
  std::vector<int64_t> values_;      // per expression, at dims_
  std::vector<int64_t> scalars_;     // per entry of plan.scalars
  std::vector<void*> pointers_;      // per entry of plan.args
  std::vector<uint32_t> port_args_;  // the args that point at inputs and outputs
  std::vector<uint32_t> input_order_, output_order_;
  std::vector<LaunchState> launches_;
  std::vector<int64_t> finished_ns_;
  std::vector<svdq_launch_time> times_;
  int64_t started_ns_ = 0;
  Barrier barrier_;
  Pool pool_;  // last: its threads use all of the above
};

}  // namespace svdq
