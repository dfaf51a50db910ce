// Devices, contexts, settings and the report.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "fake.h"

namespace fake {

Driver& Driver::get() {
  static Driver* driver = [] {
    auto* made = new Driver;  // never destroyed: libraries may call in at exit
    const char* text = std::getenv("SVDQ_FAKE_CUDA");
    made->configure(text != nullptr ? text : "");
    return made;
  }();
  return *driver;
}

std::vector<int>& context_stack() {
  thread_local std::vector<int> stack;
  return stack;
}

int Driver::current() const { return context_stack().empty() ? -1 : context_stack().back(); }

Result Driver::violation(const std::string& what, Result code) {
  violations.push_back(what);
  std::fprintf(stderr, "fake CUDA driver: %s\n", what.c_str());
  return code;
}

void Driver::configure(const char* text) {
  settings = Settings{};
  const char* kernels = std::getenv("SVDQ_FAKE_CUDA_KERNELS");
  if (kernels != nullptr) settings.kernels = kernels;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    const std::string key = word.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
    if (key == "devices") {
      settings.devices.clear();
      std::istringstream items(value);
      for (std::string item; std::getline(items, item, ',');) {
        const size_t dot = item.find('.');
        settings.devices.push_back(10 * std::atoi(item.c_str()) +
                                   std::atoi(item.c_str() + dot + 1));
      }
    } else if (key == "version") {
      settings.version = std::atoi(value.c_str());
    } else if (key == "memory") {
      settings.memory = std::strtoull(value.c_str(), nullptr, 10);
    } else if (key == "kernels") {
      settings.kernels = value;
    } else if (key == "mixed") {
      settings.mixed = value == "1";
    } else if (key == "fail") {
      const size_t first = value.find(':'), second = value.rfind(':');
      settings.failures[value.substr(0, first)] = {std::atoi(value.c_str() + first + 1),
                                                   std::atoi(value.c_str() + second + 1)};
    } else {
      std::fprintf(stderr, "fake CUDA driver: unknown setting '%s'\n", word.c_str());
      std::abort();
    }
  }
  calls.clear();
  violations.clear();
  devices.clear();
  for (size_t i = 0; i < settings.devices.size(); ++i) {
    devices.push_back(std::make_unique<Device>());
    devices.back()->capability = settings.devices[i];
    devices.back()->legacy.kind = Kind::stream;
    devices.back()->legacy.device = static_cast<int>(i);
  }
}

Entry::Entry(const char* name, bool needs_context) : lock_(Driver::get().mutex) {
  Driver& driver = Driver::get();
  const int count = ++driver.calls[name];
  const auto failure = driver.settings.failures.find(name);
  if (failure != driver.settings.failures.end() &&
      (failure->second.nth == 0 || failure->second.nth == count)) {
    result = failure->second.code;
  } else if (needs_context && driver.current() < 0) {
    result = driver.violation(std::string(name) + " without a current context", kInvalidContext);
  } else if (needs_context && driver.devices[driver.current()]->sticky != kSuccess) {
    result = driver.devices[driver.current()]->sticky;
  }
}

namespace {

bool known(DeviceId device) {
  return device >= 0 && static_cast<size_t>(device) < Driver::get().devices.size();
}

int shared_opt_in(int capability) {
  switch (capability) {
    case 75:
      return 64 * 1024;
    case 80:
    case 87:
      return 163 * 1024;
    case 90:
    case 100:
    case 103:
      return 227 * 1024;
    default:
      return 99 * 1024;
  }
}

}  // namespace
}  // namespace fake

using namespace fake;

FAKE_API Result cuInit(unsigned flags) {
  FAKE_ENTER(cuInit, false);
  if (flags != 0) return driver.violation("cuInit with flags");
  driver.initialized = true;
  return driver.devices.empty() ? kNoDevice : kSuccess;
}

FAKE_API Result cuDriverGetVersion(int* version) {
  FAKE_ENTER(cuDriverGetVersion, false);
  *version = driver.settings.version;
  return kSuccess;
}

FAKE_API Result cuGetErrorName(Result error, const char** name) {
  static thread_local std::string text;
  text = "CUDA_ERROR_" + std::to_string(error);
  *name = text.c_str();
  return kSuccess;
}

FAKE_API Result cuGetErrorString(Result, const char** text) {
  *text = "as the test wanted";
  return kSuccess;
}

FAKE_API Result cuDeviceGetCount(int* count) {
  FAKE_ENTER(cuDeviceGetCount, false);
  if (!driver.initialized) return kNotInitialized;
  *count = static_cast<int>(driver.devices.size());
  return kSuccess;
}

