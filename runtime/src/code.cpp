#include "code.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "checked.h"
#include "cpu.h"
#include "error.h"

namespace svdq {
namespace {

constexpr off_t kMaxRegistryBytes = 16 << 20;

// A file that nobody else can open by name. `path` is what dlopen is given.
int private_file(std::string* path, std::string* unlink_path) {
#if defined(__linux__)
  const int fd = memfd_create("svdqc-code", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd >= 0) {
    *path = str("/proc/self/fd/", fd);
    return fd;
  }
#endif
  const char* folder = std::getenv("XDG_RUNTIME_DIR");
  *path = str(folder != nullptr && folder[0] == '/' ? folder : "/tmp", "/svdqc-code-XXXXXX");
  const int file = mkstemp(path->data());  // mode 0600
  *unlink_path = *path;
  return file;
}

bool write_all(int fd, const uint8_t* bytes, uint64_t num_bytes) {
  while (num_bytes > 0) {
    const ssize_t written = ::write(fd, bytes, std::min<uint64_t>(num_bytes, 1u << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes += written;
    num_bytes -= static_cast<uint64_t>(written);
  }
  return true;
}

Digest hash_file(int fd, uint64_t num_bytes) {
  void* mapped = mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return {};
  const Digest digest = sha256(mapped, num_bytes);
  munmap(mapped, num_bytes);
  return digest;
}

std::string read_registry() {
  const std::string path = trust_registry_path();
  if (path.empty()) return {};
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return {};
  std::string text;
  struct stat info;
  // A registry that others may write vouches for nothing.
  const bool own = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
                   (info.st_uid == geteuid() || info.st_uid == 0) &&
                   (info.st_mode & (S_IWGRP | S_IWOTH)) == 0 && info.st_size <= kMaxRegistryBytes;
  char block[65536];
  for (ssize_t count; own && (count = ::read(fd, block, sizeof block)) > 0;) {
    text.append(block, static_cast<size_t>(count));
    if (text.size() > static_cast<size_t>(kMaxRegistryBytes)) break;
  }
  ::close(fd);
  return text;
}

}  // namespace

Digest trust_digest(const Container& container, const Variant& variant) {
  uint8_t both[64];
  std::memcpy(both, container.sections[variant.code].digest.data(), 32);
  std::memcpy(both + 32, container.sections[variant.plan].digest.data(), 32);
  return sha256(both, sizeof both);
}

std::string trust_registry_path() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && state[0] == '/') return str(state, "/svdqc/trusted");
  const char* home = std::getenv("HOME");
  if (home != nullptr && home[0] == '/') return str(home, "/.local/state/svdqc/trusted");
  return {};
}

bool is_trusted(const Digest& digest) {
  const std::string registry = read_registry();
  const std::string wanted = to_hex(digest);
  for (size_t at = 0; at < registry.size();) {
    const size_t end = std::min(registry.find('\n', at), registry.size());
    if (end - at == wanted.size() && registry.compare(at, wanted.size(), wanted) == 0) return true;
    at = end + 1;
  }
  return false;
}

std::string why_unfit(const Container& container, const Variant& variant) {
  if (variant.target.compare(0, 3, "cpu") != 0) return "is not for CPUs";
  const Section& code = container.sections[variant.code];
  const uint8_t* bytes = container.section_data(code);
  if (code.size >= 20 && std::memcmp(bytes,
                                     "\x7f"
                                     "ELF",
                                     4) == 0) {
    const uint16_t machine = read_le<uint16_t>(bytes + 18);
    if (machine != elf_machine()) return str("is for ", elf_machine_name(machine), " processors");
  }
  std::string missing;
  for (const std::string& feature : variant.isa_features) {
    if (!has_cpu_feature(feature)) missing += " " + feature;
  }
  return missing.empty() ? "" : "needs" + missing;
}

LoadedCode::LoadedCode(const Container& container, const Variant& variant,
                       const std::vector<KernelEntry>& kernels) {
  const Section& section = container.sections[variant.code];
  const auto refuse = [&](const std::string& what, const char* remedy) {
    fail(SVDQ_BAD_CODE, "open", container.path, str("code for ", variant.target, ": ", what),
         remedy);
  };
  std::string path, unlink_path;
  fd_ = private_file(&path, &unlink_path);
  struct Guard {  // until the constructor is done
    LoadedCode* code;
    std::string* unlink_path;
    ~Guard() {
      if (!unlink_path->empty()) ::unlink(unlink_path->c_str());
      if (code == nullptr) return;
      if (code->library_ != nullptr) dlclose(code->library_);
      if (code->fd_ >= 0) ::close(code->fd_);
    }
  } guard{this, &unlink_path};
  if (fd_ < 0 || !write_all(fd_, container.section_data(section), section.size)) {
    refuse(str("cannot copy it: ", std::strerror(errno)), "free some memory, or space in /tmp");
  }
#if defined(__linux__)
  if (unlink_path.empty())
    fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
#endif
  if (hash_file(fd_, section.size) != section.digest) {
    fail(SVDQ_ALTERED, "open", container.path, "the code does not match its checksum",
         "copy or download the file again");
  }
  // fd_ stays open: the loader knows libraries by path, and a number used again would give it the
  // old library.
  library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) {
    const char* reason = dlerror();
    refuse(reason != nullptr ? reason : "cannot be loaded",
           "compile the model again for this machine");
  }
  const void* abi = dlsym(library_, "svdq_code_abi");
  uint32_t version = 0;
  if (abi != nullptr) std::memcpy(&version, abi, sizeof version);
  if (version != SVDQ_KERNEL_ABI) {
    refuse(str("has kernel interface ", version, ", this runtime has ", SVDQ_KERNEL_ABI),
           version > SVDQ_KERNEL_ABI ? "upgrade svdqc" : "compile the model again");
  }
  for (const KernelEntry& kernel : kernels) {
    void* symbol = dlsym(library_, kernel.name.c_str());
    if (symbol == nullptr)
      refuse(str("has no kernel '", kernel.name, "'"), "compile the model again");
    kernels_.push_back(reinterpret_cast<svdq_kernel_fn>(symbol));
  }
  guard.code = nullptr;
}

LoadedCode::~LoadedCode() {
  if (library_ != nullptr) dlclose(library_);
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace svdq
