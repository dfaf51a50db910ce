#include "device.h"

#include <algorithm>

#include "cuda_program.h"
#include "error.h"
#include "json.h"

namespace svdq {
namespace {

constexpr int kMaxOrdinalDigits = 4;

// "cuda" and "cuda:3": the GPU's index; -1: no GPU's name.
int gpu_ordinal(const std::string& name) {
  if (name == "cuda") return 0;
  if (name.compare(0, 5, "cuda:") != 0) return -1;
  const std::string digits = name.substr(5);
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (digits.empty() || digits.size() > kMaxOrdinalDigits ||
      !std::all_of(digits.begin(), digits.end(), is_digit)) {
    return -1;
  }
  return std::stoi(digits);
}

// What is between the mark of the error's place and its remedy.
std::string found_in(const Error& error) {
  const size_t begin = error.text.find("': "), end = error.text.rfind("; ");
  if (begin == std::string::npos || end == std::string::npos || begin + 3 > end) return error.text;
  return error.text.substr(begin + 3, end - begin - 3);
}

}  // namespace

std::unique_ptr<Session> make_session(std::shared_ptr<const Model> model,
                                      const svdq_session_options& options) {
  const std::string name = options.device != nullptr ? options.device : "cpu";
  const bool profiling = options.profile != 0, graphs = options.no_graphs == 0;
  if (name == "auto") {
    bool for_gpus = false;
    for (const Variant& variant : model->container.variants)
      for_gpus = for_gpus || cuda::is_for_gpu(variant);
    if (for_gpus) {
      try {
        return make_gpu_session(model, 0, profiling, graphs);
      } catch (const Error& error) {
        if (error.status != SVDQ_NO_DEVICE && error.status != SVDQ_WRONG_MACHINE) throw;
      }
    }
  } else if (name != "cpu") {
    const int ordinal = gpu_ordinal(name);
    if (ordinal < 0) {
      fail(SVDQ_BAD_ARGUMENT, "session", name, "there is no such kind of device",
           "use 'cpu', 'cuda:0' (or another number) or 'auto'");
    }
    return make_gpu_session(std::move(model), ordinal, profiling, graphs);
  }
  return make_cpu_session(std::move(model), options.threads, profiling);
}

std::vector<cuda::DeviceInfo> find_gpus(const Container& container, std::string* reason) {
  const auto& variants = container.variants;
  if (std::none_of(variants.begin(), variants.end(), cuda::is_for_gpu)) return {};
  try {
    return cuda::list_devices();
  } catch (const Error& error) {
    *reason = found_in(error);
    return {};
  }
}

std::string describe_gpus() {
  std::string gpus, reason, version;
  try {
    for (const cuda::DeviceInfo& gpu : cuda::list_devices()) {
      gpus += str(gpus.empty() ? "" : ",", "{\"compute_capability\":\"",
                  cuda::capability_text(gpu.capability), "\",\"device\":\"cuda:", gpu.ordinal,
                  "\",\"memory_bytes\":", gpu.memory_bytes, ",\"name\":", json_quote(gpu.name),
                  ",\"target\":\"", cuda::target_for(gpu.capability), "\"}");
    }
    version = cuda::version_text(cuda::driver().version);
  } catch (const Error& error) {
    reason = found_in(error);
  }
  return str("{\"driver\":\"", version, "\",\"gpus\":[", gpus, "],\"reason\":", json_quote(reason),
             "}");
}

}  // namespace svdq
