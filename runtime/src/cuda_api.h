// The facts of the CUDA driver's C interface that the runtime uses, in its own words: building
// svdqc needs no CUDA header, running it on CPUs no CUDA library. tests/runtime/cuda compares these
// declarations with cuda.h where one is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace svdq::cuda {

using Result = int;              // CUresult
using DeviceId = int;            // CUdevice
using DevicePointer = uint64_t;  // CUdeviceptr
using Context = struct ContextTag*;
using Module = struct ModuleTag*;
using Function = struct FunctionTag*;
using Stream = struct StreamTag*;
using Event = struct EventTag*;
using Graph = struct GraphTag*;
using GraphNode = struct GraphNodeTag*;
using GraphExec = struct GraphExecTag*;

enum : Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kDeinitialized = 4,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNoBinaryForGpu = 209,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
};

enum DeviceAttribute : int {
  kMaxThreadsPerBlock = 1,
  kNumMultiprocessors = 16,
  kMajor = 75,
  kMinor = 76,
  kMaxSharedBytesOptIn = 97,
};
enum FunctionAttribute : int {
  kFunctionMaxThreads = 0,
  kFunctionStaticSharedBytes = 1,
  kFunctionMaxDynamicSharedBytes = 8,
};
enum PointerAttribute : int { kPointerMemoryType = 2, kPointerDeviceOrdinal = 9 };
enum : unsigned { kMemoryHost = 1, kMemoryDevice = 2 };
enum : unsigned { kStreamNonBlocking = 1 };
enum : unsigned { kEventDefault = 0, kEventDisableTiming = 2 };

// CUDA_KERNEL_NODE_PARAMS in the form of CUDA 10, which every later driver keeps.
struct KernelNode {
  Function function;
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned shared_bytes;
  void** kernel_params;
  void** extra;
};

// X(member, symbol, arguments)
#define SVDQ_CUDA_CALLS(X)                                                                        \
  X(init, cuInit, (unsigned flags))                                                               \
  X(driver_version, cuDriverGetVersion, (int* version))                                           \
  X(error_name, cuGetErrorName, (Result error, const char** name))                                \
  X(error_string, cuGetErrorString, (Result error, const char** text))                            \
  X(device_count, cuDeviceGetCount, (int* count))                                                 \
  X(device_get, cuDeviceGet, (DeviceId * device, int ordinal))                                    \
  X(device_name, cuDeviceGetName, (char* name, int size, DeviceId device))                        \
  X(device_attribute, cuDeviceGetAttribute, (int* value, DeviceAttribute which, DeviceId device)) \
  X(device_memory, cuDeviceTotalMem_v2, (size_t* num_bytes, DeviceId device))                     \
  X(primary_retain, cuDevicePrimaryCtxRetain, (Context * context, DeviceId device))               \
  X(primary_release, cuDevicePrimaryCtxRelease_v2, (DeviceId device))                             \
  X(push, cuCtxPushCurrent_v2, (Context context))                                                 \
  X(pop, cuCtxPopCurrent_v2, (Context * context))                                                 \
  X(memory_info, cuMemGetInfo_v2, (size_t* free_bytes, size_t* total_bytes))                      \
  X(allocate, cuMemAlloc_v2, (DevicePointer * pointer, size_t num_bytes))                         \
  X(free, cuMemFree_v2, (DevicePointer pointer))                                                  \
  X(host_allocate, cuMemHostAlloc, (void** pointer, size_t num_bytes, unsigned flags))            \
  X(host_free, cuMemFreeHost, (void* pointer))                                                    \
  X(copy_in, cuMemcpyHtoDAsync_v2,                                                                \
    (DevicePointer to, const void* from, size_t num_bytes, Stream stream))                        \
  X(copy_out, cuMemcpyDtoHAsync_v2,                                                               \
    (void* to, DevicePointer from, size_t num_bytes, Stream stream))                              \
  X(copy_within, cuMemcpyDtoDAsync_v2,                                                            \
    (DevicePointer to, DevicePointer from, size_t num_bytes, Stream stream))                      \
  X(pointer_attribute, cuPointerGetAttribute,                                                     \
    (void* value, PointerAttribute which, DevicePointer pointer))                                 \
  X(module_load, cuModuleLoadData, (Module * module, const void* image))                          \
  X(module_unload, cuModuleUnload, (Module module))                                               \
  X(module_function, cuModuleGetFunction, (Function * function, Module module, const char* name)) \
  X(function_attribute, cuFuncGetAttribute,                                                       \
    (int* value, FunctionAttribute which, Function function))                                     \
  X(set_function_attribute, cuFuncSetAttribute,                                                   \
    (Function function, FunctionAttribute which, int value))                                      \
  X(launch, cuLaunchKernel,                                                                       \
    (Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,      \
     unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream,                    \
     void** kernel_params, void** extra))                                                         \
  X(stream_create, cuStreamCreate, (Stream * stream, unsigned flags))                             \
  X(stream_destroy, cuStreamDestroy_v2, (Stream stream))                                          \
  X(stream_synchronize, cuStreamSynchronize, (Stream stream))                                     \
  X(stream_wait, cuStreamWaitEvent, (Stream stream, Event event, unsigned flags))                 \
  X(stream_is_capturing, cuStreamIsCapturing, (Stream stream, int* status))                       \
  X(event_create, cuEventCreate, (Event * event, unsigned flags))                                 \
  X(event_destroy, cuEventDestroy_v2, (Event event))                                              \
  X(event_record, cuEventRecord, (Event event, Stream stream))                                    \
  X(event_synchronize, cuEventSynchronize, (Event event))                                         \
  X(event_elapsed, cuEventElapsedTime, (float* milliseconds, Event begin, Event end))

// Newer than the oldest driver that is accepted, or used only where they help; null where the
// driver lacks them.
#define SVDQ_CUDA_OPTIONAL_CALLS(X)                                                         \
  X(function_parameter, cuFuncGetParamInfo,                                                 \
    (Function function, size_t index, size_t* offset, size_t* num_bytes))                   \
  X(graph_create, cuGraphCreate, (Graph * graph, unsigned flags))                           \
  X(graph_destroy, cuGraphDestroy, (Graph graph))                                           \
  X(graph_add_kernel, cuGraphAddKernelNode,                                                 \
    (GraphNode * node, Graph graph, const GraphNode* dependencies, size_t num_dependencies, \
     const KernelNode* kernel))                                                             \
  X(graph_instantiate, cuGraphInstantiateWithFlags,                                         \
    (GraphExec * exec, Graph graph, unsigned long long flags))                              \
  X(graph_exec_destroy, cuGraphExecDestroy, (GraphExec exec))                               \
  X(graph_exec_set_kernel, cuGraphExecKernelNodeSetParams,                                  \
    (GraphExec exec, GraphNode node, const KernelNode* kernel))                             \
  X(graph_launch, cuGraphLaunch, (GraphExec exec, Stream stream))

}  // namespace svdq::cuda
