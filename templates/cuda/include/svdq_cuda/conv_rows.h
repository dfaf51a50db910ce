// conv_rows.h: the left operand of a convolution as a product (gemm_float.h). Row r is an output
// position, k runs over taps, then channels, and the copies into shared memory gather the input
// directly: no unfolded image is ever stored.
//
//   ConvShape<AXES>   sizes, and element strides of the input [batch, channels, axes...]
//   ConvX<AXES, BM, BK, THREADS, WIDE> x(input, shape, first_row, rows)
//     WIDE 4: channels lie together, are a multiple of 4 and begin at multiples of 16 bytes, so
//     copies are of 16 bytes; WIDE 1: any strides
//
// Rows count positions in the order [batch, axes...]. An input has less than 2^31 elements.
#ifndef SVDQ_CUDA_CONV_ROWS_H
#define SVDQ_CUDA_CONV_ROWS_H

#include "svdq_cuda/intrinsics.h"

namespace svdq {

template <int AXES>
struct ConvShape {
  int channels;
  int kernel[AXES], stride[AXES], padding[AXES], dilation[AXES];
  int64_t out[AXES], in[AXES];
  int64_t batch_step, channel_step, step[AXES];
};

template <int AXES, int BM, int BK, int THREADS, int WIDE>
struct ConvX {
  static constexpr int kAcross = BK / WIDE, kDown = THREADS / kAcross, kRows = BM / kDown;
  static_assert(THREADS % kAcross == 0 && BM % kDown == 0, "threads share the copies evenly");

  const float* x;
  const ConvShape<AXES>& shape;
  int64_t k;
  // Of this thread's rows: the first tap's place on each axis; far outside for rows past the end.
  int place[kRows][AXES];
  int64_t batch[kRows];

  SVDQ_METHOD ConvX(const float* input, const ConvShape<AXES>& conv, int64_t first, int64_t rows)
      : x(input), shape(conv) {
    k = conv.channels;
    SVDQ_UNROLL
    for (int axis = 0; axis < AXES; ++axis) k *= conv.kernel[axis];
    const int own = static_cast<int>(thread_id()) / kAcross;
    SVDQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const int r = own + i * kDown;
      uint32_t position = static_cast<uint32_t>(first + r);
      SVDQ_UNROLL
      for (int axis = AXES - 1; axis >= 0; --axis) {
        const uint32_t size = static_cast<uint32_t>(conv.out[axis]);
        place[i][axis] =
            r < rows ? static_cast<int>(position % size) * conv.stride[axis] - conv.padding[axis]
                     : kOutside;
        position /= size;
      }
      batch[i] = static_cast<int64_t>(position) * conv.batch_step;
    }
  }

  template <int BK_, int LD, int THREADS_>
  SVDQ_METHOD void load(float* stage, int64_t k0) const {
    static_assert(BK_ == BK && THREADS_ == THREADS, "the product's own sizes");
    const int thread = static_cast<int>(thread_id());
    const int row = thread / kAcross, column = thread % kAcross * WIDE;
    const uint32_t at = static_cast<uint32_t>(k0) + column;
    const uint32_t channels = static_cast<uint32_t>(shape.channels);
    uint32_t tap = at / channels;
    const float* from = x + static_cast<int64_t>(at % channels) * shape.channel_step;
    int reach[AXES];
    SVDQ_UNROLL
    for (int axis = AXES - 1; axis >= 0; --axis) {
      reach[axis] = static_cast<int>(tap % shape.kernel[axis]) * shape.dilation[axis];
      tap /= shape.kernel[axis];
    }
    const bool inside = at < k;
    SVDQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      bool valid = inside;
      int64_t offset = batch[i];
      SVDQ_UNROLL
      for (int axis = 0; axis < AXES; ++axis) {
        const int64_t p = place[i][axis] + reach[axis];
        valid = valid && p >= 0 && p < shape.in[axis];
        offset += p * shape.step[axis];
      }
      cp_async<4 * WIDE>(stage + (row + i * kDown) * LD + column, valid ? from + offset : x, valid);
    }
  }

 private:
  static constexpr int kOutside = -(1 << 30);
};

}  // namespace svdq

#endif  // SVDQ_CUDA_CONV_ROWS_H
