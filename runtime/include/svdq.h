/* The svdqc runtime: open an artifact, make a session, run it.
 *
 * Every call that can fail returns an svdq_status; the reason, with what to do about it, is
 * svdq_last_error() on the same thread. Handles are opaque. Nothing allocated here is freed by the
 * caller except through *_close/_destroy.
 *
 *   svdq_model* model;
 *   svdq_session* session;
 *   if (svdq_open("model.svdq", 0, &model) != SVDQ_OK) puts(svdq_last_error());
 *   svdq_session_create(model, NULL, &session);
 *   svdq_run(session, inputs, num_inputs, outputs, num_outputs);
 */
#ifndef SVDQ_H
#define SVDQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define SVDQ_API __declspec(dllexport)
#else
#define SVDQ_API __attribute__((visibility("default")))
#endif

#define SVDQ_API_VERSION 1
#define SVDQ_MAX_RANK 8

typedef struct svdq_model svdq_model; /* immutable, shared by sessions, usable from any thread */
typedef struct svdq_session svdq_session; /* own memory and threads; concurrent calls take turns */

typedef enum svdq_status {
  SVDQ_OK = 0,
  SVDQ_NOT_FOUND = 1,       /* the file cannot be opened or read */
  SVDQ_NOT_AN_ARTIFACT = 2, /* the file does not start as an artifact does */
  SVDQ_TRUNCATED = 3,       /* the file is shorter than it says */
  SVDQ_ALTERED = 4,         /* a checksum does not match, or there are bytes where none belong */
  SVDQ_MALFORMED = 5,       /* the manifest breaks a rule of the format */
  SVDQ_NEWER_VERSION = 6,   /* written by a newer svdqc */
  SVDQ_UNKNOWN_FEATURE = 7, /* needs a feature this runtime does not have */
  SVDQ_WRONG_MACHINE = 8,   /* no variant in the file runs on this CPU or GPU */
  SVDQ_NO_MEMORY = 9,
  SVDQ_UNTRUSTED = 10,    /* the code in the file was not compiled here, and no trust was given */
  SVDQ_BAD_PLAN = 11,     /* a plan that would leave its buffers, or is not a plan */
  SVDQ_BAD_CODE = 12,     /* the code cannot be loaded, or lacks a kernel of the plan */
  SVDQ_BAD_ARGUMENT = 13, /* a call that breaks this header's rules */
  SVDQ_BAD_INPUT = 14,    /* a tensor's name, dtype, shape or memory is not what the model takes */
  SVDQ_BAD_DIM = 15,      /* a named dim is outside its range, or two inputs disagree about it */
  SVDQ_INTERNAL = 16,
  SVDQ_NO_DEVICE = 17,    /* no such GPU, no driver, or one that is too old */
  SVDQ_DEVICE_FAILED = 18 /* the GPU or its driver reported an error */
} svdq_status;

typedef enum svdq_dtype {
  SVDQ_F32 = 0,
  SVDQ_F64 = 1,
  SVDQ_F16 = 2,
  SVDQ_BF16 = 3,
  SVDQ_I8 = 4,
  SVDQ_U8 = 5,
  SVDQ_I16 = 6,
  SVDQ_I32 = 7,
  SVDQ_I64 = 8,
  SVDQ_BOOL = 9 /* one byte, 0 or 1 */
} svdq_dtype;

enum {                      /* flags of svdq_open */
       SVDQ_TRUST_CODE = 1, /* run the file's code though it was compiled elsewhere */
       SVDQ_INSPECT_ONLY =
           2, /* check and describe; never load code, no sessions; works for any machine's file */
       SVDQ_CHECK_ALL_WEIGHTS =
           4, /* hash the weights too, whatever their size (small files always are) */
       SVDQ_GPU =
           8 /* for sessions on GPUs: code for the CPU is not loaded, nor need there be any */
};

typedef enum svdq_direction { SVDQ_INPUT = 0, SVDQ_OUTPUT = 1 } svdq_direction;

/* Added to svdq_tensor.dtype: `data` points to memory of the session's GPU, which kernels then use
 * itself (through a copy on that GPU where it is not 16-aligned). Without it, memory of the host.
 */
enum { SVDQ_ON_DEVICE = 0x100 };

/* A tensor the caller owns: dense, row-major, aligned to its dtype. */
typedef struct svdq_tensor {
  const char* name; /* NULL: the port at the same position */
  void* data;
  int32_t dtype; /* svdq_dtype, perhaps with SVDQ_ON_DEVICE */
  int32_t ndim;
  int64_t shape[SVDQ_MAX_RANK];
} svdq_tensor;

