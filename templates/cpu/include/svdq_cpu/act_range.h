// act_range.h: the ranges of activation codes (svdqc.compiler.quantize.ranges), on CPUs and GPUs.
#ifndef SVDQ_CPU_ACT_RANGE_H
#define SVDQ_CPU_ACT_RANGE_H

namespace svdq {

enum class ActRange { Symmetric7, Signed8, Unsigned15, Symmetric127 };

constexpr float lowest_code(ActRange range) {
  return range == ActRange::Symmetric7   ? -7.0f
         : range == ActRange::Signed8    ? -8.0f
         : range == ActRange::Unsigned15 ? 0.0f
                                         : -127.0f;
}

constexpr float highest_code(ActRange range) {
  return range == ActRange::Unsigned15 ? 15.0f : range == ActRange::Symmetric127 ? 127.0f : 7.0f;
}

/* The largest magnitude of a code; what integer kernels size their accumulators by. */
constexpr int largest_code(ActRange range) {
  return static_cast<int>(highest_code(range) > -lowest_code(range) ? highest_code(range)
                                                                    : -lowest_code(range));
}

}  // namespace svdq

#endif  // SVDQ_CPU_ACT_RANGE_H
