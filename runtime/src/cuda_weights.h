// A model's weights on a GPU: those of one plan, shared by all sessions there.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "container.h"
#include "cuda_device.h"
#include "error.h"
#include "plan.h"

namespace svdq::cuda {

class Weights {
 public:
  // Reserves the memory, then copies in the background, straight from the mapped file; `container`
  // must outlive this. Throws SVDQ_NO_MEMORY.
  Weights(std::shared_ptr<const Device> device, const Container& container, const Plan& plan);
  ~Weights();
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // Where a tensor of the plan's weight buffers begins; 256-aligned.
  DevicePointer tensor(uint32_t index) const { return addresses_[index]; }
  uint64_t num_bytes() const { return num_bytes_; }

  // Returns when everything is there. Throws what the copying met.
  void wait();

 private:
  struct Piece {  // consecutive bytes of the file that go to consecutive bytes of the device
    const uint8_t* from;
    uint64_t size;
    DevicePointer to;
  };
  void reserve(const Container& container, const Plan& plan);
  void start();
  void copy_pieces();
  void copy_some();

  const std::shared_ptr<const Device> device_;
  uint64_t num_bytes_ = 0;
  std::vector<DeviceMemory> segments_;
  std::vector<DevicePointer> addresses_;  // by tensor; 0 where the plan does not use it
  std::vector<Piece> pieces_;
  std::atomic<size_t> next_{0};  // the first piece that no worker has taken
  std::mutex mutex_;
  std::unique_ptr<Error> error_;  // of the copying
  std::vector<std::thread> workers_;
  std::mutex waiting_;
  std::atomic<bool> complete_{false};
};

// Throws SVDQ_NO_MEMORY, with what is needed and what is free, where that much cannot fit.
void check_room(const Device& device, const std::string& path, uint64_t weight_bytes,
                uint64_t arena_bytes);

}  // namespace svdq::cuda
