#include "cuda_code.h"

#include <algorithm>
#include <cstring>

#include "checked.h"
#include "error.h"

namespace svdq::cuda {
namespace {

constexpr uint8_t kMagic[8] = {'S', 'V', 'D', 'Q', 'C', 'U', 'B', 'N'};
constexpr uint32_t kKernelInterface = 1;
constexpr uint64_t kHeadBytes = 16, kEntryBytes = 32, kCubinAlignment = 64;
constexpr uint32_t kMaxCubins = 65536;
constexpr uint32_t kSharedWithoutAsking = 48 << 10;  // that every launch may have
constexpr const char* kCompileAgain = "compile the model again";

// ELF, as far as it decides whether the driver is given the file.
constexpr uint64_t kElfHeaderBytes = 64, kElfSectionBytes = 64;
constexpr uint16_t kElfMachineCuda = 190;
constexpr uint8_t kElf64Little[6] = {0x7f, 'E', 'L', 'F', 2, 1};
constexpr uint8_t kAbiCuda13 = 0x41;  // e_ident[EI_OSABI]; 0x33 before

// Section types whose size is not of bytes in the file: null, nobits, and CUDA's global, local and
// shared memory.
bool has_no_bytes(uint32_t type) {
  return type == 0 || type == 8 || type == 0x70000007 || type == 0x70000009 || type == 0x7000000a;
}

class ArchiveReader {
 public:
  ArchiveReader(const uint8_t* bytes, uint64_t num_bytes, const Arch& arch,
                const std::string& subject)
      : bytes_(bytes), num_bytes_(num_bytes), arch_(arch), subject_(subject) {}

  std::vector<Cubin> read() const {
    if (num_bytes_ < kHeadBytes || std::memcmp(bytes_, kMagic, sizeof kMagic) != 0)
      bad("it is no archive of CUDA kernels");
    const uint32_t interface = read_le<uint32_t>(bytes_ + 8),
                   count = read_le<uint32_t>(bytes_ + 12);
    if (interface != kKernelInterface) {
      fail(SVDQ_BAD_CODE, "open", subject_,
           str("its CUDA code has kernel interface ", interface, ", this runtime has ",
               kKernelInterface),
           interface > kKernelInterface ? "upgrade svdqc" : kCompileAgain);
    }
    if (count == 0 || count > kMaxCubins || count > (num_bytes_ - kHeadBytes) / kEntryBytes)
      bad(str("an archive of ", count, " kernels"));
    uint64_t names_bytes = 0;
    for (uint32_t i = 0; i < count; ++i) names_bytes += read_le<uint32_t>(entry(i) + 4);
    const uint64_t names_begin = kHeadBytes + kEntryBytes * count;
    if (names_bytes > num_bytes_ - names_begin) bad("names outside the section");
    std::vector<Cubin> cubins;
    uint64_t name_at = names_begin, end = names_begin + names_bytes;
    for (uint32_t i = 0; i < count; ++i) {
      Cubin cubin = one(i, name_at, end);
      if (i > 0 && cubins.back().kernel >= cubin.kernel) bad("names that do not ascend");
      name_at += cubin.kernel.size();
      end = cubin.offset + cubin.size;
      cubins.push_back(std::move(cubin));
    }
    if (end != num_bytes_) bad("bytes behind the last kernel");
    return cubins;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(SVDQ_BAD_CODE, "open", subject_, str("its CUDA code: ", what), kCompileAgain);
  }

  const uint8_t* entry(uint32_t i) const { return bytes_ + kHeadBytes + kEntryBytes * i; }

