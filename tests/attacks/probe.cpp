// Opens hostile files under sanitizers.
//
//   probe open FILE...              one line per file: status, tab, message
//   probe fuzz FILE SEED SECONDS    mutates the file, its manifest and its plan (checksums made to match) until the
//                                   time is over; prints how many of each were tried and how many were accepted
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "container.h"
#include "error.h"
#include "plan_verify.h"
#include "svdq.h"

namespace {

using Bytes = std::vector<uint8_t>;

int status_of(const char* path) {
  svdq_model* model = nullptr;
  svdq_status status = svdq_open(path, SVDQ_INSPECT_ONLY | SVDQ_CHECK_ALL_WEIGHTS, &model);
  if (status == SVDQ_OK) status = svdq_verify(model);
  if (status == SVDQ_OK && std::strlen(svdq_describe(model)) < 2) status = SVDQ_INTERNAL;
  svdq_close(model);
  return status;
}

Bytes read_file(const char* path) {
  Bytes bytes;
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return bytes;
  uint8_t block[65536];
  for (size_t count; (count = std::fread(block, 1, sizeof block, file)) > 0;) {
    bytes.insert(bytes.end(), block, block + count);
  }
  std::fclose(file);
  return bytes;
}

class Fuzzer {
 public:
  Fuzzer(Bytes good, const char* path, unsigned seed) : good_(std::move(good)), random_(seed) {
    container_ = svdq::open_container(path);
    fd_ = memfd_create("fuzz", 0);
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }

  bool file() {
    Bytes bytes = good_;
    mutate(bytes, 0, bytes.size());
    if (random_() % 8 == 0) bytes.resize(random_() % bytes.size());
    return opens(bytes);
  }

  bool manifest() {
    Bytes bytes = good_;
    const size_t size = container_.manifest_text.size();
    mutate(bytes, 64, 64 + size);
    const svdq::Digest digest = svdq::sha256(bytes.data() + 64, size);
    std::memcpy(bytes.data() + 0x20, digest.data(), digest.size());
    return opens(bytes);
  }

  bool plan() {
    const svdq::Section& section = container_.sections[container_.variants[0].plan];
    Bytes bytes(good_.begin() + static_cast<long>(section.offset),
                good_.begin() + static_cast<long>(section.offset + section.size));
    mutate(bytes, random_() % 4 == 0 ? 0 : 80, bytes.size());
    if (random_() % 16 == 0) bytes.resize(random_() % bytes.size());
    try {
      svdq::Plan plan = svdq::decode_plan(bytes.data(), bytes.size(), "fuzz");
      svdq::verify_plan(plan, container_.tensors, "fuzz");
      svdq::match_manifest(plan, container_);
      std::vector<int64_t> dims, values(plan.exprs.size());
      for (const svdq::Dim& dim : plan.dims) {  // what a session does when shapes change
        const uint64_t steps = static_cast<uint64_t>((dim.hi - dim.lo) / dim.multiple) + 1;
        dims.push_back(dim.lo + dim.multiple * static_cast<int64_t>(random_() % steps));
      }
      svdq::evaluate_all(plan, dims.data(), values.data(), "fuzz");
      svdq::check_sizes(plan, container_.tensors, values.data(), "fuzz");
      return true;
    } catch (const svdq::Error&) {
      return false;
    }
  }

 private:
  void mutate(Bytes& bytes, size_t begin, size_t end) {
    static constexpr uint8_t kInteresting[] = {0, 1, 0x7f, 0x80, 0xff, '"', '{', '[', '-', '9', ','};
    for (size_t i = 1 + random_() % 4; i > 0; --i) {
      uint8_t& byte = bytes[begin + random_() % (end - begin)];
      switch (random_() % 3) {
        case 0: byte ^= static_cast<uint8_t>(1u << random_() % 8); break;
        case 1: byte = kInteresting[random_() % sizeof kInteresting]; break;
        default: byte = static_cast<uint8_t>(random_());
      }
    }
  }

  bool opens(const Bytes& bytes) {
    if (ftruncate(fd_, static_cast<off_t>(bytes.size())) != 0 ||
        pwrite(fd_, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
      std::abort();
    }
    return status_of(path_.c_str()) == SVDQ_OK;
  }

  Bytes good_;
  std::mt19937 random_;
  svdq::Container container_;
  int fd_;
  std::string path_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc >= 3 && std::strcmp(argv[1], "open") == 0) {
    for (int i = 2; i < argc; ++i) {
      const int status = status_of(argv[i]);
      std::printf("%d\t%s\n", status, status == SVDQ_OK ? "" : svdq_last_error());
    }
    return 0;
  }
  if (argc == 5 && std::strcmp(argv[1], "fuzz") == 0) {
    Fuzzer fuzzer(read_file(argv[2]), argv[2], static_cast<unsigned>(std::atoi(argv[3])));
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[4]));
    long tried[3] = {}, accepted[3] = {};
    while (std::chrono::steady_clock::now() < end) {
      ++tried[0], accepted[0] += fuzzer.file() ? 1 : 0;
      ++tried[1], accepted[1] += fuzzer.manifest() ? 1 : 0;
      for (int i = 0; i < 8; ++i) ++tried[2], accepted[2] += fuzzer.plan() ? 1 : 0;
    }
    for (int i = 0; i < 3; ++i) std::printf("%ld %ld\n", tried[i], accepted[i]);
    return 0;
  }
  std::fprintf(stderr, "usage: probe open FILE... | probe fuzz FILE SEED SECONDS\n");
  return 1;
}
