// Device and pinned memory, and copies.
#include <sys/mman.h>

#include <cstring>

#include "fake.h"

namespace fake {
namespace {

constexpr size_t kPage = 4096;
constexpr uint8_t kPoison = 0xFF, kTail = 0xA7;

uint64_t address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

}  // namespace

Result Driver::add_allocation(size_t num_bytes, int device, void** pointer) {
  if (num_bytes == 0) return violation("an allocation of nothing");
  if (device >= 0) {
    Device& on = *devices[device];
    if (num_bytes > settings.memory - on.used) return kOutOfMemory;
    on.used += num_bytes;
    if (on.used > on.peak) on.peak = on.used;
  }
  const size_t room = (num_bytes + kPage - 1) / kPage * kPage;
  auto* mapped = static_cast<uint8_t*>(mmap(nullptr, room + 2 * kPage, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (mapped == MAP_FAILED) return kOutOfMemory;
  mprotect(mapped, kPage, PROT_NONE);
  mprotect(mapped + kPage + room, kPage, PROT_NONE);
  uint8_t* base = mapped + kPage;
  std::memset(base, kPoison, num_bytes);
  std::memset(base + num_bytes, kTail, room - num_bytes);
  allocations[base] = {base, num_bytes, room, device};
  *pointer = base;
  return kSuccess;
}

Result Driver::remove_allocation(void* pointer, bool host) {
  const auto found = allocations.find(static_cast<uint8_t*>(pointer));
  if (found == allocations.end() || (found->second.device < 0) != host) {
    return violation("freed what was not allocated");
  }
  check_tails();
  for (size_t i = 0; i < devices.size(); ++i) finish_all(static_cast<int>(i));  // cuMemFree waits
  const Allocation allocation = found->second;
  allocations.erase(found);
  if (!host) devices[allocation.device]->used -= allocation.size;
  munmap(allocation.base - kPage, allocation.room + 2 * kPage);
  return kSuccess;
}

const Allocation* Driver::find(const void* pointer) const {
  auto after = allocations.upper_bound(const_cast<uint8_t*>(static_cast<const uint8_t*>(pointer)));
  if (after == allocations.begin()) return nullptr;
  const Allocation& found = std::prev(after)->second;
  return address(pointer) - address(found.base) <= found.size ? &found : nullptr;
}

bool Driver::check_device_range(const char* who, DevicePointer pointer, size_t num_bytes) {
  const Allocation* found = find(reinterpret_cast<const void*>(pointer));
  if (found == nullptr || found->device < 0) {
    violation(std::string(who) + ": not device memory");
    return false;
  }
  if (found->device != current()) {
    violation(std::string(who) + ": memory of another device");
    return false;
  }
  if (num_bytes > found->size - (pointer - address(found->base))) {
    violation(std::string(who) + ": goes beyond its allocation");
    return false;
  }
  return true;
}

bool Driver::is_pinned(const void* pointer, size_t num_bytes) const {
  const Allocation* found = find(pointer);
  return found != nullptr && found->device < 0 &&
         num_bytes <= found->size - (address(pointer) - address(found->base));
}

void Driver::check_tails() {
  for (const auto& [base, allocation] : allocations) {
    for (size_t i = allocation.size; i < allocation.room; ++i) {
      if (base[i] != kTail) {
        violation("something was written behind the end of an allocation");
        std::memset(base + allocation.size, kTail, allocation.room - allocation.size);
        break;
      }
    }
  }
}

}  // namespace fake

using namespace fake;

FAKE_API Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  FAKE_ENTER(cuMemGetInfo_v2, true);
  *total_bytes = driver.settings.memory;
  *free_bytes = driver.settings.memory - driver.devices[driver.current()]->used;
  return kSuccess;
}

FAKE_API Result cuMemAlloc_v2(DevicePointer* pointer, size_t num_bytes) {
  FAKE_ENTER(cuMemAlloc_v2, true);
  void* made = nullptr;
  const Result result = driver.add_allocation(num_bytes, driver.current(), &made);
  *pointer = reinterpret_cast<DevicePointer>(made);
  return result;
}

FAKE_API Result cuMemFree_v2(DevicePointer pointer) {
  FAKE_ENTER(cuMemFree_v2, true);
  return driver.remove_allocation(reinterpret_cast<void*>(pointer), false);
}

FAKE_API Result cuMemHostAlloc(void** pointer, size_t num_bytes, unsigned flags) {
  FAKE_ENTER(cuMemHostAlloc, true);
  if (flags > 7) return driver.violation("cuMemHostAlloc with unknown flags");
  return driver.add_allocation(num_bytes, -1, pointer);
}

FAKE_API Result cuMemFreeHost(void* pointer) {
  FAKE_ENTER(cuMemFreeHost, true);
  return driver.remove_allocation(pointer, true);
}

FAKE_API Result cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, size_t num_bytes,
                                     Stream handle) {
  FAKE_ENTER(cuMemcpyHtoDAsync_v2, true);
  FakeStream* stream = driver.stream(handle);
  if (stream == nullptr || !driver.check_device_range("copy to the device", to, num_bytes)) {
    return kInvalidValue;
  }
  void* target = reinterpret_cast<void*>(to);
  if (driver.is_pinned(from, num_bytes)) {  // read when the copy is done, not now
    driver.enqueue(stream, [=] {
      std::memcpy(target, from, num_bytes);
      return kSuccess;
    });
    return kSuccess;
  }
  if (driver.find(from) != nullptr) return driver.violation("copies from device memory as host's");
  const auto* bytes = static_cast<const uint8_t*>(from);
  auto staged = std::make_shared<std::vector<uint8_t>>(bytes, bytes + num_bytes);
  driver.enqueue(stream, [=] {
    std::memcpy(target, staged->data(), num_bytes);
    return kSuccess;
  });
  return kSuccess;
}