  Cubin one(uint32_t i, uint64_t name_at, uint64_t end) const {
    const uint8_t* fields = entry(i);
    const uint32_t name_offset = read_le<uint32_t>(fields),
                   name_size = read_le<uint32_t>(fields + 4);
    if (name_offset != name_at || name_size == 0) bad(str("kernel ", i, ": a name out of place"));
    Cubin cubin = {std::string(reinterpret_cast<const char*>(bytes_ + name_at), name_size),
                   read_le<uint64_t>(fields + 8), read_le<uint64_t>(fields + 16)};
    const auto in_a_name = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    };
    if (!std::all_of(cubin.kernel.begin(), cubin.kernel.end(), in_a_name))
      bad(str("kernel ", i, ": not a C name"));
    if (read_le<uint64_t>(fields + 24) != 0) bad(str("'", cubin.kernel, "': a reserved field"));
    if (cubin.offset != align_up(end, kCubinAlignment) || cubin.offset > num_bytes_ ||
        cubin.size > num_bytes_ - cubin.offset) {
      bad(str("'", cubin.kernel, "' goes beyond the section, or leaves a gap"));
    }
    if (std::any_of(bytes_ + end, bytes_ + cubin.offset, [](uint8_t b) { return b != 0; }))
      bad(str("bytes other than zero before '", cubin.kernel, "'"));
    check_elf(cubin);
    return cubin;
  }

  // Only binary code of the right architecture is given to the driver: no PTX, no fat binaries,
  // nothing whose section table lies elsewhere.
  void check_elf(const Cubin& cubin) const {
    const uint8_t* elf = bytes_ + cubin.offset;
    if (cubin.size < kElfHeaderBytes || std::memcmp(elf, kElf64Little, sizeof kElf64Little) != 0 ||
        read_le<uint16_t>(elf + 18) != kElfMachineCuda) {
      bad(str("'", cubin.kernel, "' is no cubin"));
    }
    const uint32_t flags = read_le<uint32_t>(elf + 48);
    const int built_for = static_cast<int>(elf[7] == kAbiCuda13 ? flags >> 8 & 0xff : flags & 0xff);
    if (built_for != 10 * arch_.major + arch_.minor) {
      bad(str("'", cubin.kernel, "' is for sm_", built_for, ", not for sm_",
              10 * arch_.major + arch_.minor));
    }
    const uint64_t table = read_le<uint64_t>(elf + 40), segments = read_le<uint64_t>(elf + 32);
    const uint64_t num_sections = read_le<uint16_t>(elf + 60),
                   num_segments = read_le<uint16_t>(elf + 56);
    if (!inside(cubin, table, num_sections * kElfSectionBytes) ||
        !inside(cubin, segments, num_segments * read_le<uint16_t>(elf + 54))) {
      bad(str("'", cubin.kernel, "' has tables outside itself"));
    }
    for (uint64_t s = 0; s < num_sections; ++s) {
      const uint8_t* section = elf + table + s * kElfSectionBytes;
      if (has_no_bytes(read_le<uint32_t>(section + 4))) continue;
      if (!inside(cubin, read_le<uint64_t>(section + 24), read_le<uint64_t>(section + 32)))
        bad(str("'", cubin.kernel, "' has a section outside itself"));
    }
  }

  static bool inside(const Cubin& cubin, uint64_t offset, uint64_t size) {
    return offset <= cubin.size && size <= cubin.size - offset;
  }

  const uint8_t* bytes_;
  const uint64_t num_bytes_;
  const Arch& arch_;
  const std::string& subject_;
};

}  // namespace

std::vector<Cubin> read_archive(const uint8_t* bytes, uint64_t num_bytes, const Arch& arch,
                                const std::string& subject) {
  return ArchiveReader(bytes, num_bytes, arch, subject).read();
}

