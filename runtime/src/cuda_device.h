// GPUs, and what is owned on them.
#pragma once

#include <memory>
#include <string>

#include "cuda_arch.h"
#include "cuda_driver.h"

namespace svdq::cuda {

// One GPU and its primary context (which PyTorch and the CUDA runtime use too), kept for as long as
// this lives.
class Device {
 public:
  // Shared by all who have it open. Throws SVDQ_NO_DEVICE.
  static std::shared_ptr<const Device> open(int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Driver& api;
  const int ordinal;
  std::string name;  // "NVIDIA H200"
  Capability capability;
  int max_shared_bytes = 0;  // of a block
  uint64_t memory_bytes = 0;

  // Throws SVDQ_DEVICE_FAILED (SVDQ_NO_MEMORY) unless the call has succeeded.
  void check(Result result, const char* call) const {
    if (result != kSuccess) refuse(result, call);
  }
  std::string text() const;  // "NVIDIA H200 (cuda:0)"
  Context context() const { return context_; }

 private:
  explicit Device(int ordinal);
  [[noreturn]] void refuse(Result result, const char* call) const;
  Context context_ = nullptr;
};

// What a machine has, without opening it: for lists and messages.
struct DeviceInfo {
  int ordinal;
  std::string name;
  Capability capability;
  uint64_t memory_bytes;
};
std::vector<DeviceInfo> list_devices();  // throws SVDQ_NO_DEVICE

// The device's context is this thread's current one while this lives; the caller's comes back
// after.
class Current {
 public:
  explicit Current(const Device& device) : device_(device) {
    device.check(device.api.push(device.context()), "cuCtxPushCurrent");
  }
  ~Current() {
    Context popped;
    device_.api.pop(&popped);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const Device& device_;
};

// Memory of the device; 256-aligned. Freeing waits for the device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(std::shared_ptr<const Device> device, uint64_t num_bytes);  // 0: none
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  DevicePointer data() const { return data_; }

 private:
  std::shared_ptr<const Device> device_;
  DevicePointer data_ = 0;
};

// Page-locked host memory, which the device copies from while the caller goes on.
class PinnedMemory {
 public:
  PinnedMemory(const Device& device, uint64_t num_bytes);  // needs the context to be current
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }

 private:
  const Device& device_;
  void* data_ = nullptr;
};

class OwnedStream {
 public:
  explicit OwnedStream(std::shared_ptr<const Device> device);
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  Stream get() const { return stream_; }

 private:
  std::shared_ptr<const Device> device_;
  Stream stream_ = nullptr;
};

class OwnedEvent {
 public:
  OwnedEvent(std::shared_ptr<const Device> device, bool timed);
  ~OwnedEvent();
  OwnedEvent(OwnedEvent&& other) noexcept;
  OwnedEvent& operator=(OwnedEvent&&) = delete;
  Event get() const { return event_; }

 private:
  std::shared_ptr<const Device> device_;
  Event event_ = nullptr;
};

}  // namespace svdq::cuda
