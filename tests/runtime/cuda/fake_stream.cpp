// Streams and events: work is done when something waits for it.
#include "fake.h"

namespace fake {

FakeStream* Driver::stream(Stream handle) {
  const uint64_t value = reinterpret_cast<uint64_t>(handle);
  if (value <= 1) return &devices[current()]->legacy;  // NULL and CU_STREAM_LEGACY
  return lookup<FakeStream>(handle, Kind::stream, "stream");
}

void Driver::enqueue(FakeStream* stream, std::function<Result()> body) {
  Operation operation;
  operation.body = std::move(body);
  operation.ticket = std::make_shared<Ticket>();
  operation.ticket->stream = stream;
  FakeStream& legacy = devices[stream->device]->legacy;
  if (stream == &legacy) {  // after all blocking streams
    for (const auto& [handle, object] : objects) {
      if (object->kind != Kind::stream || object->device != stream->device) continue;
      const auto& other = static_cast<const FakeStream&>(*object);
      if (other.blocking && other.last != nullptr) operation.needs.push_back(other.last);
    }
  } else if (stream->blocking && legacy.last != nullptr) {
    operation.needs.push_back(legacy.last);
  }
  stream->last = operation.ticket;
  stream->queue.push_back(std::move(operation));
}

Result Driver::finish(FakeStream* stream, const TicketPtr& until) {
  while (!stream->queue.empty() && (until == nullptr || !until->done)) {
    if (settings.mixed) let_others_run(stream);
    if (!stream->queue.empty()) run_front(stream);
  }
  return devices[stream->device]->sticky;
}

void Driver::run_front(FakeStream* stream) {
  const TicketPtr ticket = stream->queue.front().ticket;
  const std::vector<TicketPtr> needs = stream->queue.front().needs;
  for (const TicketPtr& need : needs) {
    if (!need->done) finish(need->stream, need);
  }
  if (ticket->done) return;  // meanwhile, by let_others_run
  const Operation operation = std::move(stream->queue.front());
  stream->queue.pop_front();
  Result& sticky = devices[stream->device]->sticky;
  if (sticky == kSuccess) sticky = operation.body();
  ticket->done = true;
  ticket->order = ++clock;
}

// One operation of each other stream that may run now, or not, as the dice fall.
void Driver::let_others_run(FakeStream* stream) {
  std::vector<FakeStream*> others = {&devices[stream->device]->legacy};
  for (const auto& [handle, object] : objects) {
    if (object->kind == Kind::stream && object->device == stream->device)
      others.push_back(static_cast<FakeStream*>(object.get()));
  }
  for (FakeStream* other : others) {
    dice = dice * 1664525 + 1013904223;
    if (other == stream || other->queue.empty() || (dice >> 16) % 2 == 0) continue;
    bool may_run = true;
    for (const TicketPtr& need : other->queue.front().needs) may_run = may_run && need->done;
    if (may_run) run_front(other);
  }
}

Result Driver::finish_all(int device) {
  for (const auto& [handle, object] : objects) {
    if (object->kind == Kind::stream && object->device == device) {
      finish(static_cast<FakeStream*>(object.get()), nullptr);
    }
  }
  return finish(&devices[device]->legacy, nullptr);
}

}  // namespace fake

using namespace fake;

FAKE_API Result cuStreamCreate(Stream* stream, unsigned flags) {
  FAKE_ENTER(cuStreamCreate, true);
  if (flags > 1) return driver.violation("cuStreamCreate with unknown flags");
  auto* made = driver.create<FakeStream>(Kind::stream);
  made->blocking = flags == 0;
  *stream = reinterpret_cast<Stream>(static_cast<Object*>(made));
  return kSuccess;
}

FAKE_API Result cuStreamDestroy_v2(Stream handle) {
  FAKE_ENTER(cuStreamDestroy_v2, true);
  auto* stream = driver.lookup<FakeStream>(handle, Kind::stream, "stream");
  if (stream == nullptr) return kInvalidHandle;
  driver.finish(stream, nullptr);
  driver.objects.erase(static_cast<Object*>(stream));
  return kSuccess;
}