/* What a model takes or gives. A dim that varies is given as its range; a fixed one has lo == hi.
 */
typedef struct svdq_port {
  const char* name; /* lives as long as the model */
  int32_t dtype;
  int32_t ndim;
  int64_t lo[SVDQ_MAX_RANK];
  int64_t hi[SVDQ_MAX_RANK];
} svdq_port;

/* Zero means the default of every field; a program that was built before a field was added passes a
 * smaller struct_size, and gets its default. */
typedef struct svdq_session_options {
  uint32_t struct_size; /* sizeof(svdq_session_options) */
  uint32_t threads;     /* of the CPU; 0: as many as this process may use */
  uint32_t profile;     /* 1: time each launch */
  uint32_t no_graphs;   /* 1: on GPUs, never gather launches into a CUDA graph */
  const char* device;   /* NULL: "cpu"; "cuda:1": that GPU; "cuda": the first; "auto": a GPU if one
                           runs the file, else the CPU */
} svdq_session_options;

typedef struct svdq_launch_time {
  const char* label;  /* where in the model; lives as long as the model */
  const char* kernel; /* likewise */
  double microseconds;
} svdq_launch_time;

/* "svdq 0.1.0 (container 1.0, plan 2)". */
SVDQ_API const char* svdq_version(void);

/* This CPU's instruction sets, as `isa_features` spells them, separated by spaces. */
SVDQ_API const char* svdq_cpu_features(void);

/* The GPUs that sessions can be made on, as JSON: {"driver": "13.0", "gpus": [{"device": "cuda:0",
 * "name": …, "compute_capability": "9.0", "target": "cuda:sm_90a", "memory_bytes": …}], "reason":
 * why there are none, or ""}. Valid until the next call on this thread. */
SVDQ_API const char* svdq_gpus(void);

/* Why the last failing call on this thread failed: "[where] 'what': found; do this." Valid until
 * the next failure. */
SVDQ_API const char* svdq_last_error(void);

SVDQ_API svdq_status svdq_open(const char* path, uint32_t flags, svdq_model** model);

/* Sessions made from the model stay valid. NULL is allowed. */
SVDQ_API void svdq_close(svdq_model* model);

/* Everything about the artifact, as JSON (runtime/FORMAT.md). Lives as long as the model. */
SVDQ_API const char* svdq_describe(const svdq_model* model);

/* The index-th input or output; SVDQ_BAD_ARGUMENT past the last. */
SVDQ_API svdq_status svdq_get_port(const svdq_model* model, svdq_direction direction, size_t index,
                                   svdq_port* port);

/* Hash every section and prove every plan in the file. */
SVDQ_API svdq_status svdq_verify(const svdq_model* model);

/* options may be NULL. Reserves the memory of the largest dims. On a GPU the weights go there in
 * the background; sessions of one model on one GPU share them. */
SVDQ_API svdq_status svdq_session_create(svdq_model* model, const svdq_session_options* options,
                                         svdq_session** session);
SVDQ_API void svdq_session_destroy(svdq_session* session);

/* Fill name, dtype, ndim and shape of every output, in order, for inputs of these shapes (data is
 * not read). */
SVDQ_API svdq_status svdq_output_shapes(svdq_session* session, const svdq_tensor* inputs,
                                        size_t num_inputs, svdq_tensor* outputs,
                                        size_t num_outputs);

/* Run. Every input and every output must be given, in any order when named. Allocates nothing. */
SVDQ_API svdq_status svdq_run(svdq_session* session, const svdq_tensor* inputs, size_t num_inputs,
                              const svdq_tensor* outputs, size_t num_outputs);

/* Run in the order of a CUDA stream (CUstream, cudaStream_t) of the session's GPU: after what is in
 * it, before what is added to it later. Returns at once if all outputs are on the device; tensors
 * must live until the stream has passed the run. CU_STREAM_LEGACY, (void*)1, is the default stream;
 * NULL does what svdq_run does. */
SVDQ_API svdq_status svdq_run_on_stream(svdq_session* session, void* stream,
                                        const svdq_tensor* inputs, size_t num_inputs,
                                        const svdq_tensor* outputs, size_t num_outputs);

/* The launches of the last run, in order. Needs options.profile. Valid until the next run of this
 * session. */
SVDQ_API svdq_status svdq_profile(svdq_session* session, const svdq_launch_time** times,
                                  size_t* num_times);

#ifdef __cplusplus
}
#endif
#endif
