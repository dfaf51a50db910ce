#include "expr.h"

#include <algorithm>

#include "checked.h"

namespace svdq {
namespace {

// The arithmetic of one kind of value: add, mul, … return false on overflow or a divisor below 1.
struct Exact {
  using Value = int64_t;
  static Value of(int64_t x) { return x; }
  static bool add(Value a, Value b, Value* r) { return checked_add(a, b, r); }
  static bool mul(Value a, Value b, Value* r) { return checked_mul(a, b, r); }
  static bool neg(Value a, Value* r) { return checked_sub(int64_t{0}, a, r); }
  static bool divisor(Value b) { return b > 0; }
  static Value floordiv(Value a, Value b) { return floor_div(a, b); }
  static Value mod(Value a, Value b) { return floor_mod(a, b); }
  static Value min(Value a, Value b) { return std::min(a, b); }
  static Value max(Value a, Value b) { return std::max(a, b); }
};

struct Bounds {
  using Value = Interval;
  static Value of(int64_t x) { return {x, x}; }
  static bool add(Value a, Value b, Value* r) {
    return checked_add(a.lo, b.lo, &r->lo) && checked_add(a.hi, b.hi, &r->hi);
  }
  static bool mul(Value a, Value b, Value* r) {
    int64_t corners[4];
    if (!checked_mul(a.lo, b.lo, &corners[0]) || !checked_mul(a.lo, b.hi, &corners[1]) ||
        !checked_mul(a.hi, b.lo, &corners[2]) || !checked_mul(a.hi, b.hi, &corners[3])) {
      return false;
    }
    *r = {*std::min_element(corners, corners + 4), *std::max_element(corners, corners + 4)};
    return true;
  }
  static bool neg(Value a, Value* r) {
    return checked_sub(int64_t{0}, a.hi, &r->lo) && checked_sub(int64_t{0}, a.lo, &r->hi);
  }
  static bool divisor(Value b) { return b.lo > 0; }
  static Value floordiv(Value a, Value b) {
    const int64_t corners[4] = {floor_div(a.lo, b.lo), floor_div(a.lo, b.hi), floor_div(a.hi, b.lo),
                                floor_div(a.hi, b.hi)};
    return {*std::min_element(corners, corners + 4), *std::max_element(corners, corners + 4)};
  }
  static Value mod(Value a, Value b) {
    return {0, a.lo >= 0 ? std::min(b.hi - 1, a.hi) : b.hi - 1};
  }
  static Value min(Value a, Value b) { return {std::min(a.lo, b.lo), std::min(a.hi, b.hi)}; }
  static Value max(Value a, Value b) { return {std::max(a.lo, b.lo), std::max(a.hi, b.hi)}; }
};

template <class Arithmetic, class Dim>
EvalError interpret(Code code, const Dim* dims, size_t num_dims,
                    typename Arithmetic::Value* value) {
  typename Arithmetic::Value stack[kMaxStack];
  size_t depth = 0;
  for (uint32_t i = 0; i < code.count; ++i) {
    const Instruction instruction = code.first[i];
    if (instruction.op == Op::constant || instruction.op == Op::dim) {
      if (depth == kMaxStack) return EvalError::too_deep;
      if (instruction.op == Op::constant) {
        stack[depth++] = Arithmetic::of(instruction.operand);
        continue;
      }
      if (instruction.operand < 0 || static_cast<uint64_t>(instruction.operand) >= num_dims) {
        return EvalError::unknown_dim;
      }
      stack[depth++] = dims[instruction.operand];
      continue;
    }
    if (instruction.op == Op::neg) {
      if (depth < 1) return EvalError::underflow;
      if (!Arithmetic::neg(stack[depth - 1], &stack[depth - 1])) return EvalError::overflow;
      continue;
    }
    if (depth < 2) return EvalError::underflow;
    const auto b = stack[--depth];
    auto& a = stack[depth - 1];
    bool fits = true;
    switch (instruction.op) {
      case Op::add:
        fits = Arithmetic::add(a, b, &a);
        break;
      case Op::mul:
        fits = Arithmetic::mul(a, b, &a);
        break;
      case Op::min:
        a = Arithmetic::min(a, b);
        break;
      case Op::max:
        a = Arithmetic::max(a, b);
        break;
      default:
        if (!Arithmetic::divisor(b)) return EvalError::division;
        a = instruction.op == Op::floordiv ? Arithmetic::floordiv(a, b) : Arithmetic::mod(a, b);
    }
    if (!fits) return EvalError::overflow;
  }
  if (depth == 0) return EvalError::underflow;
  if (depth > 1) return EvalError::leftover;
  *value = stack[0];
  return EvalError::none;
}

}  // namespace

const char* describe(EvalError error) {
  switch (error) {
    case EvalError::none:
      return "fine";
    case EvalError::underflow:
      return "takes more values than there are (stack underflow)";
    case EvalError::too_deep:
      return "holds more than 64 values (stack overflow)";
    case EvalError::leftover:
      return "leaves more than one value";
    case EvalError::overflow:
      return "may exceed 64 bits";
    case EvalError::division:
      return "may divide by zero or a negative number";
    case EvalError::unknown_dim:
      return "uses a dim that does not exist";
  }
  return "";
}

EvalError evaluate(Code code, const int64_t* dims, size_t num_dims, int64_t* value) {
  return interpret<Exact>(code, dims, num_dims, value);
}

EvalError bound(Code code, const Interval* ranges, size_t num_dims, Interval* value) {
  return interpret<Bounds>(code, ranges, num_dims, value);
}

}  // namespace svdq
