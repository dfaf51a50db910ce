// group.h: several regions computed by one launch, with the same code and other arguments.
//
// The launch hands over the buffers of all members, then the scalars of all members, then for each
// member where its tasks end: those of member m are ends[m - 1] to ends[m] - 1.
//
//   MemberTask<COUNT>(ends, task)   whose task it is, and its number among that member's
#ifndef SVDQ_CUDA_GROUP_H
#define SVDQ_CUDA_GROUP_H

#include "svdq_cuda/base.h"

namespace svdq {

template <int COUNT>
struct MemberTask {
  uint32_t number = 0, task;

  SVDQ_METHOD MemberTask(const int64_t* ends, uint32_t of_launch) : task(of_launch) {
    SVDQ_UNROLL
    for (int i = 0; i < COUNT - 1; ++i) {
      const uint32_t end = static_cast<uint32_t>(ends[i]);
      if (of_launch >= end) {
        number = i + 1;
        task = of_launch - end;
      }
    }
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_GROUP_H
