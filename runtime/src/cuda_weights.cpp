#include "cuda_weights.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "checked.h"
#include "cpu.h"

namespace svdq::cuda {
namespace {

constexpr uint64_t kPieceBytes = 8u << 20;
constexpr unsigned kMaxWorkers = 4;  // reading a file's pages is slower than one GPU's bus
constexpr int kStagingBuffers = 2;   // per worker: one is read while the other is filled

// Bytes of the file, [begin, end), that weight buffers of the plan need.
struct Range {
  uint64_t begin, end;
  size_t section;
};

std::vector<Range> used_ranges(const Container& container, const Plan& plan) {
  std::vector<Range> ranges;
  for (const Buffer& buffer : plan.buffers) {
    if (buffer.kind != BufferKind::weight) continue;
    const TensorEntry& tensor = container.tensors[buffer.index];
    const auto after = std::upper_bound(
        container.sections.begin(), container.sections.end(), tensor.offset,
        [](uint64_t offset, const Section& section) { return offset < section.offset; });
    const size_t section = static_cast<size_t>(after - container.sections.begin()) - 1;
    ranges.push_back({tensor.offset, tensor.offset + tensor.size, section});
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;  // tensors may share bytes, or stand a little padding apart
  for (const Range& range : ranges) {
    if (!merged.empty() && merged.back().section == range.section &&
        range.begin <= align_up(merged.back().end, kTensorAlignment)) {
      merged.back().end = std::max(merged.back().end, range.end);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

}  // namespace

Weights::Weights(std::shared_ptr<const Device> device, const Container& container, const Plan& plan)
    : device_(std::move(device)), addresses_(container.tensors.size()) {
  reserve(container, plan);
  start();
}

// One allocation per section, which is the unit in which weights could be streamed.
void Weights::reserve(const Container& container, const Plan& plan) {
  const std::vector<Range> ranges = used_ranges(container, plan);
  std::vector<uint64_t> offsets;  // of each range, in its section's allocation
  std::vector<std::pair<size_t, uint64_t>> sections;
  for (const Range& range : ranges) {
    if (sections.empty() || sections.back().first != range.section)
      sections.emplace_back(range.section, 0);
    offsets.push_back(sections.back().second);
    sections.back().second +=
        align_up(std::max<uint64_t>(1, range.end - range.begin), kTensorAlignment);
  }
  for (const auto& section : sections) num_bytes_ += section.second;
  check_room(*device_, container.path, num_bytes_, plan.arena_bytes);
  size_t at = 0;
  for (const auto& [section, size] : sections) {
    segments_.emplace_back(device_, size);
    for (; at < ranges.size() && ranges[at].section == section; ++at) {
      const Range& range = ranges[at];
      const DevicePointer base = segments_.back().data() + offsets[at];
      for (uint64_t done = 0; done < range.end - range.begin; done += kPieceBytes) {
        pieces_.push_back({container.file->data() + range.begin + done,
                           std::min(kPieceBytes, range.end - range.begin - done), base + done});
      }
    }
  }
  for (const Buffer& buffer : plan.buffers) {
    if (buffer.kind != BufferKind::weight) continue;
    const uint64_t offset = container.tensors[buffer.index].offset;
    const auto after =
        std::upper_bound(ranges.begin(), ranges.end(), offset,
                         [](uint64_t value, const Range& range) { return value < range.begin; });
    const size_t range = static_cast<size_t>(after - ranges.begin()) - 1;
    size_t segment = 0;
    while (sections[segment].first != ranges[range].section) ++segment;
    addresses_[buffer.index] =
        segments_[segment].data() + offsets[range] + (offset - ranges[range].begin);
  }
}

void Weights::start() {
  const size_t num_workers =
      std::min<size_t>({kMaxWorkers, usable_threads(), (pieces_.size() + 1) / 2});
  sigset_t all, before;  // signals are for the program's own threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (size_t i = 0; i < num_workers; ++i) workers_.emplace_back([this] { copy_pieces(); });
  } catch (...) {
    // Fewer workers do the same work; none: `wait` does it.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Weights::copy_pieces() {
  try {
    copy_some();
  } catch (Error& error) {
    const std::lock_guard<std::mutex> turn(mutex_);
    if (error_ == nullptr) error_ = std::make_unique<Error>(std::move(error));
    next_ = pieces_.size();
  } catch (const std::exception& error) {
    const std::lock_guard<std::mutex> turn(mutex_);
    if (error_ == nullptr) {
      error_ = std::make_unique<Error>(
          Error{SVDQ_INTERNAL, str("[device] 'weights': ", error.what(), "; report this.")});
    }
    next_ = pieces_.size();
  }
}

void Weights::copy_some() {
  if (next_.load() >= pieces_.size()) return;
  const Driver& api = device_->api;
  const Current current(*device_);
  uint64_t largest = 0;
  for (const Piece& piece : pieces_) largest = std::max(largest, piece.size);
  const PinnedMemory staging(*device_, kStagingBuffers * largest);
  const OwnedStream stream(device_);
  const OwnedEvent copied[kStagingBuffers] = {{device_, false}, {device_, false}};
  struct Finish {  // nothing may be under way when the staging memory goes
    const Driver& api;
    Stream stream;
    ~Finish() { api.stream_synchronize(stream); }
  } finish{api, stream.get()};
  for (int turn = 0;; turn = (turn + 1) % kStagingBuffers) {
    const size_t i = next_.fetch_add(1);
    if (i >= pieces_.size()) break;
    const Piece& piece = pieces_[i];
    uint8_t* buffer = staging.data() + static_cast<uint64_t>(turn) * largest;
    device_->check(api.event_synchronize(copied[turn].get()), "cuEventSynchronize");
    std::memcpy(buffer, piece.from, piece.size);
    device_->check(api.copy_in(piece.to, buffer, piece.size, stream.get()), "cuMemcpyHtoDAsync");
    device_->check(api.event_record(copied[turn].get(), stream.get()), "cuEventRecord");
  }
  device_->check(api.stream_synchronize(stream.get()), "cuStreamSynchronize");
}

void Weights::wait() {
  if (complete_.load(std::memory_order_acquire)) return;
  const std::lock_guard<std::mutex> one(waiting_);
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  copy_pieces();  // what is left if there were no threads
  const std::lock_guard<std::mutex> turn(mutex_);
  if (error_ != nullptr) throw Error(*error_);
  complete_.store(true, std::memory_order_release);
}

Weights::~Weights() {
  next_ = pieces_.size();
  for (std::thread& worker : workers_) worker.join();
}

void check_room(const Device& device, const std::string& path, uint64_t weight_bytes,
                uint64_t arena_bytes) {
  size_t free_bytes = 0, total_bytes = 0;
  const Current current(device);
  device.check(device.api.memory_info(&free_bytes, &total_bytes), "cuMemGetInfo");
  if (weight_bytes <= free_bytes && arena_bytes <= free_bytes - weight_bytes) return;
  fail(SVDQ_NO_MEMORY, "session", path,
       str("needs ", weight_bytes + arena_bytes, " bytes of GPU memory (", weight_bytes,
           " for weights, ", arena_bytes, " for activations at its largest dims); ", device.text(),
           " has ", free_bytes, " bytes free of ", total_bytes),
       "close what else uses the GPU, compile with smaller upper bounds of its dims, or use a "
       "larger GPU");
}

}  // namespace svdq::cuda
