#include "cuda_driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "error.h"

namespace svdq::cuda {
namespace {

constexpr const char* kInstall = "install NVIDIA's driver for this GPU, or use device 'cpu'";

std::string driver_path() {
  const char* chosen = secure_getenv("SVDQ_CUDA_DRIVER");
  return chosen != nullptr && chosen[0] != '\0' ? chosen : "libcuda.so.1";
}

[[noreturn]] void refuse_no_gpu() {
  fail(SVDQ_NO_DEVICE, "device", "cuda", "the NVIDIA driver finds no GPU",
       "see what nvidia-smi says and whether CUDA_VISIBLE_DEVICES hides it, or use device 'cpu'");
}

std::unique_ptr<Driver> load(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    fail(SVDQ_NO_DEVICE, "device", "cuda",
         str("there is no NVIDIA driver: ", reason != nullptr ? reason : path), kInstall);
  }
  auto loaded = std::make_unique<Driver>();
  loaded->path = path;
  std::string missing;
  const auto find = [&](const char* symbol, bool required) {
    void* found = dlsym(library, symbol);
    if (found == nullptr && required && missing.empty()) missing = symbol;
    return found;
  };
#define SVDQ_CUDA_FIND(member, symbol, arguments) \
  loaded->member = reinterpret_cast<Result(*) arguments>(find(#symbol, true));
  SVDQ_CUDA_CALLS(SVDQ_CUDA_FIND)
#undef SVDQ_CUDA_FIND
#define SVDQ_CUDA_FIND(member, symbol, arguments) \
  loaded->member = reinterpret_cast<Result(*) arguments>(find(#symbol, false));
  SVDQ_CUDA_OPTIONAL_CALLS(SVDQ_CUDA_FIND)
#undef SVDQ_CUDA_FIND
  if (loaded->driver_version != nullptr) loaded->driver_version(&loaded->version);
  if (!missing.empty() || loaded->version < kOldestDriver) {
    const std::string have = loaded->version > 0 ? str("the NVIDIA driver here is for CUDA ",
                                                       version_text(loaded->version))
                                                 : str(path, " is no NVIDIA driver");
    fail(SVDQ_NO_DEVICE, "device", "cuda",
         missing.empty() ? have : str(have, " and lacks ", missing),
         str("it must be for CUDA ", version_text(kOldestDriver),
             " or newer: update it, or use device 'cpu'"));
  }
  const Result started = loaded->init(0);
  if (started != kSuccess && started != kNoDevice) {
    fail(SVDQ_NO_DEVICE, "device", "cuda",
         str("the NVIDIA driver does not start: ", loaded->describe(started)),
         "see what nvidia-smi says, or use device 'cpu'");
  }
  if (started == kNoDevice) refuse_no_gpu();
  return loaded;
}

}  // namespace

std::string Driver::describe(Result error) const {
  const char *name = nullptr, *text = nullptr;
  if (error_name(error, &name) != kSuccess || name == nullptr) return str("CUDA error ", error);
  if (error_string(error, &text) != kSuccess || text == nullptr) return name;
  return str(name, " (", text, ")");
}

int count_devices(const Driver& driver) {
  int count = 0;
  if (driver.device_count(&count) != kSuccess || count <= 0) refuse_no_gpu();
  return count;
}

std::string version_text(int version) { return str(version / 1000, ".", version % 1000 / 10); }

const Driver& driver() {
  static std::mutex mutex;
  static auto* drivers = new std::map<std::string, std::unique_ptr<Driver>>;  // outlive all users
  const std::lock_guard<std::mutex> turn(mutex);
  std::unique_ptr<Driver>& found = (*drivers)[driver_path()];
  if (found == nullptr) found = load(driver_path());
  return *found;
}

}  // namespace svdq::cuda
