// Our words for the driver's interface beside NVIDIA's own, where cuda.h is installed: compiling
// this is the test.
#define __CUDA_API_VERSION_INTERNAL  // the first versions of calls too, which is what their bare
                                     // symbols are
#include <cuda.h>

#include <type_traits>

#include "cuda_api.h"

namespace ours = svdq::cuda;

// Passed and laid out alike: both pointers, or integers and enums of one size.
template <class A, class B>
constexpr bool alike = (std::is_pointer_v<A> && std::is_pointer_v<B>) ||
                       ((std::is_integral_v<A> || std::is_enum_v<A>) &&
                        (std::is_integral_v<B> || std::is_enum_v<B>) && sizeof(A) == sizeof(B));

template <class F, class G>
struct SameCall : std::false_type {};
template <class R, class... A, class S, class... B>
struct SameCall<R (*)(A...), S (*)(B...)> {
  static constexpr bool arguments() {
    if constexpr (sizeof...(A) == sizeof...(B)) {
      return (alike<A, B> && ...);
    } else {
      return false;
    }
  }
  static constexpr bool value = arguments() && sizeof(R) == sizeof(S);
};

namespace svdq::cuda {
#define SVDQ_COMPARE(member, symbol, arguments) \
  static_assert(SameCall<Result(*) arguments, decltype(&::symbol)>::value, #symbol);
SVDQ_CUDA_CALLS(SVDQ_COMPARE)
SVDQ_CUDA_OPTIONAL_CALLS(SVDQ_COMPARE)
}  // namespace svdq::cuda

#define SAME(ours_, theirs) \
  static_assert(static_cast<long>(ours_) == static_cast<long>(theirs), #theirs)
SAME(ours::kSuccess, CUDA_SUCCESS);
SAME(ours::kInvalidValue, CUDA_ERROR_INVALID_VALUE);
SAME(ours::kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
SAME(ours::kNotInitialized, CUDA_ERROR_NOT_INITIALIZED);
SAME(ours::kDeinitialized, CUDA_ERROR_DEINITIALIZED);
SAME(ours::kNoDevice, CUDA_ERROR_NO_DEVICE);
SAME(ours::kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
SAME(ours::kInvalidImage, CUDA_ERROR_INVALID_IMAGE);
SAME(ours::kInvalidContext, CUDA_ERROR_INVALID_CONTEXT);
SAME(ours::kNoBinaryForGpu, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME(ours::kInvalidHandle, CUDA_ERROR_INVALID_HANDLE);
SAME(ours::kNotFound, CUDA_ERROR_NOT_FOUND);
SAME(ours::kNotReady, CUDA_ERROR_NOT_READY);
SAME(ours::kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME(ours::kLaunchOutOfResources, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
SAME(ours::kMaxThreadsPerBlock, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
SAME(ours::kNumMultiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(ours::kMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(ours::kMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(ours::kMaxSharedBytesOptIn, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME(ours::kFunctionMaxThreads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
SAME(ours::kFunctionStaticSharedBytes, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
SAME(ours::kFunctionMaxDynamicSharedBytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(ours::kPointerMemoryType, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME(ours::kPointerDeviceOrdinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME(ours::kMemoryHost, CU_MEMORYTYPE_HOST);
SAME(ours::kMemoryDevice, CU_MEMORYTYPE_DEVICE);
SAME(ours::kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
SAME(ours::kEventDefault, CU_EVENT_DEFAULT);
SAME(ours::kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
static_assert(sizeof(ours::KernelNode) == sizeof(CUDA_KERNEL_NODE_PARAMS_v1));
#define SAME_FIELD(ours_, theirs) \
  static_assert(offsetof(ours::KernelNode, ours_) == offsetof(CUDA_KERNEL_NODE_PARAMS_v1, theirs))
SAME_FIELD(function, func);
SAME_FIELD(grid_x, gridDimX);
SAME_FIELD(block_x, blockDimX);
SAME_FIELD(shared_bytes, sharedMemBytes);
SAME_FIELD(kernel_params, kernelParams);
SAME_FIELD(extra, extra);