FAKE_API Result cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, size_t num_bytes,
                                     Stream handle) {
  FAKE_ENTER(cuMemcpyDtoHAsync_v2, true);
  FakeStream* stream = driver.stream(handle);
  if (stream == nullptr || !driver.check_device_range("copy to the host", from, num_bytes)) {
    return kInvalidValue;
  }
  const void* source = reinterpret_cast<const void*>(from);
  const bool pinned = driver.is_pinned(to, num_bytes);
  if (!pinned && driver.find(to) != nullptr) {
    return driver.violation("copies to device memory as host's");
  }
  driver.enqueue(stream, [=] {
    std::memcpy(to, source, num_bytes);
    return kSuccess;
  });
  return pinned ? kSuccess : driver.finish(stream, nullptr);  // pageable: the call waits
}

FAKE_API Result cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t num_bytes,
                                     Stream handle) {
  FAKE_ENTER(cuMemcpyDtoDAsync_v2, true);
  FakeStream* stream = driver.stream(handle);
  if (stream == nullptr || !driver.check_device_range("copy within the device", to, num_bytes) ||
      !driver.check_device_range("copy within the device", from, num_bytes)) {
    return kInvalidValue;
  }
  driver.enqueue(stream, [=] {
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), num_bytes);
    return kSuccess;
  });
  return kSuccess;
}

FAKE_API Result cuPointerGetAttribute(void* value, PointerAttribute which, DevicePointer pointer) {
  FAKE_ENTER(cuPointerGetAttribute, false);
  const Allocation* found = driver.find(reinterpret_cast<const void*>(pointer));
  if (found == nullptr) return kInvalidValue;
  if (which == kPointerMemoryType) {
    *static_cast<unsigned*>(value) = found->device < 0 ? kMemoryHost : kMemoryDevice;
  } else if (which == kPointerDeviceOrdinal) {
    *static_cast<int*>(value) = found->device;
  } else {
    return driver.violation("a pointer attribute that is not of the list");
  }
  return kSuccess;
}
