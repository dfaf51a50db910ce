#include "cpu.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace svdq {
namespace {

#if defined(__x86_64__)

struct Leaf {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf r;
  if (__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}

uint64_t saved_registers() {  // XCR0
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return uint64_t{hi} << 32 | lo;
}

bool bit(uint32_t word, int index) { return (word >> index & 1) != 0; }

bool detect_sha() {
  return bit(cpuid(7, 0).b, 29) && bit(cpuid(1, 0).c, 19) && bit(cpuid(1, 0).c, 9);
}

std::vector<std::string> detect() {
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  const uint64_t saved = bit(one.c, 27) ? saved_registers() : 0;
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = ymm && (saved & 0xe0) == 0xe0;
  const bool tiles = (saved & 0x60000) == 0x60000;
  const struct {
    const char* name;
    bool present;
  } table[] = {
      {"sse2", bit(one.d, 26)},
      {"sse3", bit(one.c, 0)},
      {"ssse3", bit(one.c, 9)},
      {"sse4.1", bit(one.c, 19)},
      {"sse4.2", bit(one.c, 20)},
      {"popcnt", bit(one.c, 23)},
      {"avx", ymm && bit(one.c, 28)},
      {"fma", ymm && bit(one.c, 12)},
      {"f16c", ymm && bit(one.c, 29)},
      {"bmi", bit(seven.b, 3)},
      {"bmi2", bit(seven.b, 8)},
      {"avx2", ymm && bit(seven.b, 5)},
      {"avxvnni", ymm && bit(seven_one.a, 4)},
      {"avx512f", zmm && bit(seven.b, 16)},
      {"avx512dq", zmm && bit(seven.b, 17)},
      {"avx512ifma", zmm && bit(seven.b, 21)},
      {"avx512cd", zmm && bit(seven.b, 28)},
      {"avx512bw", zmm && bit(seven.b, 30)},
      {"avx512vl", zmm && bit(seven.b, 31)},
      {"avx512vbmi", zmm && bit(seven.c, 1)},
      {"avx512vbmi2", zmm && bit(seven.c, 6)},
      {"avx512vnni", zmm && bit(seven.c, 11)},
      {"avx512bf16", zmm && bit(seven_one.a, 5)},
      {"avx512fp16", zmm && bit(seven.d, 23)},
      {"amx-tile", tiles && bit(seven.d, 24)},
      {"amx-int8", tiles && bit(seven.d, 25)},
      {"amx-bf16", tiles && bit(seven.d, 22)},
  };
  std::vector<std::string> found;
  for (const auto& entry : table) {
    if (entry.present) found.emplace_back(entry.name);
  }
  return found;
}

#elif defined(__aarch64__) && defined(__linux__)

bool detect_sha() { return false; }

std::vector<std::string> detect() {
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  std::vector<std::string> found = {"neon"};
  if (caps >> 10 & 1) found.emplace_back("fp16");
  if (caps >> 20 & 1) found.emplace_back("dotprod");
  if (caps >> 22 & 1) found.emplace_back("sve");
  if (caps2 >> 13 & 1) found.emplace_back("i8mm");
  if (caps2 >> 14 & 1) found.emplace_back("bf16");
  return found;
}

#else

bool detect_sha() { return false; }
std::vector<std::string> detect() { return {}; }

#endif

uint64_t meminfo(const char* field) {
  std::FILE* file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) return 0;
  char line[256];
  uint64_t kib = 0;
  const size_t length = std::strlen(field);
  while (std::fgets(line, sizeof line, file) != nullptr) {
    if (std::strncmp(line, field, length) == 0 && line[length] == ':') {
      unsigned long long value = 0;
      if (std::sscanf(line + length + 1, "%llu", &value) == 1) kib = value;
      break;
    }
  }
  std::fclose(file);
  return kib * 1024;
}

unsigned container_quota() {  // cgroup v2; 0 if none
  std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "re");
  if (file == nullptr) return 0;
  unsigned long long quota = 0, period = 0;
  const int fields = std::fscanf(file, "%llu %llu", &quota, &period);
  std::fclose(file);
  if (fields != 2 || period == 0) return 0;
  return static_cast<unsigned>(std::min<unsigned long long>((quota + period - 1) / period, 4096));
}

}  // namespace

const std::vector<std::string>& cpu_features() {
  static const std::vector<std::string> features = [] {
    std::vector<std::string> found = detect();
    std::sort(found.begin(), found.end());
    return found;
  }();
  return features;
}

const std::string& cpu_features_text() {
  static const std::string text = [] {
    std::string joined;
    for (const std::string& name : cpu_features()) joined += (joined.empty() ? "" : " ") + name;
    return joined;
  }();
  return text;
}

bool has_cpu_feature(const std::string& name) {
  return std::binary_search(cpu_features().begin(), cpu_features().end(), name);
}

bool has_sha_instructions() {
  static const bool present = detect_sha();
  return present;
}

uint16_t elf_machine() {
#if defined(__x86_64__)
  return 62;
#elif defined(__aarch64__)
  return 183;
#elif defined(__riscv)
  return 243;
#else
  return 0;
#endif
}

const char* elf_machine_name(uint16_t machine) {
  switch (machine) {
    case 3:
      return "x86 (32-bit)";
    case 40:
      return "arm (32-bit)";
    case 62:
      return "x86-64";
    case 183:
      return "aarch64";
    case 243:
      return "riscv";
    default:
      return "another machine";
  }
}

unsigned usable_threads() {
  unsigned count = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    count = std::max(1u, static_cast<unsigned>(CPU_COUNT(&allowed)));
  }
#endif
  const unsigned quota = container_quota();
  return quota > 0 ? std::max(1u, std::min(count, quota)) : count;
}

uint64_t total_memory_bytes() { return meminfo("MemTotal"); }
uint64_t available_memory_bytes() { return meminfo("MemAvailable"); }

#if defined(__x86_64__)
DefaultFloatMode::DefaultFloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
DefaultFloatMode::~DefaultFloatMode() { _mm_setcsr(static_cast<uint32_t>(before_)); }
#elif defined(__aarch64__)
DefaultFloatMode::DefaultFloatMode() {
  __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
  __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
}
DefaultFloatMode::~DefaultFloatMode() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }
#else
DefaultFloatMode::DefaultFloatMode() : before_(0) {}
DefaultFloatMode::~DefaultFloatMode() {}
#endif

}  // namespace svdq
