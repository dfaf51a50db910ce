#include "model.h"

#include "cpu.h"
#include "error.h"
#include "plan_verify.h"

namespace svdq {
namespace {

// Hashing so much takes less than a tenth of a second; more is left to svdq_verify and
// SVDQ_CHECK_ALL_WEIGHTS.
constexpr uint64_t kAlwaysHashedWeightBytes = 64u << 20;

bool for_cpu(const Variant& variant) { return variant.target.compare(0, 3, "cpu") == 0; }

Plan load_plan(const Container& container, const Variant& variant) {
  const Section& section = container.sections[variant.plan];
  // Decoded from a private copy whose hash was checked, so a file changed meanwhile cannot matter.
  const uint8_t* bytes = container.section_data(section);
  const std::vector<uint8_t> copy(bytes, bytes + section.size);
  if (sha256(copy.data(), copy.size()) != section.digest) {
    fail(SVDQ_ALTERED, "open", container.path,
         str("the plan section at offset ", section.offset, " does not match its checksum"),
         "copy or download the file again");
  }
  Plan plan = decode_plan(copy.data(), copy.size(), container.path);
  verify_plan(plan, container.tensors, container.path);
  match_manifest(plan, container);
  if (!plan.kernels.empty() && plan.is_for_gpu() == for_cpu(variant)) {
    fail(SVDQ_BAD_PLAN, "plan", container.path,
         str("the kernels of ", variant.target, " are ",
             for_cpu(variant) ? "for a GPU" : "for CPUs"),
         "the file was not written by svdqc; compile the model again");
  }
  return plan;
}

[[noreturn]] void refuse_machine(const Container& container) {
  std::string offers;
  for (const Variant& variant : container.variants) {
    offers +=
        str(offers.empty() ? "" : ", ", variant.target, " (", why_unfit(container, variant), ")");
  }
  fail(
      SVDQ_WRONG_MACHINE, "open", container.path,
      str("none of its variants runs on this ", elf_machine_name(elf_machine()), " CPU, which has ",
          cpu_features_text().empty() ? "no known instruction sets" : cpu_features_text(),
          "; it holds ", offers),
      "compile the model here ('svdqc compile … --target native') or for 'cpu:portable'");
}

}  // namespace

std::shared_ptr<const Model> open_model(const std::string& path, uint32_t flags) {
  auto model = std::make_shared<Model>();
  model->container = open_container(path);
  const Container& container = model->container;
  const bool all_weights =
      (flags & SVDQ_CHECK_ALL_WEIGHTS) != 0 || container.weight_bytes() <= kAlwaysHashedWeightBytes;
  for (size_t i = 0; i < container.sections.size(); ++i) {
    if (container.sections[i].kind != "weights" || all_weights) container.check_section(i);
  }
  for (size_t i = 0; i < container.variants.size() && model->variant == SIZE_MAX; ++i) {
    if (why_unfit(container, container.variants[i]).empty()) model->variant = i;
  }
  if ((flags & SVDQ_INSPECT_ONLY) != 0) {
    size_t shown = model->variant;
    for (size_t i = 0; i < container.variants.size() && shown == SIZE_MAX; ++i) {
      if (for_cpu(container.variants[i])) shown = i;
    }
    if (shown != SIZE_MAX) model->plan = load_plan(container, container.variants[shown]);
  } else {
    if (model->variant == SIZE_MAX) refuse_machine(container);
    const Variant& variant = container.variants[model->variant];
    model->plan = load_plan(container, variant);
    const Digest digest = trust_digest(container, variant);
    if ((flags & SVDQ_TRUST_CODE) == 0 && !is_trusted(digest)) {
      fail(SVDQ_UNTRUSTED, "open", path,
           "holds machine code that was not compiled by this user on this machine",
           str("if you trust its source, pass trust=True (--trust on the command line, "
               "SVDQ_TRUST_CODE in C), or add "
               "the line ",
               to_hex(digest), " to ", trust_registry_path()));
    }
    model->code = std::make_unique<LoadedCode>(container, variant, model->plan.kernels);
  }
  model->description = describe_model(*model);
  return model;
}

void verify_model(const Model& model) {
  const Container& container = model.container;
  for (size_t i = 0; i < container.sections.size(); ++i) container.check_section(i);
  for (const Variant& variant : container.variants) {
    if (for_cpu(variant)) load_plan(container, variant);
  }
}

}  // namespace svdq
