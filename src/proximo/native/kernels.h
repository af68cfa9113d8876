// Kernels on vectors, built for several processors; which of them run is chosen when the library is loaded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

// C = start + A B. A[i][k] stands at a[i * a_row + k * a_column]; the rows of B, C and start lie b_row,
// c_row and start_row apart (0: one row for all), and start may be null for 0. `columns`, of B and C, is a
// multiple of 16; the next 16 columns of B lie b_next on. Where only the first few columns are asked for, `few` is
// their number, and the others stay as they are.
struct Product {
  int rows, columns, depth;
  const float* a;
  int64_t a_row, a_column;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  const float* start;
  int64_t start_row;
  int64_t b_next = WIDE;
  int few = 0;
};

template <int ROWS, int COLUMNS>
INLINE void tile(const Product& p, int64_t i, int64_t j) {
  Vec sum[ROWS][COLUMNS];
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < COLUMNS; n++)
      sum[m][n] = p.start ? *(const Vec*)(p.start + (i + m) * p.start_row + j + n * WIDE) : all(0);
  const float* a = p.a + i * p.a_row;
  const float* b = p.b + j / WIDE * p.b_next;
  const int64_t a_row = p.a_row, a_column = p.a_column, b_row = p.b_row, b_next = p.b_next;
  for (int k = p.depth; k > 0; k--, a += a_column, b += b_row) {
    Vec line[COLUMNS];
    for (int n = 0; n < COLUMNS; n++) line[n] = *(const Vec*)(b + n * b_next);
    for (int m = 0; m < ROWS; m++)
      for (int n = 0; n < COLUMNS; n++) sum[m][n] += a[m * a_row] * line[n];
  }
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < COLUMNS; n++) *(Vec*)(p.c + (i + m) * p.c_row + j + n * WIDE) = sum[m][n];
}

template <int ROWS, int COLUMNS>
INLINE void last_rows(const Product& p, int64_t i, int64_t j) {
  if constexpr (ROWS > 0) {
    if (p.rows - i == ROWS)
      tile<ROWS, COLUMNS>(p, i, j);
    else
      last_rows<ROWS - 1, COLUMNS>(p, i, j);
  }
}

template <int ROWS, int COLUMNS>
INLINE void strip(const Product& p, int64_t j) {
  int64_t i = 0;
  for (; i + ROWS <= p.rows; i += ROWS) tile<ROWS, COLUMNS>(p, i, j);
  last_rows<ROWS - 1, COLUMNS>(p, i, j);
}

// Rows i, ... of a product of few columns.
template <int LANES, int ROWS>
INLINE void short_rows(const Product& p, int64_t i) {
  using Vec = typename Short<LANES>::Vec;
  Vec sum[ROWS];
  for (int m = 0; m < ROWS; m++) sum[m] = p.start ? *(const Vec*)(p.start + (i + m) * p.start_row) : Vec{};
  const float *a = p.a + i * p.a_row, *b = p.b;
  for (int k = p.depth; k > 0; k--, a += p.a_column, b += p.b_row) {
    const Vec line = *(const Vec*)b;
    for (int m = 0; m < ROWS; m++) sum[m] += a[m * p.a_row] * line;
  }
  for (int m = 0; m < ROWS; m++) *(Vec*)(p.c + (i + m) * p.c_row) = sum[m];
}

template <int LANES>
INLINE void multiply_few(const Product& p) {
  int64_t i = 0;
  for (; i + 8 <= p.rows; i += 8) short_rows<LANES, 8>(p, i);
  for (; i < p.rows; i++) short_rows<LANES, 1>(p, i);
}

template <int ROWS, int COLUMNS>
INLINE void multiply_by_tiles(const Product& p) {
  if (p.few && p.few <= 4) return multiply_few<4>(p);
  if (p.few && p.few <= 8) return multiply_few<8>(p);
  int64_t j = 0;
  for (; j + COLUMNS * WIDE <= p.columns; j += COLUMNS * WIDE) strip<ROWS, COLUMNS>(p, j);
  if constexpr (COLUMNS > 1)
    for (; j < p.columns; j += WIDE) strip<ROWS, 1>(p, j);
}

INLINE void activate_in(float* x, int64_t count, int kind) {
  for (int64_t i = 0; i < count; i += WIDE) *(Vec*)(x + i) = activated(*(const Vec*)(x + i), kind);
}

INLINE void scale_by_slope_in(float* gradient, const float* out, int64_t count, int kind) {
  for (int64_t i = 0; i < count; i += WIDE) *(Vec*)(gradient + i) *= slope(*(const Vec*)(out + i), kind);
}

