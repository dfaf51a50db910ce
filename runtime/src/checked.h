// Arithmetic that reports overflow, and little-endian reads from bytes that may be unaligned.
#pragma once

#include <cstdint>
#include <cstring>

namespace svdq {

template <class Int>
[[nodiscard]] bool checked_add(Int a, Int b, Int* sum) {
  return !__builtin_add_overflow(a, b, sum);
}
template <class Int>
[[nodiscard]] bool checked_sub(Int a, Int b, Int* difference) {
  return !__builtin_sub_overflow(a, b, difference);
}
template <class Int>
[[nodiscard]] bool checked_mul(Int a, Int b, Int* product) {
  return !__builtin_mul_overflow(a, b, product);
}

// Floor division and its remainder, b > 0.
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
inline int64_t floor_mod(int64_t a, int64_t b) { return a % b + (a % b < 0 ? b : 0); }

inline uint64_t align_up(uint64_t value, uint64_t alignment) {  // value < 2^63
  return (value + alignment - 1) / alignment * alignment;
}

template <class Int>
Int read_le(const uint8_t* bytes) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  Int value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
#else
#error "the svdqc runtime supports little-endian machines"
#endif
}

}  // namespace svdq
