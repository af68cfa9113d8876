// Vectors of 16 numbers, which the compiler maps to what a processor has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "interface.h"

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int WIDE = 16;
typedef float Vec __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));
template <int LANES>  // 4 or 8 of them, where 16 would be mostly padding
struct Short {
  typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
};
typedef int32_t VecInt __attribute__((vector_size(WIDE * sizeof(int32_t))));

INLINE int padded(int n) { return (n + WIDE - 1) / WIDE * WIDE; }

// Numbers on a 64-byte boundary, all zero: a load of 16 of them never crosses a cache line.
struct Free {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
using Floats = std::unique_ptr<float[], Free>;
Floats floats(int64_t count) {
  float* p = static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t(64)));
  std::fill(p, p + count, 0.0f);
  return Floats(p);
}

INLINE Vec all(float x) {
  Vec v;
  for (int i = 0; i < WIDE; i++) v[i] = x;
  return v;
}

// Written so that a NaN in x comes out as NaN.
INLINE Vec least(Vec x, Vec bound) { return bound < x ? bound : x; }
INLINE Vec most(Vec x, Vec bound) { return bound > x ? bound : x; }

// e^y - 1 with full relative precision near 0: y = n ln 2 + r, |r| <= ln 2 / 2, Taylor in r, then
// 2^n (e^r - 1) + (2^n - 1). y must lie in [-80, 80].
INLINE Vec expm1_of(Vec y) {
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec n = (y * 1.44269504f + magic) - magic;
  Vec r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = all(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;
  VecInt bits = (__builtin_convertvector(n, VecInt) + 127) << 23;
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power + (power - 1.0f);
}

INLINE Vec activated(Vec x, int kind) {
  if (kind == RELU) return most(x, all(0));
  if (kind == ELU) return x <= 0 ? expm1_of(least(most(x, all(-80)), all(0))) : x;
  const Vec u = expm1_of(least(most(2.0f * x, all(-40)), all(40)));
  return u / (u + 2.0f);  // tanh
}

INLINE Vec sigmoid(Vec x) {
  const Vec u = expm1_of(least(most(x, all(-80)), all(80)));
  return (u + 1.0f) / (u + 2.0f);
}

// The derivative, from the value that came out.
INLINE Vec slope(Vec y, int kind) {
  if (kind == RELU) return y > 0 ? all(1) : all(0);
  if (kind == ELU) return y > 0 ? all(1) : y + 1.0f;
  return 1.0f - y * y;
}

}  // namespace
