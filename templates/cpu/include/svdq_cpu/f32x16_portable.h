/* f32x16 in vectors of GCC and Clang, for any machine. Included by isa.h alone. */
#ifndef SVDQ_CPU_F32X16_PORTABLE_H
#define SVDQ_CPU_F32X16_PORTABLE_H

namespace svdq {

struct f32x16 {
  float v __attribute__((vector_size(64)));
};

SVDQ_INLINE f32x16 set1(float x) {
  f32x16 a = {};
  a.v = x - a.v;  // not x + 0, which loses the sign of -0
  return a;
}
SVDQ_INLINE f32x16 load(const float* p) {
  f32x16 a;
  memcpy(&a, p, sizeof a);
  return a;
}
SVDQ_INLINE void store(float* p, f32x16 a) { memcpy(p, &a, sizeof a); }
SVDQ_INLINE f32x16 load_tail(const float* p, int64_t count) {
  f32x16 a = {};
  memcpy(&a, p, static_cast<size_t>(count) * sizeof(float));
  return a;
}
SVDQ_INLINE void store_tail(float* p, f32x16 a, int64_t count) {
  memcpy(p, &a, static_cast<size_t>(count) * sizeof(float));
}
SVDQ_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {a.v + b.v}; }
SVDQ_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {a.v - b.v}; }
SVDQ_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {a.v * b.v}; }
SVDQ_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {a.v / b.v}; }
SVDQ_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {a.v * b.v + c.v}; }
SVDQ_INLINE f32x16 min(f32x16 a, f32x16 b) { return {a.v < b.v ? a.v : b.v}; }
SVDQ_INLINE f32x16 max(f32x16 a, f32x16 b) { return {a.v > b.v ? a.v : b.v}; }
SVDQ_INLINE f32x16 abs(f32x16 a) {
  for (int i = 0; i < 16; ++i) a.v[i] = __builtin_fabsf(a.v[i]);
  return a;
}
SVDQ_INLINE float reduce_max(f32x16 a) {
  float largest = a.v[0];
  for (int i = 1; i < 16; ++i) largest = a.v[i] > largest ? a.v[i] : largest;
  return largest;
}
SVDQ_INLINE f32x16 load_bf16(const uint16_t* p) {
  float wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = bf16_to_f32(p[i]);
  return load(wide);
}
SVDQ_INLINE f32x16 load_f16(const uint16_t* p) {
  float wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = f16_to_f32(p[i]);
  return load(wide);
}
SVDQ_INLINE void store_f16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(a.v[i]);
}
SVDQ_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = f32_to_bf16(a.v[i]);
}

}  // namespace svdq

#endif
