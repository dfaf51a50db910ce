#include "cuda_program.h"

#include "error.h"

namespace svdq::cuda {

Program::Program(std::shared_ptr<const Device> gpu, const Container& container,
                 const Variant& variant, Plan proved)
    : device(std::move(gpu)),
      plan(std::move(proved)),
      kernels(device, container, variant, plan),
      weights(device, container, plan) {}

size_t choose_variant(const Container& container, const Device& device) {
  const size_t best = best_variant(container.variants, device.capability);
  if (best != SIZE_MAX) return best;
  std::string offers;
  for (const Variant& variant : container.variants) {
    Arch arch;
    offers += str(offers.empty() ? "" : ", ", variant.target,
                  parse_target(variant.target, &arch) ? str(" (", runs_on_text(arch), ")") : "");
  }
  fail(SVDQ_WRONG_MACHINE, "session", container.path,
       str("has no code for ", device.text(), ", whose compute capability is ",
           capability_text(device.capability), "; it holds ", offers),
       str("compile it for this GPU: 'svdqc compile … --target ", target_for(device.capability),
           "'"));
}

std::string why_unfit(const Variant& variant, const std::vector<DeviceInfo>& devices) {
  Arch arch;
  if (!parse_target(variant.target, &arch)) return "is for no GPU that is known";
  std::string here;
  for (const DeviceInfo& device : devices) {
    if (runs_on(arch, device.capability)) return "";
    here += str(here.empty() ? "" : ", ", device.name, " has ", capability_text(device.capability));
  }
  return str("needs a GPU of ", runs_on_text(arch), here.empty() ? "" : "; ", here);
}

void check_code(const Container& container, const Variant& variant) {
  Arch arch;
  if (!parse_target(variant.target, &arch)) {
    fail(SVDQ_MALFORMED, "open", container.path,
         str("the target '", variant.target, "' names no GPU architecture"),
         "compile the model again");
  }
  const Section& section = container.sections[variant.code];
  read_archive(container.section_data(section), section.size, arch, container.path);
}

}  // namespace svdq::cuda