// sum += the rows of x.
INLINE void add_rows_in(float* sum, const float* x, int rows, int columns) {
  for (int j = 0; j < columns; j += WIDE) {
    Vec total = *(const Vec*)(sum + j);
    for (int m = 0; m < rows; m++) total += *(const Vec*)(x + (int64_t)m * columns + j);
    *(Vec*)(sum + j) = total;
  }
}

// to[k][i] = from[i][k] for i < rows and k < columns; the rows of both lie from_row and to_row apart.
INLINE void turn_one_by_one(const float* from, int64_t from_row, float* to, int64_t to_row, int rows, int columns) {
  // By stripes of 16, so that what is read and what is written both stay in the cache.
  for (int j = 0; j < rows; j += WIDE)
    for (int k = 0; k < columns; k++)
      for (int i = j; i < std::min(j + WIDE, rows); i++) to[k * to_row + i] = from[i * from_row + k];
}

#if defined(__clang__) || !defined(__GNUC__)
INLINE void turn_by_squares(const float* from, int64_t from_row, float* to, int64_t to_row, int rows, int columns) {
  turn_one_by_one(from, from_row, to, to_row, rows, columns);
}
#else
// Of 16 vectors, exchange the blocks of SIZE x SIZE numbers beside the diagonal in each square of twice that size.
template <int SIZE>
INLINE void exchange(Vec* x) {
  VecInt upper, lower;
  for (int i = 0; i < WIDE; i++) {
    upper[i] = i & SIZE ? WIDE + i - SIZE : i;
    lower[i] = i & SIZE ? WIDE + i : i + SIZE;
  }
  for (int i = 0; i < WIDE; i++)
    if (!(i & SIZE)) {
      const Vec above = x[i], below = x[i + SIZE];
      x[i] = __builtin_shuffle(above, below, upper);
      x[i + SIZE] = __builtin_shuffle(above, below, lower);
    }
}

INLINE void turn_by_squares(const float* from, int64_t from_row, float* to, int64_t to_row, int rows, int columns) {
  const int whole_rows = rows / WIDE * WIDE, whole_columns = columns / WIDE * WIDE;
  for (int i = 0; i < whole_rows; i += WIDE)
    for (int k = 0; k < whole_columns; k += WIDE) {
      Vec square[WIDE];
      for (int m = 0; m < WIDE; m++) square[m] = *(const Vec*)(from + (i + m) * from_row + k);
      exchange<8>(square), exchange<4>(square), exchange<2>(square), exchange<1>(square);
      for (int m = 0; m < WIDE; m++) *(Vec*)(to + (k + m) * to_row + i) = square[m];
    }
  turn_one_by_one(from + whole_columns, from_row, to + whole_columns * to_row, to_row, whole_rows,
                  columns - whole_columns);
  turn_one_by_one(from + whole_rows * from_row, from_row, to + whole_rows, to_row, rows - whole_rows, columns);
}
#endif

INLINE double square_of(const float* x, int64_t count) {
  double part[WIDE] = {}, total = 0;
  int64_t k = 0;
  for (; k + WIDE <= count; k += WIDE)
    for (int lane = 0; lane < WIDE; lane++) part[lane] += (double)x[k + lane] * x[k + lane];
  for (; k < count; k++) total += (double)x[k] * x[k];
  for (int lane = 0; lane < WIDE; lane++) total += part[lane];
  return total;
}

// One step of some rows of a memory's cells, each of `size` units. A row of gates is made of blocks of that size: r, z,
// n of a GRU, i, f, g, o of an LSTM, in PyTorch's order. They come as sums and are left as what the sigmoid or tanh
// makes of them; on the way back they are left as the gradients by those sums.
struct Cells {
  int rows, size;
  int64_t gates_row;
  float* gates;
  float* side;                      // of a GRU, the state's own part of the gates: n takes it times r
  const float *state, *inner;       // what was remembered before, of an LSTM both
  float *out, *out_inner;           // and after
  float *d_out, *d_inner, *d_state;  // gradients by the last three; d_state of the row before, or null
};

INLINE void lstm_forth_in(const Cells& x) {
  const int64_t size = x.size;
  for (int64_t m = 0; m < x.rows; m++)
    for (int64_t j = 0; j < size; j += WIDE) {
      Vec* g[4];
      for (int k = 0; k < 4; k++) g[k] = (Vec*)(x.gates + m * x.gates_row + k * size + j);
      const int64_t at = m * size + j;
      const Vec i = sigmoid(*g[0]), f = sigmoid(*g[1]), c = activated(*g[2], TANH), o = sigmoid(*g[3]);
      const Vec inner = f * *(const Vec*)(x.inner + at) + i * c;
      *g[0] = i, *g[1] = f, *g[2] = c, *g[3] = o;
      *(Vec*)(x.out_inner + at) = inner;
      *(Vec*)(x.out + at) = o * activated(inner, TANH);
    }
}

