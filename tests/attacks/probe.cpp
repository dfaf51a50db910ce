// Opens hostile files under sanitizers.
//
//   probe open FILE...              one line per file: status, tab, message
//   probe calls FILE                calls that break the interface's rules, and good ones between
//   them probe fuzz FILE SEED SECONDS    mutates the file, its manifest, its plan and a GPU's
//                                   code (checksums made to match) until the time is over; prints
//                                   how many of each were tried and how many were accepted
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "container.h"
#include "cuda_code.h"
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

  // The archive of a GPU variant; nothing to do for a CPU's code.
  bool code() {
    svdq::cuda::Arch arch;
    const svdq::Variant& variant = container_.variants[0];
    if (!svdq::cuda::parse_target(variant.target, &arch)) return false;
    const svdq::Section& section = container_.sections[variant.code];
    Bytes bytes(good_.begin() + static_cast<long>(section.offset),
                good_.begin() + static_cast<long>(section.offset + section.size));
    mutate(bytes, random_() % 4 == 0 ? 0 : 16, bytes.size());
    if (random_() % 16 == 0) bytes.resize(random_() % bytes.size());
    bytes.shrink_to_fit();  // so that a read behind the end is found
    try {
      svdq::cuda::read_archive(bytes.data(), bytes.size(), arch, "fuzz");
      return true;
    } catch (const svdq::Error&) {
      return false;
    }
  }

 private:
  void mutate(Bytes& bytes, size_t begin, size_t end) {
    static constexpr uint8_t kInteresting[] = {0,   1,   0x7f, 0x80, 0xff, '"',
                                               '{', '[', '-',  '9',  ','};
    for (size_t i = 1 + random_() % 4; i > 0; --i) {
      uint8_t& byte = bytes[begin + random_() % (end - begin)];
      switch (random_() % 3) {
        case 0:
          byte ^= static_cast<uint8_t>(1u << random_() % 8);
          break;
        case 1:
          byte = kInteresting[random_() % sizeof kInteresting];
          break;
        default:
          byte = static_cast<uint8_t>(random_());
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

#define REQUIRE(condition)                                       \
  do {                                                           \
    if (!(condition)) {                                          \
      std::printf("line %d: %s\n", __LINE__, svdq_last_error()); \
      return 1;                                                  \
    }                                                            \
  } while (0)

// `path` is the tiny artifact of tests/runtime/tiny.py.
int bad_calls(const char* path) {
  svdq_model* model = nullptr;
  svdq_session* session = nullptr;
  svdq_port port;
  REQUIRE(svdq_open(nullptr, 0, &model) == SVDQ_BAD_ARGUMENT);
  REQUIRE(svdq_open(path, 0, nullptr) == SVDQ_BAD_ARGUMENT);
  REQUIRE(svdq_open(path, 1u << 31, &model) == SVDQ_BAD_ARGUMENT && model == nullptr);
  REQUIRE(svdq_open(path, SVDQ_INSPECT_ONLY, &model) == SVDQ_OK);
  REQUIRE(svdq_session_create(model, nullptr, &session) == SVDQ_BAD_ARGUMENT && session == nullptr);
  svdq_close(model);
  REQUIRE(svdq_open(path, SVDQ_TRUST_CODE, &model) == SVDQ_OK);
  REQUIRE(svdq_get_port(model, SVDQ_INPUT, 2, &port) == SVDQ_BAD_ARGUMENT);
  REQUIRE(svdq_get_port(model, SVDQ_INPUT, SIZE_MAX, &port) == SVDQ_BAD_ARGUMENT);
  REQUIRE(svdq_get_port(nullptr, SVDQ_INPUT, 0, &port) == SVDQ_BAD_ARGUMENT);
  svdq_session_options options = {1, 0, 0, 0, nullptr};
  REQUIRE(svdq_session_create(model, &options, &session) == SVDQ_BAD_ARGUMENT);
  options = {sizeof options, 3, 1, 0, "tpu"};
  REQUIRE(svdq_session_create(model, &options, &session) == SVDQ_BAD_ARGUMENT);
  for (const char* device : {"", "cpu:0", "cuda:", "cuda:-1", "cuda:99999", "cuda:1x", "CUDA:0"}) {
    options.device = device;
    REQUIRE(svdq_session_create(model, &options, &session) == SVDQ_BAD_ARGUMENT);
  }
  options.device = "cuda:0";
  REQUIRE(svdq_session_create(model, &options, &session) == SVDQ_NO_DEVICE);
  struct {
    svdq_session_options known;
    uint64_t future;
  } longer = {{sizeof longer, 3, 1, 0, "auto"}, 1};
  REQUIRE(svdq_session_create(model, &longer.known, &session) == SVDQ_BAD_ARGUMENT);
  longer.future = 0;  // an option of a newer header, left at its default
  REQUIRE(svdq_session_create(model, &longer.known, &session) == SVDQ_OK);
  svdq_session_destroy(session);
  // A program built with the first header: the three fields are all there is.
  options = {12, 3, 1, 77, reinterpret_cast<const char*>(1)};
  REQUIRE(svdq_session_create(model, &options, &session) == SVDQ_OK);
  svdq_close(model);  // the session keeps what it needs

  std::vector<float> x(8 * 64 + 1), y(8 * 64), total(8);
  std::vector<int64_t> gate(8);
  const svdq_tensor good_in[2] = {{"x", x.data(), SVDQ_F32, 2, {2, 8}},
                                  {"gate.0", gate.data(), SVDQ_I64, 1, {2}}};
  const svdq_tensor good_out[2] = {{nullptr, y.data(), SVDQ_F32, 2, {2, 8}},
                                   {nullptr, total.data(), SVDQ_F32, 1, {2}}};
  const auto run_with = [&](auto change) {
    svdq_tensor in[2] = {good_in[0], good_in[1]}, out[2] = {good_out[0], good_out[1]};
    change(in, out);
    return svdq_run(session, in, 2, out, 2);
  };
  const svdq_launch_time* times;
  size_t num_times;
  for (int repeat = 0; repeat < 3; ++repeat) {
    REQUIRE(run_with([](auto*, auto*) {}) == SVDQ_OK);
    REQUIRE(svdq_profile(session, &times, &num_times) == SVDQ_OK && num_times == 2);
    REQUIRE(svdq_run(nullptr, good_in, 2, good_out, 2) == SVDQ_BAD_ARGUMENT);
    REQUIRE(svdq_run(session, nullptr, 2, good_out, 2) == SVDQ_BAD_ARGUMENT);
    REQUIRE(svdq_run(session, good_in, 2, nullptr, 2) == SVDQ_BAD_ARGUMENT);
    REQUIRE(svdq_run(session, good_in, 1, good_out, 2) == SVDQ_BAD_INPUT);
    REQUIRE(svdq_run(session, good_in, 2, good_out, 1) == SVDQ_BAD_INPUT);
    for (const int32_t ndim : {-1, 0, 1, 3, 9, INT32_MAX, INT32_MIN}) {
      REQUIRE(run_with([=](auto* in, auto*) { in[0].ndim = ndim; }) == SVDQ_BAD_INPUT);
      REQUIRE(run_with([=](auto*, auto* out) { out[0].ndim = ndim; }) == SVDQ_BAD_INPUT);
    }
    for (const int32_t dtype : {-1, 10, INT32_MAX}) {
      REQUIRE(run_with([=](auto* in, auto*) { in[0].dtype = dtype; }) == SVDQ_BAD_INPUT);
    }
    for (const int64_t size : {int64_t{-1}, int64_t{0}, int64_t{9}, INT64_MAX, INT64_MIN}) {
      REQUIRE(run_with([=](auto* in, auto*) { in[0].shape[0] = size; }) == SVDQ_BAD_DIM);
      REQUIRE(run_with([=](auto* in, auto*) { in[1].shape[0] = size; }) == SVDQ_BAD_DIM);
      REQUIRE(run_with([=](auto*, auto* out) { out[1].shape[0] = size; }) == SVDQ_BAD_DIM);
    }
    REQUIRE(run_with([](auto* in, auto*) { in[0].dtype |= SVDQ_ON_DEVICE; }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([](auto*, auto* out) { out[0].dtype |= SVDQ_ON_DEVICE; }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([](auto* in, auto*) { in[0].data = nullptr; }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([](auto*, auto* out) { out[1].data = nullptr; }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([&](auto* in, auto*) {
              in[0].data = reinterpret_cast<char*>(x.data()) + 1;
            }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([&](auto*, auto* out) { out[0].data = x.data() + 8; }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([&](auto*, auto* out) { out[1].data = y.data(); }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([](auto* in, auto*) { in[0].name = ""; }) == SVDQ_BAD_INPUT);
    REQUIRE(run_with([](auto* in, auto*) { in[0].name = "gate.0"; }) == SVDQ_BAD_INPUT);
    svdq_tensor shapes[3] = {};
    REQUIRE(svdq_output_shapes(session, good_in, 2, shapes, 3) == SVDQ_BAD_ARGUMENT);
    REQUIRE(svdq_output_shapes(session, good_in, 2, shapes, 2) == SVDQ_OK &&
            shapes[0].shape[1] == 8);
  }
  svdq_session_destroy(session);
  svdq_session_destroy(nullptr);
  svdq_close(nullptr);
  return 0;
}

// `path` is the tiny artifact for GPUs (tests/runtime/cuda/tiny_gpu.py), and the driver one that
// runs it: host tensors of several sizes, two sessions, mistakes between good runs.
int gpu_calls(const char* path) {
  svdq_model* model = nullptr;
  REQUIRE(svdq_open(path, SVDQ_TRUST_CODE | SVDQ_GPU, &model) == SVDQ_OK);
  REQUIRE(std::strstr(svdq_gpus(), "Fake GPU 0") != nullptr);
  svdq_session* sessions[2] = {};
  for (uint32_t profile : {0u, 1u}) {
    const svdq_session_options options = {sizeof options, 0, profile, 0, "cuda:0"};
    REQUIRE(svdq_session_create(model, &options, &sessions[profile]) == SVDQ_OK);
  }
  svdq_session_options options = {sizeof options, 0, 0, 0, "cuda:7"};
  svdq_session* none = nullptr;
  REQUIRE(svdq_session_create(model, &options, &none) == SVDQ_NO_DEVICE && none == nullptr);
  REQUIRE(svdq_session_create(model, nullptr, &none) == SVDQ_WRONG_MACHINE);
  svdq_close(model);
  for (int64_t turn = 0; turn < 12; ++turn) {
    const int64_t batch = 1 + turn % 3, rows = 8;
    std::vector<float> x(batch * rows, 1.0f), y(batch * rows), total(batch);
    std::vector<int64_t> gate(batch);
    const svdq_tensor in[2] = {{"x", x.data(), SVDQ_F32, 2, {batch, rows}},
                               {"gate.0", gate.data(), SVDQ_I64, 1, {batch}}};
    svdq_tensor out[2] = {{"sample", y.data(), SVDQ_F32, 2, {batch, rows}},
                          {"total", total.data(), SVDQ_F32, 1, {batch}}};
    svdq_session* session = sessions[turn % 2];
    REQUIRE(svdq_run(session, in, 2, out, 2) == SVDQ_OK);
    REQUIRE(y[3] == 4.5f && total[batch - 1] == 20.0f);
    out[0].dtype |= SVDQ_ON_DEVICE;  // which it is not
    REQUIRE(svdq_run(session, in, 2, out, 2) == SVDQ_BAD_INPUT);
    REQUIRE(svdq_run_on_stream(session, nullptr, in, 1, out, 2) == SVDQ_BAD_INPUT);
  }
  const svdq_launch_time* times;
  size_t num_times;
  REQUIRE(svdq_profile(sessions[1], &times, &num_times) == SVDQ_OK && num_times == 2);
  for (svdq_session* session : sessions) svdq_session_destroy(session);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc >= 3 && std::strcmp(argv[1], "open") == 0) {
    for (int i = 2; i < argc; ++i) {
      const int status = status_of(argv[i]);
      std::printf("%d\t%s\n", status, status == SVDQ_OK ? "" : svdq_last_error());
    }
    return 0;
  }
  if (argc >= 3 && std::strcmp(argv[1], "sha256") == 0) {
    const Bytes bytes = read_file(argv[2]);
    for (int i = 3; i < argc; ++i) {
      const size_t size = static_cast<size_t>(std::atol(argv[i]));
      std::printf("%s %s\n", svdq::to_hex(svdq::sha256(bytes.data(), size)).c_str(),
                  svdq::to_hex(svdq::sha256_portable(bytes.data(), size)).c_str());
    }
    return 0;
  }
  if (argc == 3 && std::strcmp(argv[1], "calls") == 0) return bad_calls(argv[2]);
  if (argc == 3 && std::strcmp(argv[1], "gpu") == 0) return gpu_calls(argv[2]);
  if (argc == 5 && std::strcmp(argv[1], "fuzz") == 0) {
    Fuzzer fuzzer(read_file(argv[2]), argv[2], static_cast<unsigned>(std::atoi(argv[3])));
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[4]));
    long tried[4] = {}, accepted[4] = {};
    while (std::chrono::steady_clock::now() < end) {
      ++tried[0], accepted[0] += fuzzer.file() ? 1 : 0;
      ++tried[1], accepted[1] += fuzzer.manifest() ? 1 : 0;
      for (int i = 0; i < 8; ++i) ++tried[2], accepted[2] += fuzzer.plan() ? 1 : 0;
      for (int i = 0; i < 8; ++i) ++tried[3], accepted[3] += fuzzer.code() ? 1 : 0;
    }
    for (int i = 0; i < 4; ++i) std::printf("%ld %ld\n", tried[i], accepted[i]);
    return 0;
  }
  std::fprintf(stderr, "usage: probe open FILE... | probe fuzz FILE SEED SECONDS\n");
  return 1;
}
