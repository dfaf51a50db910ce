// What this machine is: instruction sets, threads this process may use, memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace svdq {

// In the spelling of a variant's isa_features (those of GCC's -m flags: "avx2", "avx512vnni", …),
// sorted. A set counts only if the operating system saves its registers.
const std::vector<std::string>& cpu_features();
const std::string& cpu_features_text();
bool has_cpu_feature(const std::string& name);
bool has_sha_instructions();

// ELF e_machine of this process, and its name in messages.
uint16_t elf_machine();
const char* elf_machine_name(uint16_t machine);

unsigned usable_threads();          // affinity and container quota respected, at least 1
uint64_t total_memory_bytes();      // 0 if unknown
uint64_t available_memory_bytes();  // 0 if unknown

// Kernels run with the default floating-point mode on every thread, whatever the caller has set, so
// results do not depend on which thread ran a task.
class DefaultFloatMode {
 public:
  DefaultFloatMode();
  ~DefaultFloatMode();
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
  uint64_t before_;
};

}  // namespace svdq