INLINE void lstm_back_in(const Cells& x) {
  const int64_t size = x.size;
  for (int64_t m = 0; m < x.rows; m++)
    for (int64_t j = 0; j < size; j += WIDE) {
      Vec* g[4];
      for (int k = 0; k < 4; k++) g[k] = (Vec*)(x.gates + m * x.gates_row + k * size + j);
      const int64_t at = m * size + j;
      const Vec i = *g[0], f = *g[1], c = *g[2], o = *g[3];
      const Vec seen = activated(*(const Vec*)(x.out_inner + at), TANH), d_out = *(const Vec*)(x.d_out + at);
      const Vec d_inner = *(const Vec*)(x.d_inner + at) + d_out * o * (1.0f - seen * seen);
      *g[0] = d_inner * c * i * (1.0f - i);
      *g[1] = d_inner * *(const Vec*)(x.inner + at) * f * (1.0f - f);
      *g[2] = d_inner * i * (1.0f - c * c);
      *g[3] = d_out * seen * o * (1.0f - o);
      *(Vec*)(x.d_inner + at) = d_inner * f;
    }
}

INLINE void gru_forth_in(const Cells& x) {
  const int64_t size = x.size;
  for (int64_t m = 0; m < x.rows; m++)
    for (int64_t j = 0; j < size; j += WIDE) {
      Vec *g[3], *s[3];
      for (int k = 0; k < 3; k++) {
        g[k] = (Vec*)(x.gates + m * x.gates_row + k * size + j);
        s[k] = (Vec*)(x.side + m * x.gates_row + k * size + j);
      }
      const int64_t at = m * size + j;
      const Vec r = sigmoid(*g[0] + *s[0]), z = sigmoid(*g[1] + *s[1]);
      const Vec n = activated(*g[2] + r * *s[2], TANH);
      *g[0] = r, *g[1] = z, *g[2] = n;
      *(Vec*)(x.out + at) = (1.0f - z) * n + z * *(const Vec*)(x.state + at);
    }
}

INLINE void gru_back_in(const Cells& x) {
  const int64_t size = x.size;
  for (int64_t m = 0; m < x.rows; m++)
    for (int64_t j = 0; j < size; j += WIDE) {
      Vec *g[3], *s[3];
      for (int k = 0; k < 3; k++) {
        g[k] = (Vec*)(x.gates + m * x.gates_row + k * size + j);
        s[k] = (Vec*)(x.side + m * x.gates_row + k * size + j);
      }
      const int64_t at = m * size + j;
      const Vec r = *g[0], z = *g[1], n = *g[2], d_out = *(const Vec*)(x.d_out + at);
      const Vec d_n = d_out * (1.0f - z) * (1.0f - n * n);
      const Vec d_r = d_n * *s[2] * r * (1.0f - r);
      const Vec d_z = d_out * (*(const Vec*)(x.state + at) - n) * z * (1.0f - z);
      *g[0] = *s[0] = d_r;
      *g[1] = *s[1] = d_z;
      *g[2] = d_n;
      *s[2] = d_n * r;
      if (x.d_state) *(Vec*)(x.d_state + at) += d_out * z;
    }
}

// y[k] += decay[k] later[k] and decay[k] *= further[k]; what is later may overlap with what lies before it.
INLINE void scan_in(float* y, const float* later, float* decay, const float* further, int64_t count) {
  int64_t k = 0;
  for (; k + WIDE <= count; k += WIDE) {
    const Vec factor = *(const Vec*)(decay + k), sum = *(const Vec*)(y + k) + factor * *(const Vec*)(later + k);
    const Vec product = factor * *(const Vec*)(further + k);
    *(Vec*)(y + k) = sum;
    *(Vec*)(decay + k) = product;
  }
  for (; k < count; k++) {
    y[k] += decay[k] * later[k];
    decay[k] *= further[k];
  }
}

struct Descent {
  int32_t optimizer;
  float rate, decay1, decay2, eps;
  double bias1, root_bias2;  // 1 - decay1^step and sqrt(1 - decay2^step)
  float scale;               // of the gradient, from the norm clip
};