LoadedKernels::LoadedKernels(std::shared_ptr<const Device> device, const Container& container,
                             const Variant& variant, const Plan& plan)
    : device_(std::move(device)), subject_(container.path) {
  const Section& section = container.sections[variant.code];
  // What is hashed is what is loaded, though the file may change.
  struct alignas(kCubinAlignment) Block {
    uint8_t bytes[kCubinAlignment];
  };
  std::vector<Block> copy(align_up(section.size, kCubinAlignment) / kCubinAlignment);
  std::memcpy(copy.data(), container.section_data(section), section.size);
  const uint8_t* bytes = copy.data()->bytes;
  if (sha256(bytes, section.size) != section.digest) {
    fail(SVDQ_ALTERED, "open", subject_, "the code does not match its checksum",
         "copy or download the file again");
  }
  Arch arch;
  parse_target(variant.target, &arch);
  const std::vector<Cubin> cubins = read_archive(bytes, section.size, arch, subject_);
  std::vector<size_t> num_param_bytes(plan.kernels.size());
  for (const Launch& launch : plan.launches)  // the same for all launches of a kernel: verify_plan
    num_param_bytes[launch.kernel] = 8 * size_t{launch.num_args + launch.num_scalars};
  const Current current(*device_);
  try {
    for (size_t k = 0; k < plan.kernels.size(); ++k) {
      const KernelEntry& kernel = plan.kernels[k];
      const auto found = std::lower_bound(
          cubins.begin(), cubins.end(), kernel.name,
          [](const Cubin& cubin, const std::string& name) { return cubin.kernel < name; });
      if (found == cubins.end() || found->kernel != kernel.name) {
        fail(SVDQ_BAD_CODE, "open", subject_,
             str("code for ", variant.target, ": has no kernel '", kernel.name, "'"),
             kCompileAgain);
      }
      load(bytes + found->offset, kernel, num_param_bytes[k]);
    }
  } catch (...) {
    unload();
    throw;
  }
}

void LoadedKernels::load(const uint8_t* cubin, const KernelEntry& kernel, size_t num_param_bytes) {
  const Driver& api = device_->api;
  const auto refuse = [&](const std::string& what) {
    fail(SVDQ_BAD_CODE, "open", subject_, str("the kernel '", kernel.name, "' ", what),
         str("compile the model again ('svdqc compile … --target ", target_for(device_->capability),
             "')"));
  };
  if (cubin[7] == kAbiCuda13 && api.version < 13000) {
    fail(SVDQ_NO_DEVICE, "open", subject_,
         str("its code was made with CUDA 13; the driver of ", device_->text(), " is for CUDA ",
             version_text(api.version)),
         "update the driver to one for CUDA 13.0 or newer, or compile with an nvcc of CUDA 12");
  }
  Module module = nullptr;
  const Result loaded = api.module_load(&module, cubin);
  if (loaded != kSuccess && loaded < kIllegalAddress && loaded != kOutOfMemory)
    refuse(str("cannot be loaded on ", device_->text(), ": ", api.describe(loaded)));
  device_->check(loaded, "cuModuleLoadData");
  modules_.push_back(module);
  Function function = nullptr;
  const Result found = api.module_function(&function, module, kernel.name.c_str());
  if (found == kNotFound) refuse("is not in its cubin");
  device_->check(found, "cuModuleGetFunction");
  functions_.push_back(function);

  size_t offset = 0, size = 0;
  if (api.function_parameter != nullptr && num_param_bytes > 0 &&
      (api.function_parameter(function, 0, &offset, &size) != kSuccess || offset != 0 ||
       size != num_param_bytes)) {
    refuse(str("takes ", size, " bytes of parameters, its launches have ", num_param_bytes));
  }
  int static_shared = 0, max_threads = 0;
  device_->check(api.function_attribute(&static_shared, kFunctionStaticSharedBytes, function),
                 "cuFuncGetAttribute");
  device_->check(api.function_attribute(&max_threads, kFunctionMaxThreads, function),
                 "cuFuncGetAttribute");
  const int64_t shared = int64_t{static_shared} + kernel.shared_bytes;
  if (shared > device_->max_shared_bytes) {
    refuse(str("needs ", shared, " bytes of shared memory; ", device_->text(), " has ",
               device_->max_shared_bytes));
  }
  if (static_cast<int64_t>(kernel.threads) > max_threads)
    refuse(str("has blocks of ", kernel.threads, " threads, and registers for ", max_threads));
  if (kernel.shared_bytes > kSharedWithoutAsking) {
    device_->check(api.set_function_attribute(function, kFunctionMaxDynamicSharedBytes,
                                              static_cast<int>(kernel.shared_bytes)),
                   "cuFuncSetAttribute");
  }
}

void LoadedKernels::unload() {
  for (const Module module : modules_) device_->api.module_unload(module);
  modules_.clear();
}

LoadedKernels::~LoadedKernels() {
  Context popped;
  if (device_->api.push(device_->context()) != kSuccess) return;
  unload();
  device_->api.pop(&popped);
}

}  // namespace svdq::cuda
