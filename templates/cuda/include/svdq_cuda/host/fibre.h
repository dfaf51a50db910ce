// host/fibre.h: what intrinsics of the host back end are made of: operations of a whole warp, waits
// for a condition, and checked pointers into shared memory.
#ifndef SVDQ_CUDA_HOST_FIBRE_H
#define SVDQ_CUDA_HOST_FIBRE_H

#include "svdq_cuda/host/threads.h"

namespace svdq::host {

inline Cta& cta() { return *Cta::active(); }

// Every lane of `mask` brings its operands; the last to come calls compute(operands), an array of
// 32 pointers by lane (of lanes outside the mask: undefined), and nobody goes on before that.
// Results are written into the lanes' own operands.
//
//   struct Exchange { float in, out; } mine{value, 0};
//   warp_collective("reverse", mine, [](Exchange** lane) {
//     for (int i = 0; i < 32; ++i) lane[i]->out = lane[31 - i]->in;
//   });
template <typename Operands, typename Compute>
inline void warp_collective(const char* what, Operands& mine, Compute&& compute,
                            uint32_t mask = kFullWarp) {
  Cta& here = cta();
  const uint32_t warp = here.current / kWarp, lane = here.current % kWarp;
  Meeting* meeting = nullptr;
  for (Meeting& candidate : here.meetings[warp]) {
    if (candidate.arrived != 0 && candidate.mask == mask) meeting = &candidate;
  }
  for (Meeting& candidate : here.meetings[warp]) {
    if (meeting == nullptr && candidate.arrived == 0) meeting = &candidate;
  }
  if (meeting == nullptr || (mask >> lane & 1u) == 0) {
    here.fail(std::string(what) + ": this lane is not in the mask, or the warp's masks overlap");
  }
  if (meeting->arrived == 0) {
    meeting->what = what;
    meeting->mask = mask;
  } else if (strcmp(meeting->what, what) != 0) {
    here.fail(std::string("the warp diverges: this lane is at ") + what + ", another at " +
              meeting->what);
  }
  meeting->operands[lane] = &mine;
  meeting->arrived |= 1u << lane;
  if (meeting->arrived != mask) {
    here.wait(what);
    return;
  }
  compute(reinterpret_cast<Operands**>(meeting->operands));
  meeting->arrived = 0;
  here.release(warp, mask & ~(1u << lane));
}

// The same for an aligned group of several warps, such as a warpgroup (num_threads 128): compute
// gets num_threads pointers, by thread of the group.
template <typename Operands, typename Compute>
inline void group_collective(const char* what, uint32_t num_threads, Operands& mine,
                             Compute&& compute) {
  Cta& here = cta();
  const uint32_t first = here.current / num_threads * num_threads;
  if (num_threads % kWarp != 0 || first + num_threads > here.num_threads) {
    here.fail(std::string(what) + ": no whole group of " + std::to_string(num_threads));
  }
  GroupMeeting& meeting = here.group_meetings[first / kWarp];
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.num_threads = num_threads;
  } else if (strcmp(meeting.what, what) != 0 || meeting.num_threads != num_threads) {
    here.fail(std::string("the group diverges: this thread is at ") + what + ", another at " +
              meeting.what);
  }
  meeting.operands[here.current - first] = &mine;
  if (++meeting.arrived != num_threads) {
    here.wait(what);
    return;
  }
  compute(reinterpret_cast<Operands**>(meeting.operands));
  meeting.arrived = 0;
  for (uint32_t warp = first / kWarp; warp < (first + num_threads) / kWarp; ++warp) {
    const bool is_mine = warp == here.current / kWarp;
    here.release(warp, is_mine ? ~(1u << here.current % kWarp) : kFullWarp);
  }
}

// Wait until condition() holds; other threads of the CTA make it true.
template <typename Condition>
inline void wait_until(const char* what, const Condition& condition) {
  if (condition()) return;
  const auto ask = [](const void* context) -> bool {
    return (*static_cast<const Condition*>(context))();
  };
  cta().wait_until(what, ask, &condition);
}

// A pointer into shared memory, aligned, with `bytes` behind it; else the CTA fails.
inline char* checked_shared(const char* what, const void* pointer, size_t bytes, size_t alignment) {
  Cta& here = cta();
  char* const at = const_cast<char*>(static_cast<const char*>(pointer));
  if (at < here.shared || at + bytes > here.shared + here.shared_bytes) {
    here.fail(std::string(what) + ": " + std::to_string(at - here.shared) + " + " +
              std::to_string(bytes) + " is outside the " + std::to_string(here.shared_bytes) +
              " bytes of shared memory");
  }
  if (static_cast<size_t>(at - here.shared) % alignment != 0) {
    here.fail(std::string(what) + ": shared memory at " + std::to_string(at - here.shared) +
              " is not aligned to " + std::to_string(alignment) + " bytes");
  }
  return at;
}

}  // namespace svdq::host

#endif  // SVDQ_CUDA_HOST_FIBRE_H