FAKE_API Result cuStreamSynchronize(Stream handle) {
  FAKE_ENTER(cuStreamSynchronize, true);
  FakeStream* stream = driver.stream(handle);
  if (stream == nullptr) return kInvalidHandle;
  if (stream->capturing) return driver.violation("waited for a stream that is captured");
  return driver.finish(stream, nullptr);
}

FAKE_API Result cuCtxSynchronize() {
  FAKE_ENTER(cuCtxSynchronize, true);
  return driver.finish_all(driver.current());
}

FAKE_API Result cuStreamWaitEvent(Stream handle, Event event_handle, unsigned flags) {
  FAKE_ENTER(cuStreamWaitEvent, true);
  FakeStream* stream = driver.stream(handle);
  auto* event = driver.lookup<FakeEvent>(event_handle, Kind::event, "event");
  if (stream == nullptr || event == nullptr || flags != 0) return kInvalidHandle;
  if (event->recorded == nullptr) return kSuccess;  // never recorded: nothing to wait for
  if (stream->capturing) return driver.violation("a captured stream waits for uncaptured work");
  driver.enqueue(stream, [] { return kSuccess; });
  stream->queue.back().needs.push_back(event->recorded);
  return kSuccess;
}

FAKE_API Result cuStreamIsCapturing(Stream handle, int* status) {
  FAKE_ENTER(cuStreamIsCapturing, true);
  FakeStream* stream = driver.stream(handle);
  if (stream == nullptr) return kInvalidHandle;
  *status = stream->capturing ? 1 : 0;
  return kSuccess;
}

FAKE_API Result cuEventCreate(Event* event, unsigned flags) {
  FAKE_ENTER(cuEventCreate, true);
  if (flags != kEventDefault && flags != kEventDisableTiming) {
    return driver.violation("cuEventCreate with unknown flags");
  }
  auto* made = driver.create<FakeEvent>(Kind::event);
  made->timed = flags == kEventDefault;
  *event = reinterpret_cast<Event>(static_cast<Object*>(made));
  return kSuccess;
}

FAKE_API Result cuEventDestroy_v2(Event handle) {
  FAKE_ENTER(cuEventDestroy_v2, true);
  auto* event = driver.lookup<FakeEvent>(handle, Kind::event, "event");
  if (event == nullptr) return kInvalidHandle;
  driver.objects.erase(static_cast<Object*>(event));
  return kSuccess;
}

FAKE_API Result cuEventRecord(Event event_handle, Stream handle) {
  FAKE_ENTER(cuEventRecord, true);
  FakeStream* stream = driver.stream(handle);
  auto* event = driver.lookup<FakeEvent>(event_handle, Kind::event, "event");
  if (stream == nullptr || event == nullptr) return kInvalidHandle;
  driver.enqueue(stream, [] { return kSuccess; });
  event->recorded = stream->last;
  return kSuccess;
}

FAKE_API Result cuEventSynchronize(Event handle) {
  FAKE_ENTER(cuEventSynchronize, true);
  auto* event = driver.lookup<FakeEvent>(handle, Kind::event, "event");
  if (event == nullptr) return kInvalidHandle;
  if (event->recorded == nullptr || event->recorded->done) return kSuccess;
  return driver.finish(event->recorded->stream, event->recorded);
}

FAKE_API Result cuEventElapsedTime(float* milliseconds, Event begin_handle, Event end_handle) {
  FAKE_ENTER(cuEventElapsedTime, true);
  auto* begin = driver.lookup<FakeEvent>(begin_handle, Kind::event, "event");
  auto* end = driver.lookup<FakeEvent>(end_handle, Kind::event, "event");
  if (begin == nullptr || end == nullptr) return kInvalidHandle;
  if (!begin->timed || !end->timed) return driver.violation("the time of an event without timing");
  if (begin->recorded == nullptr || end->recorded == nullptr) return kInvalidHandle;
  if (!begin->recorded->done || !end->recorded->done) return kNotReady;
  *milliseconds = static_cast<float>(end->recorded->order - begin->recorded->order) * 1e-3f;
  return kSuccess;
}

// Marks a stream as being captured, as torch.cuda.graph does.
FAKE_API void fake_cuda_capture(Stream handle, int on) {
  Driver& driver = Driver::get();
  const std::lock_guard<std::recursive_mutex> lock(driver.mutex);
  static_cast<FakeStream*>(reinterpret_cast<Object*>(handle))->capturing = on != 0;
}