// One step of the optimizer, as torch.optim takes it.
INLINE void descend_in(const Descent& d, int64_t count, float* __restrict w, float* __restrict g,
                       float* __restrict first, float* __restrict second) {
  const float b1 = d.decay1, b2 = d.decay2, eps = d.eps, scale = d.scale, rate = d.rate;
  const float stride = (float)(d.rate / d.bias1), root = (float)d.root_bias2;
  if (d.optimizer == ADAM)
    for (int64_t k = 0; k < count; k++) {
      const float x = g[k] * scale;
      g[k] = x;
      first[k] += (1 - b1) * (x - first[k]);
      second[k] = b2 * second[k] + (1 - b2) * x * x;
      w[k] -= stride * first[k] / (std::sqrt(second[k]) / root + eps);
    }
  else if (d.optimizer == RMSPROP)
    for (int64_t k = 0; k < count; k++) {
      const float x = g[k] * scale;
      g[k] = x;
      second[k] = b2 * second[k] + (1 - b2) * x * x;
      w[k] -= rate * x / (std::sqrt(second[k]) + eps);
    }
  else
    for (int64_t k = 0; k < count; k++) {
      g[k] *= scale;
      w[k] -= rate * g[k];
    }
}

// The kernels for one kind of processor. Tiles are as large as its registers hold.
struct Kernels {
  void (*multiply)(const Product&);
  void (*activate)(float*, int64_t, int);
  void (*scale_by_slope)(float*, const float*, int64_t, int);
  void (*add_rows)(float*, const float*, int, int);
  void (*turn)(const float*, int64_t, float*, int64_t, int, int);
  double (*square)(const float*, int64_t);
  void (*scan)(float*, const float*, float*, const float*, int64_t);
  void (*descend)(const Descent&, int64_t, float*, float*, float*, float*);
  void (*forth[3])(const Cells&);  // by Remembers
  void (*back[3])(const Cells&);
  const char* name;
};

#define BUILD_KERNELS(NAME, TARGET, ROWS, COLUMNS, TURN)                                                   \
  namespace NAME {                                                                                         \
  TARGET void multiply(const Product& p) { multiply_by_tiles<ROWS, COLUMNS>(p); }                          \
  TARGET void activate(float* x, int64_t n, int kind) {                                                    \
    if (kind == TANH) activate_in(x, n, TANH);                                                             \
    else activate_in(x, n, kind);                                                                          \
  }                                                                                                        \
  TARGET void scale_by_slope(float* g, const float* y, int64_t n, int kind) {                              \
    if (kind == TANH) scale_by_slope_in(g, y, n, TANH);                                                    \
    else scale_by_slope_in(g, y, n, kind);                                                                 \
  }                                                                                                        \
  TARGET void add_rows(float* s, const float* x, int m, int n) { add_rows_in(s, x, m, n); }                \
  TARGET void turn(const float* x, int64_t x_row, float* y, int64_t y_row, int m, int n) {                 \
    TURN(x, x_row, y, y_row, m, n);                                                                        \
  }                                                                                                        \
  TARGET double square(const float* x, int64_t n) { return square_of(x, n); }                              \
  TARGET void scan(float* y, const float* later, float* d, const float* further, int64_t n) {              \
    scan_in(y, later, d, further, n);                                                                      \
  }                                                                                                        \
  TARGET void descend(const Descent& d, int64_t n, float* w, float* g, float* first, float* second) {      \
    descend_in(d, n, w, g, first, second);                                                                 \
  }                                                                                                        \
  TARGET void lstm_forth(const Cells& x) { lstm_forth_in(x); }                                             \
  TARGET void lstm_back(const Cells& x) { lstm_back_in(x); }                                               \
  TARGET void gru_forth(const Cells& x) { gru_forth_in(x); }                                               \
  TARGET void gru_back(const Cells& x) { gru_back_in(x); }                                                 \
  constexpr Kernels kernels = {multiply, activate, scale_by_slope, add_rows, turn, square, scan, descend,  \
                               {nullptr, gru_forth, lstm_forth}, {nullptr, gru_back, lstm_back}, #NAME};   \
  }

#if defined(__x86_64__)
BUILD_KERNELS(plain, , 3, 1, turn_one_by_one)
BUILD_KERNELS(avx2, __attribute__((target("avx2,fma"))), 6, 1, turn_one_by_one)
BUILD_KERNELS(avx512, __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw"))), 6, 2, turn_by_squares)
#else
BUILD_KERNELS(plain, , 6, 1, turn_one_by_one)
#endif

// 0: what every processor of this kind has; 1: AVX2; 2: AVX-512.
Kernels kernels_of(int level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (level >= 2 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
    return avx512::kernels;
  if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels;
#endif
  return plain::kernels;
}

Kernels kernel = kernels_of(2);

}  // namespace
