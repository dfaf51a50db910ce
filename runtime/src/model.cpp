#include "model.h"

#include "cpu.h"
#include "cuda_program.h"
#include "error.h"
#include "plan_verify.h"

namespace svdq {
namespace {

// Hashing so much takes less than a tenth of a second; more is left to svdq_verify and
// SVDQ_CHECK_ALL_WEIGHTS.
constexpr uint64_t kAlwaysHashedWeightBytes = 64u << 20;

bool for_cpu(const Variant& variant) { return variant.target.compare(0, 3, "cpu") == 0; }

bool has_gpu_variant(const Container& container) {
  for (const Variant& variant : container.variants) {
    if (cuda::is_for_gpu(variant)) return true;
  }
  return false;
}

}  // namespace

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

Model::Model(const std::string& path, uint32_t flags)
    : container(open_container(path)),
      inspect_only((flags & SVDQ_INSPECT_ONLY) != 0),
      looks_for_gpus((flags & (SVDQ_INSPECT_ONLY | SVDQ_GPU)) != 0),
      trusts_((flags & SVDQ_TRUST_CODE) != 0) {
  const bool all_weights =
      (flags & SVDQ_CHECK_ALL_WEIGHTS) != 0 || container.weight_bytes() <= kAlwaysHashedWeightBytes;
  for (size_t i = 0; i < container.sections.size(); ++i) {
    if (container.sections[i].kind != "weights" || all_weights) container.check_section(i);
  }
  for (size_t i = 0; i < container.variants.size() && cpu_variant == SIZE_MAX; ++i) {
    if (why_unfit(container, container.variants[i]).empty()) cpu_variant = i;
  }
  const bool only_gpus =
      (flags & SVDQ_GPU) != 0 || (cpu_variant == SIZE_MAX && has_gpu_variant(container));
  if (!inspect_only && !only_gpus) {
    const std::shared_ptr<const CpuProgram> program = cpu_program();
    plan = std::shared_ptr<const Plan>(program, &program->plan);
  } else {
    plan = std::make_shared<Plan>(
        load_plan(container, container.variants[cpu_variant == SIZE_MAX ? 0 : cpu_variant]));
  }
  description = describe_model(*this);
}

void Model::require_trust(const Variant& variant) const {
  const Digest digest = trust_digest(container, variant);
  if (trusts_ || is_trusted(digest)) return;
  fail(SVDQ_UNTRUSTED, "open", container.path,
       "holds machine code that was not compiled by this user on this machine",
       str("if you trust its source, pass trust=True (--trust on the command line, "
           "SVDQ_TRUST_CODE in C), or add "
           "the line ",
           to_hex(digest), " to ", trust_registry_path()));
}

void Model::refuse_cpu() const {
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
      str("compile the model here ('svdqc compile … --target native') or for 'cpu:portable'",
          has_gpu_variant(container) ? ", or use device 'cuda:0'" : ""));
}

std::shared_ptr<const CpuProgram> Model::cpu_program() const {
  if (cpu_variant == SIZE_MAX) refuse_cpu();
  const std::lock_guard<std::mutex> turn(mutex_);
  if (cpu_ != nullptr) return cpu_;
  const Variant& variant = container.variants[cpu_variant];
  auto program = std::make_shared<CpuProgram>();
  program->plan = load_plan(container, variant);
  require_trust(variant);
  program->code = std::make_unique<LoadedCode>(container, variant, program->plan.kernels);
  cpu_ = std::move(program);
  return cpu_;
}

std::shared_ptr<cuda::Program> Model::gpu_program(int ordinal) const {
  const std::shared_ptr<const cuda::Device> device = cuda::Device::open(ordinal);
  const size_t index = cuda::choose_variant(container, *device);
  const Variant& variant = container.variants[index];
  const std::lock_guard<std::mutex> turn(mutex_);
  std::shared_ptr<cuda::Program> program = gpus_[ordinal].lock();
  if (program != nullptr && program->device == device) return program;
  Plan proved = load_plan(container, variant);
  require_trust(variant);
  program = std::make_shared<cuda::Program>(device, container, variant, std::move(proved));
  gpus_[ordinal] = program;
  return program;
}

void verify_model(const Model& model) {
  const Container& container = model.container;
  for (size_t i = 0; i < container.sections.size(); ++i) container.check_section(i);
  for (const Variant& variant : container.variants) {
    load_plan(container, variant);
    if (cuda::is_for_gpu(variant)) cuda::check_code(container, variant);
  }
}

}  // namespace svdq
