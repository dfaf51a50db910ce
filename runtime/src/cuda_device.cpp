#include "cuda_device.h"

#include <map>
#include <mutex>

#include "error.h"

namespace svdq::cuda {
namespace {

DeviceInfo examine(const Driver& api, int ordinal) {
  DeviceInfo info = {ordinal, "", {}, 0};
  DeviceId id = 0;
  char name[256] = "";
  size_t memory_bytes = 0;
  api.device_get(&id, ordinal);
  api.device_name(name, sizeof name - 1, id);
  api.device_attribute(&info.capability.major, kMajor, id);
  api.device_attribute(&info.capability.minor, kMinor, id);
  api.device_memory(&memory_bytes, id);
  info.name = name[0] != '\0' ? name : "GPU";
  info.memory_bytes = memory_bytes;
  return info;
}

}  // namespace

std::shared_ptr<const Device> Device::open(int ordinal) {
  static std::mutex mutex;
  static auto* opened = new std::map<std::pair<const Driver*, int>, std::weak_ptr<const Device>>;
  const Driver& api = driver();
  const int count = count_devices(api);
  if (ordinal < 0 || ordinal >= count) {
    fail(SVDQ_NO_DEVICE, "device", str("cuda:", ordinal),
         str("this machine has ", count, count == 1 ? " GPU" : " GPUs", " that CUDA may use"),
         str("use device 'cuda:0'", count > 1 ? str(" to 'cuda:", count - 1, "'") : std::string()));
  }
  const std::lock_guard<std::mutex> turn(mutex);
  std::weak_ptr<const Device>& known = (*opened)[{&api, ordinal}];
  std::shared_ptr<const Device> device = known.lock();
  if (device == nullptr) {
    device.reset(new Device(ordinal));
    known = device;
  }
  return device;
}

Device::Device(int index) : api(driver()), ordinal(index) {
  const DeviceInfo info = examine(api, index);
  name = info.name;
  capability = info.capability;
  memory_bytes = info.memory_bytes;
  DeviceId id = 0;
  check(api.device_get(&id, index), "cuDeviceGet");
  check(api.device_attribute(&max_shared_bytes, kMaxSharedBytesOptIn, id), "cuDeviceGetAttribute");
  check(api.primary_retain(&context_, id), "cuDevicePrimaryCtxRetain");
}

Device::~Device() {
  DeviceId id = 0;
  if (context_ != nullptr && api.device_get(&id, ordinal) == kSuccess) api.primary_release(id);
}

std::string Device::text() const { return str(name, " (cuda:", ordinal, ")"); }

void Device::refuse(Result result, const char* call) const {
  if (result == kOutOfMemory) {
    fail(SVDQ_NO_MEMORY, "device", text(), str(call, ": its memory is full"),
         "close what else uses the GPU, or use a larger one");
  }
  fail(SVDQ_DEVICE_FAILED, "device", text(), str(call, " failed: ", api.describe(result)),
       result >= kIllegalAddress && result < 720
           ? "the GPU is lost to this process: start it again, and report this if it was the "
             "model's own doing"
           : "see what nvidia-smi says");
}

std::vector<DeviceInfo> list_devices() {
  const Driver& api = driver();
  std::vector<DeviceInfo> devices;
  const int count = count_devices(api);
  for (int i = 0; i < count; ++i) devices.push_back(examine(api, i));
  return devices;
}

// ---- owners; what fails while something is given back has no one to hear it

DeviceMemory::DeviceMemory(std::shared_ptr<const Device> device, uint64_t num_bytes)
    : device_(std::move(device)) {
  if (num_bytes == 0) return;
  const Current current(*device_);
  device_->check(device_->api.allocate(&data_, num_bytes), "cuMemAlloc");
}

DeviceMemory::~DeviceMemory() {
  if (data_ == 0) return;
  Context popped;
  if (device_->api.push(device_->context()) != kSuccess) return;
  device_->api.free(data_);
  device_->api.pop(&popped);
}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  return *this;
}

PinnedMemory::PinnedMemory(const Device& device, uint64_t num_bytes) : device_(device) {
  device.check(device.api.host_allocate(&data_, num_bytes, 0), "cuMemHostAlloc");
}

PinnedMemory::~PinnedMemory() { device_.api.host_free(data_); }

OwnedStream::OwnedStream(std::shared_ptr<const Device> device) : device_(std::move(device)) {
  const Current current(*device_);
  device_->check(device_->api.stream_create(&stream_, kStreamNonBlocking), "cuStreamCreate");
}

OwnedStream::~OwnedStream() {
  Context popped;
  if (device_->api.push(device_->context()) != kSuccess) return;
  device_->api.stream_destroy(stream_);
  device_->api.pop(&popped);
}

OwnedEvent::OwnedEvent(std::shared_ptr<const Device> device, bool timed)
    : device_(std::move(device)) {
  const Current current(*device_);
  device_->check(device_->api.event_create(&event_, timed ? kEventDefault : kEventDisableTiming),
                 "cuEventCreate");
}

OwnedEvent::OwnedEvent(OwnedEvent&& other) noexcept : device_(other.device_), event_(other.event_) {
  other.event_ = nullptr;
}

OwnedEvent::~OwnedEvent() {
  Context popped;
  if (event_ == nullptr || device_->api.push(device_->context()) != kSuccess) return;
  device_->api.event_destroy(event_);
  device_->api.pop(&popped);
}

}  // namespace svdq::cuda
