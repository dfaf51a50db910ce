/* The interface between the runtime and generated kernels.
 *
 * A kernel is a parallel-for body: the runtime calls it with disjoint ranges of tasks, from several
 * threads at once. Any split of [0, num_tasks) gives the same bits: a task writes what no other
 * task writes and reads nothing that another task of the same launch writes.
 */
#ifndef SVDQ_KERNEL_H
#define SVDQ_KERNEL_H

#include <stdint.h>

#define SVDQ_KERNEL_ABI 1

#if defined(_WIN32)
#define SVDQ_KERNEL_EXPORT __declspec(dllexport)
#else
#define SVDQ_KERNEL_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct svdq_kernel_args {
  void* const* buffers;   /* one pointer per buffer argument, byte offset applied */
  const int64_t* scalars; /* one value per scalar argument, evaluated for the current dims */
  void* scratch;          /* this thread's scratch memory, 64-byte aligned; contents undefined */
} svdq_kernel_args;

typedef void (*svdq_kernel_fn)(const svdq_kernel_args* args, int64_t task_begin, int64_t task_end);

/* Every code object exports `const uint32_t svdq_code_abi`, equal to SVDQ_KERNEL_ABI. */

#ifdef __cplusplus
}
#endif
#endif
