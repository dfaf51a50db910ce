// The description of a model as JSON (runtime/FORMAT.md, "svdq_describe").
#include "cpu.h"
#include "cuda_program.h"
#include "device.h"
#include "error.h"
#include "model.h"

namespace svdq {
namespace {

template <class Items, class Print>
std::string list(const Items& items, Print print) {
  std::string text = "[";
  for (size_t i = 0; i < items.size(); ++i) text += str(i == 0 ? "" : ",", print(items[i]));
  return text + "]";
}

std::string raw(const Model& model, const char* key) {
  const Json* found = model.container.manifest.find(key);
  return found != nullptr ? std::string(found->raw) : "null";
}

}  // namespace

std::string describe_model(const Model& model) {
  const Container& container = model.container;
  std::string no_gpus = "was not looked at: the file was not opened for GPUs";
  std::vector<cuda::DeviceInfo> gpus;
  if (model.looks_for_gpus) gpus = find_gpus(container, &no_gpus);
  const auto unfit = [&](const Variant& v) {
    if (!cuda::is_for_gpu(v)) return why_unfit(container, v);
    return gpus.empty() ? no_gpus : cuda::why_unfit(v, gpus);
  };
  const auto devices = [&](size_t index) {
    std::vector<std::string> names;
    if (index == model.cpu_variant) names.emplace_back("cpu");
    for (const cuda::DeviceInfo& gpu : gpus) {
      if (cuda::best_variant(container.variants, gpu.capability) == index)
        names.push_back(str("cuda:", gpu.ordinal));
    }
    return names;
  };
  const auto quoted = [](const std::string& text) { return json_quote(text); };
  // How a variant was made (compiler, tuning), for people and tools; the runtime does not read it.
  const auto provenance = [&](size_t index) {
    const Json* variants = container.manifest.find("variants");
    const Json* found = variants->items[index].find("provenance");
    return found != nullptr ? std::string(found->raw) : std::string("{}");
  };
  size_t next = 0;
  const auto variant = [&](const Variant& v) {
    const size_t index = next++;
    const bool chosen = index == model.cpu_variant;
    return str("{\"chosen\":", chosen ? "true" : "false",
               ",\"code_bytes\":", container.sections[v.code].size,
               ",\"devices\":", list(devices(index), quoted),
               ",\"isa_features\":", list(v.isa_features, quoted),
               ",\"plan_bytes\":", container.sections[v.plan].size,
               ",\"provenance\":", provenance(index), ",\"target\":", json_quote(v.target),
               ",\"trust_digest\":\"", to_hex(trust_digest(container, v)),
               "\",\"trusted\":", is_trusted(trust_digest(container, v)) ? "true" : "false",
               ",\"unfit\":", json_quote(unfit(v)), "}");
  };
  std::string text = "{";
  for (const char* key : {"dims", "inputs", "meta", "name", "outputs", "producer", "quantization",
                          "required_features", "source_digest", "versions"}) {
    text += str("\"", key, "\":", raw(model, key), ",");
  }
  text +=
      str("\"arena_bytes\":", model.plan->arena_bytes, ",\"file_bytes\":", container.file->size(),
          ",\"num_kernels\":", model.plan->kernels.size(),
          ",\"num_launches\":", model.plan->launches.size(),
          ",\"num_tensors\":", container.tensors.size(),
          ",\"scratch_bytes_per_thread\":", model.plan->scratch_bytes,
          ",\"variants\":", list(container.variants, variant),
          ",\"weight_bytes\":", container.weight_bytes(), "}");
  return text;
}

}  // namespace svdq
