// The plan as the runtime holds it: records decoded from bytes, every index already checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "expr.h"
#include "svdq.h"

namespace svdq {

constexpr uint32_t kPlanAbi = 2;
constexpr size_t kMaxDims = 64, kMaxPorts = 4096;
constexpr int64_t kMaxDimValue = int64_t{1} << 40;
constexpr uint32_t kMaxBlockThreads = 1024, kMaxSharedBytes = 1u << 20;
constexpr uint32_t kMaxParamWords =
    512;  // arguments and scalars of a GPU's launch: 4 KiB, what every driver takes

enum class BufferKind : uint32_t { input = 0, output = 1, weight = 2, arena = 3 };
enum class Access : uint32_t { read = 0, write = 1, update = 2 };

using ExprIndex = uint32_t;

struct Dim {
  std::string name;
  int64_t lo, hi, multiple;  // lo and hi are themselves legal (multiples)
};

struct Port {
  std::string name;
  svdq_dtype dtype;
  std::vector<ExprIndex> shape;
};

struct Buffer {
  BufferKind kind;
  uint32_t index;
  ExprIndex num_bytes;
  uint64_t arena_offset;
};

struct Arg {
  uint32_t buffer;
  ExprIndex byte_offset, num_bytes;
  Access access;
};

// A C symbol and, on a GPU, the shape of one task (a block of threads); 0 and 0 on CPUs.
struct KernelEntry {
  std::string name;
  uint32_t threads, shared_bytes;
};

struct Launch {
  uint32_t kernel;
  uint32_t first_arg, num_args;
  uint32_t first_scalar, num_scalars;
  ExprIndex num_tasks, scratch_bytes;
  std::string label;
};

// Where a dim's value is read: axis `axis` of input `input`, whose size is `expr`, of this dim
// alone.
struct Binder {
  uint32_t input, axis;
  ExprIndex expr;
  bool plain;  // the size is the dim itself
};

struct Plan {
  std::vector<Dim> dims;
  std::vector<Instruction> instructions;
  struct Span {
    uint32_t first, count;
  };
  std::vector<Span> exprs;
  std::vector<Port> inputs, outputs;
  std::vector<Buffer> buffers;
  std::vector<KernelEntry> kernels;  // all for a GPU or all for CPUs
  std::vector<Arg> args;
  std::vector<ExprIndex> scalars;
  std::vector<Launch> launches;
  uint64_t arena_bytes = 0;

  // Set by verify_plan.
  std::vector<Interval> bounds;  // per expression
  std::vector<Binder> binders;   // per dim
  uint64_t scratch_bytes = 0;    // per thread, the largest of all launches

  bool is_for_gpu() const { return !kernels.empty() && kernels[0].threads > 0; }

  Code code(ExprIndex expr) const {
    return {instructions.data() + exprs[expr].first, exprs[expr].count};
  }
};

size_t item_bytes(svdq_dtype dtype);
const char* dtype_name(svdq_dtype dtype);
bool dtype_from_name(const std::string& name, svdq_dtype* dtype);

// Throws SVDQ_BAD_PLAN or SVDQ_NEWER_VERSION; `subject` names the file in messages.
Plan decode_plan(const uint8_t* bytes, uint64_t num_bytes, const std::string& subject);

}  // namespace svdq
