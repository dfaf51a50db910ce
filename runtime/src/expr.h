// Integer expressions over the plan's dims: postfix code, evaluated exactly or as intervals.
#pragma once

#include <cstddef>
#include <cstdint>

namespace svdq {

enum class Op : uint32_t {
  constant = 0,
  dim = 1,
  add = 2,
  mul = 3,
  floordiv = 4,
  mod = 5,
  min = 6,
  max = 7,
  neg = 8
};
constexpr uint32_t kNumOps = 9;
constexpr size_t kMaxStack = 64;

struct Instruction {
  Op op;
  int64_t operand;  // of constant: its value; of dim: its index; else 0
};

struct Code {
  const Instruction* first;
  uint32_t count;
};

struct Interval {
  int64_t lo, hi;
};

enum class EvalError { none, underflow, too_deep, leftover, overflow, division, unknown_dim };
const char* describe(EvalError error);

// Both check everything, so a hostile expression gives an error and nothing else.
EvalError evaluate(Code code, const int64_t* dims, size_t num_dims, int64_t* value);
// An interval holding every value for dims in `ranges`. Fails if some value might overflow or
// divide by less than 1, so an expression that passes cannot fail in `evaluate` for legal dims.
EvalError bound(Code code, const Interval* ranges, size_t num_dims, Interval* value);

}  // namespace svdq