FAKE_API Result cuDeviceGet(DeviceId* device, int ordinal) {
  FAKE_ENTER(cuDeviceGet, false);
  if (!known(ordinal)) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

FAKE_API Result cuDeviceGetName(char* name, int size, DeviceId device) {
  FAKE_ENTER(cuDeviceGetName, false);
  if (!known(device)) return driver.violation("cuDeviceGetName of no device");
  std::snprintf(name, static_cast<size_t>(size), "Fake GPU %d", device);
  return kSuccess;
}

FAKE_API Result cuDeviceGetAttribute(int* value, DeviceAttribute which, DeviceId device) {
  FAKE_ENTER(cuDeviceGetAttribute, false);
  if (!known(device)) return driver.violation("cuDeviceGetAttribute of no device");
  const int capability = driver.devices[device]->capability;
  switch (which) {
    case kMaxThreadsPerBlock:
      *value = 1024;
      return kSuccess;
    case kNumMultiprocessors:
      *value = 132;
      return kSuccess;
    case kMajor:
      *value = capability / 10;
      return kSuccess;
    case kMinor:
      *value = capability % 10;
      return kSuccess;
    case kMaxSharedBytesOptIn:
      *value = shared_opt_in(capability);
      return kSuccess;
  }
  return driver.violation("an attribute that is not of the list");
}

FAKE_API Result cuDeviceTotalMem_v2(size_t* num_bytes, DeviceId device) {
  FAKE_ENTER(cuDeviceTotalMem_v2, false);
  if (!known(device)) return driver.violation("cuDeviceTotalMem of no device");
  *num_bytes = driver.settings.memory;
  return kSuccess;
}

FAKE_API Result cuDevicePrimaryCtxRetain(Context* context, DeviceId device) {
  FAKE_ENTER(cuDevicePrimaryCtxRetain, false);
  if (!known(device)) return driver.violation("cuDevicePrimaryCtxRetain of no device");
  ++driver.devices[device]->retained;
  *context = reinterpret_cast<Context>(driver.devices[device].get());
  return kSuccess;
}

FAKE_API Result cuDevicePrimaryCtxRelease_v2(DeviceId device) {
  FAKE_ENTER(cuDevicePrimaryCtxRelease_v2, false);
  if (!known(device) || driver.devices[device]->retained == 0) {
    return driver.violation("a primary context released more often than retained");
  }
  if (--driver.devices[device]->retained > 0) return kSuccess;
  for (const auto& [handle, object] : driver.objects) {
    if (object->device == device && object->kind != Kind::function) {
      driver.violation("a primary context released with objects alive in it");
    }
  }
  for (const auto& [base, allocation] : driver.allocations) {
    if (allocation.device == device) {
      driver.violation("a primary context released with memory allocated in it");
    }
  }
  return kSuccess;
}

FAKE_API Result cuCtxPushCurrent_v2(Context context) {
  FAKE_ENTER(cuCtxPushCurrent_v2, false);
  for (size_t i = 0; i < driver.devices.size(); ++i) {
    if (reinterpret_cast<Context>(driver.devices[i].get()) == context &&
        driver.devices[i]->retained > 0) {
      context_stack().push_back(static_cast<int>(i));
      return kSuccess;
    }
  }
  return driver.violation("cuCtxPushCurrent of a context that is not alive", kInvalidContext);
}

FAKE_API Result cuCtxPopCurrent_v2(Context* context) {
  FAKE_ENTER(cuCtxPopCurrent_v2, false);
  if (context_stack().empty()) return driver.violation("cuCtxPopCurrent of an empty stack");
  if (context != nullptr) {
    *context = reinterpret_cast<Context>(driver.devices[context_stack().back()].get());
  }
  context_stack().pop_back();
  return kSuccess;
}

// ---- for tests

// Forgets counts and violations and takes new settings. Returns the number of things that were
// still alive.
FAKE_API int fake_cuda_reset(const char* settings) {
  Driver& driver = Driver::get();
  const std::lock_guard<std::recursive_mutex> lock(driver.mutex);
  int alive = static_cast<int>(driver.allocations.size());
  for (const auto& [handle, object] : driver.objects) alive += object->kind != Kind::function;
  for (const auto& device : driver.devices) alive += device->retained;
  if (alive == 0) {
    driver.objects.clear();
    driver.configure(settings);
  }
  return alive;
}

// JSON: violations, what is alive, calls by name. Valid until the next call.
FAKE_API const char* fake_cuda_report() {
  static std::string text;
  Driver& driver = Driver::get();
  const std::lock_guard<std::recursive_mutex> lock(driver.mutex);
  driver.check_tails();
  static constexpr const char* kNames[] = {"streams",   "events", "modules",
                                           "functions", "graphs", "graph_execs"};
  std::map<std::string, long> live;
  for (const char* name : kNames) live[name] = 0;
  for (const auto& [handle, object] : driver.objects)
    ++live[kNames[static_cast<int>(object->kind)]];
  live["contexts"] = live["device_bytes"] = live["pinned_bytes"] = 0;
  for (const auto& device : driver.devices) live["contexts"] += device->retained;
  for (const auto& [base, allocation] : driver.allocations) {
    live[allocation.device < 0 ? "pinned_bytes" : "device_bytes"] +=
        static_cast<long>(allocation.size);
  }
  std::ostringstream out;
  out << "{\"violations\":[";
  for (size_t i = 0; i < driver.violations.size(); ++i) {
    out << (i > 0 ? "," : "") << '"' << driver.violations[i] << '"';
  }
  out << "],\"context_depth\":" << context_stack().size() << ",\"live\":{";
  const char* comma = "";
  for (const auto& [name, count] : live) {
    out << comma << '"' << name << "\":" << count;
    comma = ",";
  }
  out << "},\"peak_bytes\":[";
  comma = "";
  for (const auto& device : driver.devices) {
    out << comma << device->peak;
    comma = ",";
  }
  out << "],\"calls\":{";
  comma = "";
  for (const auto& [name, count] : driver.calls) {
    out << comma << '"' << name << "\":" << count;
    comma = ",";
  }
  out << "}}";
  text = out.str();
  return text.c_str();
}
