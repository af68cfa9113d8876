// PPO and its relatives on multilayer perceptrons, with an LSTM or GRU behind them if need be: act, evaluate, and a
// whole update (all epochs and minibatches: gather, forward, loss, backward, norm clip, optimizer, KL stop) in one
// call each.
//
// The same numbers as PyTorch gives with nets/ and algorithms/, up to rounding; tests/native holds them
// side by side. Plain C interface on raw pointers; single precision, row-major.
//
// From the bottom up: vectors of 16 numbers, which the compiler maps to what a processor has; a handful
// of kernels on them, built for several processors and chosen when the library is loaded; layers and
// networks; heads, from their outputs to actions; one Lane for the actor and one for the critic, which
// share nothing but the gradient's norm and so can run on a thread each with the same bits; and the
// interface.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int WIDE = 16;
typedef float Vec __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(WIDE * sizeof(int32_t))));

enum Activation { TANH = 0, RELU = 1, ELU = 2 };
enum ValueLoss { MSE = 0, HUBER = 1, CLIPPED = 2 };
enum Optimizer { ADAM = 0, RMSPROP = 1, SGD = 2 };
enum Objective { RATIO = 0, LOG = 1, NONE = 2 };  // the surrogate, the policy gradient, the critic alone
enum Kind { CATEGORICAL = 0, BERNOULLI = 1, GAUSSIAN = 2 };
enum Remembers { NOTHING = 0, GRU = 1, LSTM = 2 };
enum Number { INT64 = 0, FLOAT32 = 1, FLOAT64 = 2 };

constexpr float LOG_STD_MIN = -10.0f, LOG_STD_MAX = 2.0f;  // these three: functional/distributions.py
constexpr float ILLEGAL = -1e9f;
constexpr float STANDARDIZE_EPS = 1e-8f;                   // functional/masked.py
constexpr float LOG_RATIO_MAX = 80.0f;                     // functional/losses.py
constexpr int MAX_LAYERS = 6;
constexpr int CHUNK = 64;  // rows that go through a network at once: their activations stay in the cache

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

// ---- Vectors -------------------------------------------------------------------------------------------

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

// ---- Kernels -------------------------------------------------------------------------------------------

// C = start + A B. A[i][k] stands at a[i * a_row + k * a_column]; the rows of B, C and start lie b_row,
// c_row and start_row apart (0: one row for all), and start may be null for 0. `columns`, of B and C, is a
// multiple of 16; the next 16 columns of B lie b_next on.
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

template <int ROWS, int COLUMNS>
INLINE void multiply_by_tiles(const Product& p) {
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
  double (*square)(const float*, int64_t);
  void (*descend)(const Descent&, int64_t, float*, float*, float*, float*);
  void (*forth[3])(const Cells&);  // by Remembers
  void (*back[3])(const Cells&);
};

#define BUILD_KERNELS(NAME, TARGET, ROWS, COLUMNS)                                                         \
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
  TARGET double square(const float* x, int64_t n) { return square_of(x, n); }                              \
  TARGET void descend(const Descent& d, int64_t n, float* w, float* g, float* first, float* second) {      \
    descend_in(d, n, w, g, first, second);                                                                 \
  }                                                                                                        \
  TARGET void lstm_forth(const Cells& x) { lstm_forth_in(x); }                                             \
  TARGET void lstm_back(const Cells& x) { lstm_back_in(x); }                                               \
  TARGET void gru_forth(const Cells& x) { gru_forth_in(x); }                                               \
  TARGET void gru_back(const Cells& x) { gru_back_in(x); }                                                 \
  constexpr Kernels kernels = {multiply, activate, scale_by_slope, add_rows, square, descend,              \
                               {nullptr, gru_forth, lstm_forth}, {nullptr, gru_back, lstm_back}};          \
  }

#if defined(__x86_64__)
BUILD_KERNELS(plain, , 3, 1)
BUILD_KERNELS(avx2, __attribute__((target("avx2,fma"))), 6, 1)
BUILD_KERNELS(avx512, __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw"))), 6, 2)
#else
BUILD_KERNELS(plain, , 6, 1)
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

// ---- Networks ------------------------------------------------------------------------------------------

struct Layer {
  int inputs, outputs, wide_in, wide_out;
  int64_t offset;  // of its weights [outputs, inputs] in the flat vector; biases follow
  bool turned;     // whether its weight gradient is gathered as [inputs, wide_out]: less padding
  Floats forth;    // weights [inputs, wide_out], for the way forward
  Floats back;     // weights [outputs, wide_in], for the way back
  Floats bias;     // [wide_out]
  Floats out;      // [CHUNK, wide_out] after the activation
  Floats gradient;         // [CHUNK, wide_out] of the loss by what came out
  Floats weight_gradient;  // [outputs, wide_in] or [inputs, wide_out]
  Floats bias_gradient;    // [wide_out]
};

class Net {
 public:
  // The last layer has no activation where `linear_end`. Without `learning` there is no way back.
  Net(int activation, bool linear_end, bool learning)
      : activation_(activation), linear_end_(linear_end), learning_(learning) {}

  void add(int inputs, int outputs, int64_t& offset) {
    Layer l{};
    l.inputs = inputs, l.outputs = outputs, l.offset = offset;
    l.wide_in = padded(inputs), l.wide_out = padded(outputs);
    l.turned = (int64_t)inputs * l.wide_out < (int64_t)outputs * l.wide_in;
    l.forth = floats((int64_t)inputs * l.wide_out);
    l.bias = floats(l.wide_out);
    l.out = floats((int64_t)CHUNK * l.wide_out);
    if (learning_) {
      l.back = floats((int64_t)outputs * l.wide_in);
      l.gradient = floats((int64_t)CHUNK * l.wide_out);
      l.weight_gradient = floats(l.turned ? (int64_t)inputs * l.wide_out : (int64_t)outputs * l.wide_in);
      l.bias_gradient = floats(l.wide_out);
    }
    offset += (int64_t)inputs * outputs + outputs;
    layers_.push_back(std::move(l));
  }

  bool empty() const { return layers_.empty(); }
  const float* out() const { return layers_.back().out.get(); }
  float* gradient() { return layers_.back().gradient.get(); }
  int width() const { return layers_.back().wide_out; }  // of out and gradient

  void load(const float* flat) {
    for (Layer& l : layers_) {
      const float* w = flat + l.offset;
      for (int i = 0; i < l.outputs && learning_; i++)
        std::memcpy(&l.back[(int64_t)i * l.wide_in], w + (int64_t)i * l.inputs, l.inputs * sizeof(float));
      // By squares of 16, so that what is read and what is written both stay in the cache.
      for (int j = 0; j < l.outputs; j += WIDE)
        for (int k = 0; k < l.inputs; k++)
          for (int i = j; i < std::min(j + WIDE, l.outputs); i++)
            l.forth[(int64_t)k * l.wide_out + i] = w[(int64_t)i * l.inputs + k];
      std::memcpy(l.bias.get(), w + (int64_t)l.outputs * l.inputs, l.outputs * sizeof(float));
    }
  }

  void forward(const float* x, int stride, int rows) {
    for (size_t n = 0; n < layers_.size(); n++) {
      Layer& l = layers_[n];
      kernel.multiply({rows, l.wide_out, l.inputs, x, stride, 1, l.forth.get(), l.wide_out, l.out.get(),
                       l.wide_out, l.bias.get(), 0});
      if (activates(n)) kernel.activate(l.out.get(), (int64_t)rows * l.wide_out, activation_);
      x = l.out.get();
      stride = l.wide_out;
    }
  }

  // From the gradient by the last layer's output to those by all weights, set or, for `more`, added up.
  // `down`, [rows, padded(inputs)], takes the gradient by the input where it is asked for.
  void backward(const float* x, int stride, int rows, bool more, float* down) {
    for (int n = (int)layers_.size() - 1; n >= 0; n--) {
      Layer& l = layers_[n];
      float* g = l.gradient.get();
      if (activates(n)) kernel.scale_by_slope(g, l.out.get(), (int64_t)rows * l.wide_out, activation_);
      const float* below = n ? layers_[n - 1].out.get() : x;
      const int below_stride = n ? l.wide_in : stride;
      float* sum = l.weight_gradient.get();
      const float* start = more ? sum : nullptr;
      if (l.turned)
        kernel.multiply({l.inputs, l.wide_out, rows, below, 1, below_stride, g, l.wide_out, sum, l.wide_out,
                         start, l.wide_out});
      else
        kernel.multiply({l.outputs, l.wide_in, rows, g, 1, l.wide_out, below, below_stride, sum, l.wide_in,
                         start, l.wide_in});
      if (!more) std::fill_n(l.bias_gradient.get(), l.wide_out, 0.0f);
      kernel.add_rows(l.bias_gradient.get(), g, rows, l.wide_out);
      float* to = n ? layers_[n - 1].gradient.get() : down;
      if (to)
        kernel.multiply({rows, l.wide_in, l.outputs, g, l.wide_out, 1, l.back.get(), l.wide_in, to, l.wide_in,
                         nullptr, 0});
    }
  }

  void store_gradient(float* flat) const {
    for (const Layer& l : layers_) {
      float* w = flat + l.offset;
      for (int i = 0; i < l.outputs; i++)
        if (l.turned)
          for (int k = 0; k < l.inputs; k++) w[(int64_t)i * l.inputs + k] = l.weight_gradient[(int64_t)k * l.wide_out + i];
        else
          std::memcpy(w + (int64_t)i * l.inputs, &l.weight_gradient[(int64_t)i * l.wide_in], l.inputs * sizeof(float));
      std::memcpy(w + (int64_t)l.outputs * l.inputs, l.bias_gradient.get(), l.outputs * sizeof(float));
    }
  }

 private:
  bool activates(size_t n) const { return !(linear_end_ && n + 1 == layers_.size()); }

  int activation_;
  bool linear_end_, learning_;
  std::vector<Layer> layers_;
};

}  // namespace

// ---- Interface: mirrors the structures of native/library.py, field by field ----------------------------

extern "C" {

struct ProximoHead {  // of a simple action space: n choices, K bits or A dimensions
  int32_t kind, size;
  int32_t squash, tanh_mean, softplus;  // a Gaussian's action through a tanh, its mean within its bounds,
                                        // its deviation from the state
  int64_t start;                        // the first choice, as the env counts them
  const float *low, *high;              // [size] bounds of continuous actions
  const float *middle, *reach;          // [size] their middle and half width, for tanh_mean
};

// A row of actions, and of the noise that they are drawn from, has a column for each choice, bit and
// dimension; a row of parameters has log p, the logits of the bits, or means and then log deviations.
struct ProximoPolicy {
  int32_t inputs, columns;  // of an observation: what is legal stands behind the inputs, if there are masks
  int32_t hidden_count, hidden[MAX_LAYERS];  // of the actor
  int32_t critic_count, critic_hidden[MAX_LAYERS];
  int32_t activation, shared, head_count;
  int32_t memory, recurrent_size, state_size;  // what remembers, and the numbers of a row of recurrent states
  float obs_clip;
  const ProximoHead* heads;
  float *actor, *critic;    // flat weights, in the order of ActorCritic; shared: critic is null
  const float *obs_shift, *obs_scale;        // [inputs], or null: observations are used as they are
  const uint8_t* measured;                   // [inputs] which of them are standardised, or null: all
  const float *return_shift, *return_scale;  // [], or null: the critic's output is the value
};

struct ProximoRollout {  // T steps of N envs
  int64_t num_envs;
  const float* obs;    // [T, N, columns]
  const float* noise;  // [T, N, actions] uniform or, for a Gaussian, normal; null: the most likely actions
  int64_t* choice;     // [T, N, actions] if there is no Gaussian
  float* action;       // [T, N, actions] else
  void* env_action;         // [T, N, actions] what the envs are given
  float* parameters;   // [2, N, P] of the first step and of the latest one
  int32_t env_action_type;
  float* recurrent_state;                 // [N, state_size] what is remembered; 0 behind an episode's end
  const uint8_t *done, *valid;  // [T, N]
};

struct ProximoBatch {  // B samples
  int64_t count;
  const float* obs;  // [B, columns]
  const int64_t* choice;
  const float* action;
  const float *log_prob, *value, *advantage, *target;
  const float* parameters;  // [B, P] of the distributions that acted
  const uint8_t* begins;    // [B] for a memory: whether a stretch begins there
  const float* initial_state;       // [B, state_size] and what was remembered before it
};

struct ProximoEvaluation {  // of B samples
  float *log_prob, *entropy, *value, *parameters;  // each may be null
  float* recurrent_state;                                    // [S, state_size] behind every stretch, or null
};

struct ProximoPart {  // the actor's parameters, or the critic's
  float *gradient, *first, *second;
  int64_t size;
  float rate;
};

struct ProximoUpdate {
  int32_t epochs, objective, value_loss, standardize, optimizer, threads;
  float clip, clip_high;  // infinite: none
  float dual_clip, beta;  // 0: none
  float entropy_coef, value_coef, value_clip, huber_delta;
  float max_norm, target_kl;  // 0: none
  float decay1, decay2, eps;
  int64_t step;           // of the optimizer, before this update
  const int64_t* order;   // [epochs, B]
  const int64_t* bounds;  // of the minibatches: for each epoch 0, ..., B
  ProximoPart parts[2];   // actor (with a shared trunk: all), critic
  double sums[4];         // loss, policy loss, value loss, gradient norm, added up over the steps taken
  int32_t epochs_done, steps_done;
  int32_t finite;         // 0: it ended at a minibatch whose loss or gradient was not, before its step
  float loss, norm;       // of that minibatch
};
}

namespace {

// A row of a categorical distribution, from its logits.
INLINE void log_softmax(const float* z, int n, float* log_p) {
  float top = z[0], sum = 0;
  for (int j = 1; j < n; j++) top = std::max(top, z[j]);
  for (int j = 0; j < n; j++) sum += std::exp(z[j] - top);
  const float normalizer = top + std::log(sum);
  for (int j = 0; j < n; j++) log_p[j] = z[j] - normalizer;
}

// The same among the legal actions.
INLINE void log_softmax(const float* z, const float* legal, int n, float* log_p) {
  for (int j = 0; j < n; j++) log_p[j] = legal[j] > 0.5f ? z[j] : -INFINITY;
  log_softmax(log_p, n, log_p);
  for (int j = 0; j < n; j++)
    if (!(legal[j] > 0.5f)) log_p[j] = ILLEGAL;
}

INLINE float bounded(float x, float low, float high) { return std::min(std::max(x, low), high); }

INLINE float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

INLINE float log_sigmoid(float x) { return std::min(x, 0.0f) - std::log1p(std::exp(-std::fabs(x))); }

// ---- Heads ---------------------------------------------------------------------------------------------

// A simple head, and the first of its columns: in rows of outputs, of actions and their noise, of
// parameters and of masks, and among the free deviations.
struct Head : ProximoHead {
  int output, action, parameter, legal, deviation;
  float entropy;  // of the state that was seen last, once it was asked for
};

struct Action {  // a row of them: whole numbers, or floats, of which some may stand for whole ones
  const int64_t* choice;
  const float* real;

  INLINE int64_t whole(int k) const { return choice ? choice[k] : (int64_t)real[k]; }
};

// The distribution over actions in one state after the other: independent heads side by side.
class Heads {
 public:
  int outputs = 0, actions = 0, parameters = 0, choices = 0, deviations = 0;  // numbers in a row

  explicit Heads(const ProximoPolicy& p) {
    for (int n = 0; n < p.head_count; n++) {
      const ProximoHead& h = p.heads[n];
      heads_.push_back({h, outputs, actions, parameters, choices, deviations, 0});
      outputs += h.softplus ? 2 * h.size : h.size;
      actions += h.kind == CATEGORICAL ? 1 : h.size;
      parameters += h.kind == GAUSSIAN ? 2 * h.size : h.size;
      choices += h.kind == CATEGORICAL ? h.size : 0;
      deviations += h.kind == GAUSSIAN && !h.softplus ? h.size : 0;
    }
    now_.resize(parameters);
    inverse_std_.resize(actions);
    gradient_.resize(deviations);
  }

  // What the log deviations are that do not come from the state.
  void load(const float* free) {
    for (const Head& h : heads_)
      for (int d = 0; h.kind == GAUSSIAN && !h.softplus && d < h.size; d++)
        deviate(h, d, bounded(free[h.deviation + d], LOG_STD_MIN, LOG_STD_MAX));
  }

  // From the outputs z of a state, and what is legal in it, if not everything is.
  void see(const float* z, const float* legal) {
    for (const Head& h : heads_) {
      const float* own = z + h.output;
      float* now = &now_[h.parameter];
      if (h.kind == CATEGORICAL) {
        if (legal)
          log_softmax(own, legal + h.legal, h.size, now);
        else
          log_softmax(own, h.size, now);
      } else if (h.kind == BERNOULLI) {
        std::copy_n(own, h.size, now);
      } else {
        for (int d = 0; d < h.size; d++)
          now[d] = h.tanh_mean ? h.middle[d] + h.reach[d] * std::tanh(own[d]) : own[d];
        for (int d = 0; h.softplus && d < h.size; d++) {
          const float std = std::max(softplus(own[h.size + d]), std::exp(LOG_STD_MIN));
          deviate(h, d, bounded(std::log(std), LOG_STD_MIN, LOG_STD_MAX));
        }
      }
    }
  }

  // The parameters of the distribution that was seen last, as are all that follow.
  const float* now() const { return now_.data(); }

  // Row `row` of the actions: from its noise, or without any the most likely ones.
  void draw(const ProximoRollout& r, int64_t row) const {
    for (const Head& h : heads_) {
      const float* now = &now_[h.parameter];
      const int64_t at = row * actions + h.action;
      const float* noise = r.noise ? r.noise + at : nullptr;
      if (h.kind == CATEGORICAL) {
        const int64_t choice = noise ? drawn(now, h.size, *noise) : std::max_element(now, now + h.size) - now;
        put(r, at, choice, choice + h.start);
      } else if (h.kind == BERNOULLI) {
        for (int d = 0; d < h.size; d++) {
          const float off = log_sigmoid(-now[d]);
          const int64_t bit = noise ? std::exp(off) <= noise[d] : log_sigmoid(now[d]) > off;
          put(r, at + d, bit, bit);
        }
      } else {
        for (int d = 0; d < h.size; d++) {
          const float a = noise ? now[d] + noise[d] / inverse_std_[h.action + d] : now[d];
          const float low = h.low[d], high = h.high[d];
          const float within = h.squash ? low + (std::tanh(a) + 1) / 2 * (high - low) : a;
          put(r, at + d, a, bounded(within, low, high));
        }
      }
    }
  }

  // log pi(a|s), of a Gaussian before any tanh; and where asked for the entropy, as of it.
  float log_prob(const Action& a, bool with_entropy, float& entropy) {
    float sum = 0;
    for (Head& h : heads_) {
      const float* now = &now_[h.parameter];
      float own = 0;
      if (h.kind == CATEGORICAL) {
        sum += now[a.whole(h.action)];
        for (int j = 0; with_entropy && j < h.size; j++) own -= std::exp(now[j]) * now[j];
      } else if (h.kind == BERNOULLI) {
        for (int d = 0; d < h.size; d++) {
          const float off = log_sigmoid(-now[d]), on = log_sigmoid(now[d]);
          sum += a.whole(h.action + d) ? on : off;
          if (with_entropy) own -= std::exp(off) * off + std::exp(on) * on;
        }
      } else {
        const float* log_std = now + h.size;
        for (int d = 0; d < h.size; d++) {
          const float u = (a.real[h.action + d] - now[d]) * inverse_std_[h.action + d];
          sum -= 0.5f * u * u + log_std[d] + 0.918938533f;  // log(2 pi) / 2
          own += log_std[d] + 1.418938533f;
        }
      }
      h.entropy = own;
      entropy += own;
    }
    return sum;
  }

  void clear_gradient() { std::fill(gradient_.begin(), gradient_.end(), 0.0f); }

  // The gradient of g log pi(a|s) - push entropy + pull KL(old, pi) by the outputs z, set, and by the free
  // deviations, added up; returns the KL. It follows on log_prob, with the entropy if it is to push.
  float backward(const float* z, const Action& a, float g, float push, float pull, const float* old, float* dz) {
    float kl = 0;
    for (const Head& h : heads_) {
      const float *now = &now_[h.parameter], *before = old ? old + h.parameter : nullptr;
      const float* own = z + h.output;
      float* to = dz + h.output;
      if (h.kind == CATEGORICAL) {
        const int64_t choice = a.whole(h.action);
        for (int j = 0; j < h.size; j++) {
          const float p = std::exp(now[j]);
          to[j] = g * ((j == choice) - p);
          if (push > 0) to[j] += push * p * (now[j] + h.entropy);
          if (before) {
            const float q = std::exp(before[j]);
            kl += q * (before[j] - now[j]);
            to[j] += pull * (p - q);
          }
          if (illegal(now[j])) to[j] = 0;
        }
      } else if (h.kind == BERNOULLI) {
        for (int d = 0; d < h.size; d++) {
          const float off = log_sigmoid(-now[d]), on = log_sigmoid(now[d]), p = std::exp(on);
          to[d] = g * (a.whole(h.action + d) - p) + push * p * std::exp(off) * now[d];
          if (before) {
            const float was_off = log_sigmoid(-before[d]), was_on = log_sigmoid(before[d]);
            kl += std::exp(was_off) * (was_off - off) + std::exp(was_on) * (was_on - on);
            to[d] += pull * (p - std::exp(was_on));
          }
        }
      } else {
        const float* log_std = now + h.size;
        for (int d = 0; d < h.size; d++) {
          const float inverse_std = inverse_std_[h.action + d];
          const float e = (a.real[h.action + d] - now[d]) * inverse_std;
          float by_mean = g * e * inverse_std, by_log_std = g * (e * e - 1) - push;
          if (before) {
            const float was_log_std = before[h.size + d];
            const float apart = (before[d] - now[d]) * inverse_std;
            const float wider = std::exp(2 * (was_log_std - log_std[d]));
            kl += log_std[d] - was_log_std + 0.5f * (wider + apart * apart - 1);
            by_mean -= pull * apart * inverse_std;
            by_log_std += pull * (1 - wider - apart * apart);
          }
          if (h.tanh_mean) {
            const float t = std::tanh(own[d]);
            by_mean *= h.reach[d] * (1 - t * t);
          }
          to[d] = by_mean;
          if (h.softplus) {
            const float raw = own[h.size + d], std = softplus(raw);
            const bool inside = std >= std::exp(LOG_STD_MIN) && std <= std::exp(LOG_STD_MAX);
            to[h.size + d] = inside ? by_log_std / (std * (1 + std::exp(-raw))) : 0.0f;
          } else {
            gradient_[h.deviation + d] += by_log_std;
          }
        }
      }
    }
    return kl;
  }

  // The gradient by the free log deviations, which is 0 outside of their bounds.
  void store_gradient(const float* free, float* to) const {
    for (int d = 0; d < deviations; d++)
      to[d] = free[d] >= LOG_STD_MIN && free[d] <= LOG_STD_MAX ? gradient_[d] : 0.0f;
  }

 private:
  static bool illegal(float log_p) { return log_p < ILLEGAL / 2; }

  INLINE void deviate(const Head& h, int d, float log_std) {
    now_[h.parameter + h.size + d] = log_std;
    inverse_std_[h.action + d] = std::exp(-log_std);
  }

  // How many steps of the distribution function lie at or below the noise, back to a legal choice where
  // rounding left the last of those under 1.
  static int64_t drawn(const float* log_p, int n, float noise) {
    float sum = 0;
    int64_t choice = 0;
    for (int j = 0; j + 1 < n; j++) {
      sum += std::exp(log_p[j]);
      choice += sum <= noise;
    }
    while (choice > 0 && illegal(log_p[choice])) choice--;
    return choice;
  }

  template <typename T>
  static INLINE void put(const ProximoRollout& r, int64_t at, T action, T taken) {
    if (r.choice)
      r.choice[at] = (int64_t)action;
    else
      r.action[at] = (float)action;
    if (r.env_action_type == INT64)
      ((int64_t*)r.env_action)[at] = (int64_t)taken;
    else if (r.env_action_type == FLOAT32)
      ((float*)r.env_action)[at] = (float)taken;
    else
      ((double*)r.env_action)[at] = (double)taken;
  }

  std::vector<Head> heads_;
  std::vector<float> now_, inverse_std_, gradient_;
};

// ---- Memory --------------------------------------------------------------------------------------------

// Samples in the order in which a memory takes them: the first ones of all stretches, the longest stretch first, then
// the second ones of those that have them, and so on. So a step's states are the first rows of the step before.
struct Packing {
  std::vector<int64_t> order;    // [M] of samples
  std::vector<int> counts;       // [longest] rows of a step
  std::vector<int64_t> first;    // [S] sample that a stretch begins with, the longest stretch first
  std::vector<int64_t> numbers;  // [S] the place of that stretch among all, as they came

  void pack(const ProximoBatch& b, const int64_t* from, int64_t M) {
    std::vector<int64_t> begins;
    auto sample = [&](int64_t m) { return from ? from[m] : m; };
    for (int64_t m = 0; m < M; m++)
      if (m == 0 || b.begins[sample(m)]) begins.push_back(m);
    const int64_t S = (int64_t)begins.size();
    begins.push_back(M);
    auto length = [&](int64_t s) { return begins[s + 1] - begins[s]; };
    numbers.resize(S);
    for (int64_t s = 0; s < S; s++) numbers[s] = s;
    std::stable_sort(numbers.begin(), numbers.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
    first.resize(S);
    for (int64_t k = 0; k < S; k++) first[k] = sample(begins[numbers[k]]);
    order.clear();
    counts.clear();
    int64_t n = S;
    for (int64_t t = 0; (int64_t)order.size() < M; t++) {
      while (length(numbers[n - 1]) <= t) n--;
      for (int64_t k = 0; k < n; k++) order.push_back(sample(begins[numbers[k]] + t));
      counts.push_back((int)n);
    }
  }
};

// An LSTM or GRU over packed samples (nets/memory.py).
class Memory {
 public:
  // column: where its part of a row of recurrent states begins.
  Memory(int kind, int inputs, int size, int column, int row, bool learning, int64_t& offset)
      : kind_(kind), blocks_(kind == LSTM ? 4 : 3), inputs_(inputs), size_(size), wide_in_(padded(inputs)),
        wide_(padded(size)), columns_(blocks_ * wide_), line_(columns_ + WIDE), column_(column), row_(row), learning_(learning),
        offset_(offset) {
    in_.make(inputs, wide_in_, columns_, learning);
    own_.make(size, wide_, columns_, learning);
    offset += (int64_t)blocks_ * size * (inputs + size + 2);
  }

  int width() const { return wide_; }
  const float* out(int64_t begin) const { return &out_[begin * wide_]; }
  float* gradient(int64_t begin) { return &d_out_[begin * wide_]; }  // by what came out
  float* inputs(int64_t begin) { return &x_[begin * wide_in_]; }     // and, behind `backward`, the gradient by them

  void load(const float* flat) {
    const float* w = flat + offset_;
    w = in_.load(w, inputs_, size_, wide_, blocks_);
    w = own_.load(w, size_, size_, wide_, blocks_);
    w = in_.load_bias(w, size_, wide_, blocks_);
    own_.load_bias(w, size_, wide_, blocks_);
    if (kind_ == LSTM)
      for (int j = 0; j < columns_; j++) in_.bias[j] += own_.bias[j];
  }

  // Room for so many rows of so many stretches; `inputs` are to be filled in after it.
  void room(int64_t rows, int64_t stretches) {
    if (rows > rows_) {
      x_ = floats(rows * wide_in_), gates_ = floats(rows * line_), out_ = floats(rows * wide_);
      if (kind_ == LSTM) inner_ = floats(rows * wide_);
      else side_ = floats(rows * line_);
      if (learning_) before_ = floats(rows * wide_), d_out_ = floats(rows * wide_);
      rows_ = rows;
    }
    if (stretches > stretches_) {
      first_ = floats(stretches * wide_), first_inner_ = floats(stretches * wide_);
      if (learning_) d_inner_ = floats(stretches * wide_);
      stretches_ = stretches;
    }
  }

  void forward(const Packing& p, const float* carry) {
    for (int64_t k = 0; k < p.counts[0]; k++) recall(k, carry + p.first[k] * row_);
    weigh_inputs((int)p.order.size());
    int64_t at = 0;
    for (size_t t = 0; t < p.counts.size(); t++) {
      const int n = p.counts[t];
      const Cells cells = at_step(n, at, t ? at - p.counts[t - 1] : -1);
      weigh_state(cells);
      kernel.forth[kind_](cells);
      if (learning_) std::memcpy(&before_[at * wide_], cells.state, (int64_t)n * wide_ * sizeof(float));
      at += n;
    }
  }

  // What is remembered behind every stretch. to: [S, row].
  void store(const Packing& p, float* to) const {
    int64_t at = 0;
    for (size_t t = 0; t < p.counts.size(); t++) {
      const int n = p.counts[t], go_on = t + 1 < p.counts.size() ? p.counts[t + 1] : 0;
      for (int k = go_on; k < n; k++) keep(at + k, to + p.numbers[k] * row_);
      at += n;
    }
  }

  // One step of rows whose recurrent states stand in order, and are moved on.
  void step(int rows, float* carry) {
    for (int64_t k = 0; k < rows; k++) recall(k, carry + k * row_);
    weigh_inputs(rows);
    const Cells cells = at_step(rows, 0, -1);
    weigh_state(cells);
    kernel.forth[kind_](cells);
    for (int64_t k = 0; k < rows; k++) keep(k, carry + k * row_);
  }

  void backward(const Packing& p) {
    const int M = (int)p.order.size();
    std::fill_n(d_inner_.get(), (int64_t)p.counts[0] * wide_, 0.0f);
    float* own_gates = kind_ == LSTM ? gates_.get() : side_.get();
    int64_t at = M;
    for (int t = (int)p.counts.size() - 1; t >= 0; t--) {
      const int n = p.counts[t];
      at -= n;
      const int64_t before = t ? at - p.counts[t - 1] : -1;
      const Cells cells = at_step(n, at, before);
      kernel.back[kind_](cells);
      if (t)
        kernel.multiply({n, wide_, columns_, own_gates + at * line_, line_, 1, own_.back.get(), WIDE, cells.d_state,
                         wide_, cells.d_state, wide_, (int64_t)columns_ * WIDE});
    }
    in_.gather(gates_.get(), line_, x_.get(), M);
    own_.gather(own_gates, line_, before_.get(), M);
    kernel.multiply({M, wide_in_, columns_, gates_.get(), line_, 1, in_.back.get(), WIDE, x_.get(), wide_in_,
                     nullptr, 0, (int64_t)columns_ * WIDE});
  }

  void store_gradient(float* flat) const {
    float* w = flat + offset_;
    w = in_.store(w, inputs_, size_, wide_, blocks_);
    w = own_.store(w, size_, size_, wide_, blocks_);
    w = in_.store_bias(w, size_, wide_, blocks_);
    own_.store_bias(w, size_, wide_, blocks_);
  }

 private:
  // Weights from rows of numbers to the gates, whose blocks are padded. Those to multiply by lie in strips of 16 columns,
  // one strip behind the other, so that they are read in the order in which they lie.
  struct Weights {
    int wide_in = 0, columns = 0;
    Floats forth, back;                    // [columns / 16, inputs, 16] and [wide_in / 16, columns, 16]
    Floats bias, gradient, bias_gradient;  // [columns], [columns, wide_in], [columns]

    void make(int inputs, int wide, int count, bool learning) {
      wide_in = wide, columns = count;
      forth = floats((int64_t)inputs * columns), bias = floats(columns);
      if (!learning) return;
      back = floats((int64_t)columns * wide_in), gradient = floats((int64_t)columns * wide_in);
      bias_gradient = floats(columns);
    }

    const float* load(const float* w, int inputs, int size, int wide, int blocks) {
      for (int k = 0; k < blocks; k++)
        for (int j = 0; j < size; j++, w += inputs) {
          const int64_t to = (int64_t)k * wide + j;
          for (int64_t i = 0; i < inputs; i++) {
            forth[(to / WIDE * inputs + i) * WIDE + to % WIDE] = w[i];
            if (back) back[(i / WIDE * columns + to) * WIDE + i % WIDE] = w[i];
          }
        }
      return w;
    }

    const float* load_bias(const float* w, int size, int wide, int blocks) {
      for (int k = 0; k < blocks; k++, w += size) std::memcpy(&bias[(int64_t)k * wide], w, size * sizeof(float));
      return w;
    }

    // The gradient, from those by the gates and what went in.
    void gather(const float* gates, int64_t line, const float* x, int rows) {
      kernel.multiply({columns, wide_in, rows, gates, 1, line, x, wide_in, gradient.get(), wide_in, nullptr, 0});
      std::fill_n(bias_gradient.get(), columns, 0.0f);
      for (int m = 0; m < rows; m++) kernel.add_rows(bias_gradient.get(), gates + m * line, 1, columns);
    }

    float* store(float* w, int inputs, int size, int wide, int blocks) const {
      for (int k = 0; k < blocks; k++)
        for (int j = 0; j < size; j++, w += inputs)
          std::memcpy(w, &gradient[((int64_t)k * wide + j) * wide_in], inputs * sizeof(float));
      return w;
    }

    float* store_bias(float* w, int size, int wide, int blocks) const {
      for (int k = 0; k < blocks; k++, w += size)
        std::memcpy(w, &bias_gradient[(int64_t)k * wide], size * sizeof(float));
      return w;
    }
  };

  void recall(int64_t k, const float* carry) {
    std::memcpy(&first_[k * wide_], carry + column_, size_ * sizeof(float));
    if (kind_ == LSTM) std::memcpy(&first_inner_[k * wide_], carry + column_ + size_, size_ * sizeof(float));
  }

  void keep(int64_t row, float* carry) const {
    std::memcpy(carry + column_, &out_[row * wide_], size_ * sizeof(float));
    if (kind_ == LSTM) std::memcpy(carry + column_ + size_, &inner_[row * wide_], size_ * sizeof(float));
  }

  void weigh_inputs(int rows) {
    kernel.multiply({rows, columns_, inputs_, x_.get(), wide_in_, 1, in_.forth.get(), WIDE, gates_.get(), line_,
                     in_.bias.get(), 0, (int64_t)inputs_ * WIDE});
  }

  void weigh_state(const Cells& x) {
    const bool lstm = kind_ == LSTM;
    float* to = lstm ? x.gates : x.side;
    kernel.multiply({x.rows, columns_, size_, x.state, wide_, 1, own_.forth.get(), WIDE, to, line_,
                     lstm ? to : own_.bias.get(), lstm ? line_ : 0, (int64_t)size_ * WIDE});
  }

  // n rows from `at`, which follow on those from `before` or, where that is negative, on what was recalled.
  Cells at_step(int n, int64_t at, int64_t before) {
    auto rows = [&](Floats& x, int64_t row, int64_t width) { return x ? &x[row * width] : nullptr; };
    const bool begins = before < 0;
    return {n, wide_, line_, rows(gates_, at, line_), rows(side_, at, line_),
            begins ? first_.get() : rows(out_, before, wide_), begins ? first_inner_.get() : rows(inner_, before, wide_),
            rows(out_, at, wide_), rows(inner_, at, wide_), rows(d_out_, at, wide_), d_inner_.get(),
            begins ? nullptr : rows(d_out_, before, wide_)};
  }

  const int kind_, blocks_, inputs_, size_, wide_in_, wide_, columns_, line_, column_, row_;
  const bool learning_;
  const int64_t offset_;
  Weights in_, own_;
  Floats x_, gates_, side_, out_, inner_, before_, d_out_, first_, first_inner_, d_inner_;
  int64_t rows_ = 0, stretches_ = 0;
};

struct Terms {  // of one minibatch: means, and the square of the gradient
  double policy_loss = 0, value_loss = 0, entropy = 0, square = 0;
};

// The actor with its head, the critic with its, or with a shared trunk both: what one thread works on.
class Lane {
 public:
  // `most`: samples of the largest minibatch that it will learn from; 0: it only acts and evaluates.
  Lane(const ProximoPolicy& p, bool acts, bool values, int64_t most)
      : p_(p),
        acts_(acts),
        values_(values),
        wide_(padded(p.inputs)),
        weights_(acts ? p.actor : p.critic),
        trunk_(p.activation, false, most > 0),
        logits_(p.activation, true, most > 0),
        baseline_(p.activation, true, most > 0),
        heads_(p),
        x_(floats((int64_t)CHUNK * wide_)),
        advantage_(acts ? most : 0) {
    int64_t offset = 0;
    int width = p.inputs;
    const int32_t* hidden = acts ? p.hidden : p.critic_hidden;
    for (int n = 0; n < (acts ? p.hidden_count : p.critic_count); n++) {
      trunk_.add(width, hidden[n], offset);
      width = hidden[n];
    }
    if (p.memory) {
      const int own = p.memory == LSTM ? 2 * p.recurrent_size : p.recurrent_size;
      const int column = acts ? 0 : p.state_size - own;
      memory_ = std::make_unique<Memory>(p.memory, width, p.recurrent_size, column, p.state_size, most > 0, offset);
      width = p.recurrent_size;
    }
    if (acts) {
      logits_.add(width, heads_.outputs, offset);
      deviations_ = offset;
      offset += heads_.deviations;
    }
    if (values) baseline_.add(width, 1, offset);
    if (most && acts && values) below_ = floats((int64_t)CHUNK * padded(width));
    load();
  }

  void load() {
    trunk_.load(weights_);
    if (memory_) memory_->load(weights_);
    if (!logits_.empty()) logits_.load(weights_);
    if (!baseline_.empty()) baseline_.load(weights_);
    if (acts_) heads_.load(weights_ + deviations_);
  }

  // Actions for one row of envs.
  void act(const ProximoRollout& r, int64_t t) {
    const int width = heads_.parameters;
    for (int64_t begin = 0; begin < r.num_envs; begin += CHUNK) {
      const int rows = (int)std::min<int64_t>(CHUNK, r.num_envs - begin);
      const int64_t first = t * r.num_envs + begin;
      take(r.obs, nullptr, first, rows, true);
      trunk_.forward(x_.get(), wide_, rows);
      if (memory_) remember(r, t, begin, rows);
      judge(rows, 0);
      for (int m = 0; m < rows; m++) {
        see(r.obs, first + m, m);
        heads_.draw(r, first + m);
        std::copy_n(heads_.now(), width, r.parameters + (r.num_envs + begin + m) * width);
      }
    }
    if (t == 0) std::copy_n(r.parameters + r.num_envs * width, r.num_envs * width, r.parameters);
  }

  void evaluate(const ProximoBatch& b, const ProximoEvaluation& to) {
    if (!values_ && !to.log_prob) return;
    const int width = heads_.parameters;
    const int64_t* order = remember(b, nullptr, b.count, true);
    if (memory_ && to.recurrent_state) memory_->store(packing_, to.recurrent_state);
    for (int64_t begin = 0; begin < b.count; begin += CHUNK) {
      const int rows = (int)std::min<int64_t>(CHUNK, b.count - begin);
      infer(b, order, begin, rows, true);
      for (int m = 0; m < rows; m++) {
        const int64_t row = order ? order[begin + m] : begin + m;
        if (acts_ && to.log_prob) {
          float entropy = 0;
          to.log_prob[row] = log_prob(b, row, m, to.entropy != nullptr, entropy);
          if (to.entropy) to.entropy[row] = entropy;
          if (to.parameters) std::copy_n(heads_.now(), width, to.parameters + row * width);
        }
        if (values_) {
          const float v = baseline_.out()[(int64_t)m * baseline_.width()];
          to.value[row] = p_.return_scale ? *p_.return_shift + *p_.return_scale * v : v;
        }
      }
    }
  }

  // Mean of (r - 1) - log r with r = pi/pi_old over the whole batch (functional/kl.py, k3).
  double kl(const ProximoBatch& b) {
    load();
    double sum = 0;
    const int64_t* order = remember(b, nullptr, b.count, false);
    for (int64_t begin = 0; begin < b.count; begin += CHUNK) {
      const int rows = (int)std::min<int64_t>(CHUNK, b.count - begin);
      infer(b, order, begin, rows, false);
      for (int m = 0; m < rows; m++) {
        const int64_t row = order ? order[begin + m] : begin + m;
        float entropy = 0;
        const float d = log_prob(b, row, m, false, entropy) - b.log_prob[row];
        sum += std::expm1(d) - d;
      }
    }
    return sum / b.count;
  }

  // The gradient of the loss on one minibatch, M samples of b.
  Terms learn(const ProximoUpdate& u, const ProximoBatch& b, const ProximoPart& part, const int64_t* order,
               int M) {
    load();
    weight_ = 1.0f / M;
    sum_ = {};
    order = remember(b, order, M, false);
    if (acts_) standardize(u, b, order, M);
    heads_.clear_gradient();
    for (int begin = 0; begin < M; begin += CHUNK) {
      const int rows = std::min(CHUNK, M - begin);
      infer(b, order, begin, rows, false);
      const bool more = begin > 0;
      const int width = memory_ ? memory_->width() : trunk_width();
      const float* top = memory_ ? memory_->out(begin) : trunk_out();
      float* top_gradient = memory_ ? memory_->gradient(begin) : trunk_.empty() ? nullptr : trunk_.gradient();
      if (acts_) {
        for (int m = 0; m < rows; m++) policy_row(u, b, order[begin + m], m, advantage_[begin + m]);
        logits_.backward(top, width, rows, more, top_gradient);
      }
      if (values_) {
        for (int m = 0; m < rows; m++) value_row(u, b, order[begin + m], m);
        baseline_.backward(top, width, rows, more, acts_ && top_gradient ? below_.get() : top_gradient);
        if (acts_ && top_gradient)
          for (int64_t i = 0; i < (int64_t)rows * width; i++) top_gradient[i] += below_[i];
      }
      if (!memory_ && !trunk_.empty()) trunk_.backward(x_.get(), wide_, rows, more, nullptr);
    }
    if (memory_) {
      memory_->backward(packing_);
      for (int begin = 0; begin < M && !trunk_.empty(); begin += CHUNK) {  // what the trunk put out is made again
        const int rows = std::min(CHUNK, M - begin);
        take(b.obs, order, begin, rows, false);
        trunk_.forward(x_.get(), wide_, rows);
        std::memcpy(trunk_.gradient(), memory_->inputs(begin), (int64_t)rows * trunk_.width() * sizeof(float));
        trunk_.backward(x_.get(), wide_, rows, begin > 0, nullptr);
      }
      memory_->store_gradient(part.gradient);
    }
    trunk_.store_gradient(part.gradient);
    if (acts_) {
      logits_.store_gradient(part.gradient);
      heads_.store_gradient(weights_ + deviations_, part.gradient + deviations_);
    }
    if (values_) baseline_.store_gradient(part.gradient);
    return {sum_.policy_loss / M, sum_.value_loss / M, sum_.entropy / M,
            kernel.square(part.gradient, part.size)};
  }

  void step(Descent descent, const ProximoPart& part) {
    descent.rate = part.rate;
    kernel.descend(descent, part.size, weights_, part.gradient, part.first, part.second);
  }

 private:
  // What the hidden layers put out; of none, what they are given.
  const float* trunk_out() const { return trunk_.empty() ? x_.get() : trunk_.out(); }
  int trunk_width() const { return trunk_.empty() ? wide_ : trunk_.width(); }

  // Samples order[begin], ... through all of the network; with a memory, `remember` has done its part before.
  void infer(const ProximoBatch& b, const int64_t* order, int64_t begin, int rows, bool raw) {
    if (!memory_) {
      take(b.obs, order, begin, rows, raw);
      trunk_.forward(x_.get(), wide_, rows);
    }
    judge(rows, begin);
  }

  void judge(int rows, int64_t begin) {
    const float* top = memory_ ? memory_->out(begin) : trunk_out();
    const int width = memory_ ? memory_->width() : trunk_width();
    if (acts_) logits_.forward(top, width, rows);
    if (values_) baseline_.forward(top, width, rows);
  }

  // All M samples through the trunk and the memory. Returns the order in which they now stand; without a memory, the
  // one that was given.
  const int64_t* remember(const ProximoBatch& b, const int64_t* order, int64_t M, bool raw) {
    if (!memory_) return order;
    packing_.pack(b, order, M);
    memory_->room(M, packing_.counts[0]);
    for (int64_t begin = 0; begin < M; begin += CHUNK) {
      const int rows = (int)std::min<int64_t>(CHUNK, M - begin);
      take(b.obs, packing_.order.data(), begin, rows, raw);
      trunk_.forward(x_.get(), wide_, rows);
      std::memcpy(memory_->inputs(begin), trunk_out(), (int64_t)rows * trunk_width() * sizeof(float));
    }
    memory_->forward(packing_, b.initial_state);
    return packing_.order.data();
  }

  // The same for one step of some envs, which have just begun an episode if the last step ended one.
  void remember(const ProximoRollout& r, int64_t t, int64_t begin, int rows) {
    float* carry = r.recurrent_state + begin * p_.state_size;
    for (int m = 0; t && m < rows; m++) {
      const int64_t last = (t - 1) * r.num_envs + begin + m;
      if (r.done[last] || !r.valid[last]) std::fill_n(carry + m * p_.state_size, p_.state_size, 0.0f);
    }
    memory_->room(CHUNK, CHUNK);
    std::memcpy(memory_->inputs(0), trunk_out(), (int64_t)rows * trunk_width() * sizeof(float));
    memory_->step(rows, carry);
  }

  // Rows of observations, in this order or as they stand, as the networks take them (ActorCritic.inputs) or, if they
  // are not raw, as they are.
  void take(const float* obs, const int64_t* order, int64_t begin, int rows, bool raw) {
    for (int m = 0; m < rows; m++) {
      const float* from = obs + (order ? order[begin + m] : begin + m) * p_.columns;
      float* to = &x_[(int64_t)m * wide_];
      if (!raw || !p_.obs_scale) {
        std::memcpy(to, from, p_.inputs * sizeof(float));
        continue;
      }
      for (int k = 0; k < p_.inputs; k++)
        to[k] = p_.measured && !p_.measured[k]
                    ? from[k]
                    : bounded((from[k] - p_.obs_shift[k]) * p_.obs_scale[k], -p_.obs_clip, p_.obs_clip);
    }
  }

  // The distribution in row `row` of the observations, which went through the network as row m.
  void see(const float* obs, int64_t row, int m) {
    heads_.see(logits_.out() + (int64_t)m * logits_.width(),
               p_.columns > p_.inputs ? obs + row * p_.columns + p_.inputs : nullptr);
  }

  Action action(const ProximoBatch& b, int64_t row) const {
    const int64_t at = row * heads_.actions;
    return {b.choice ? b.choice + at : nullptr, b.action ? b.action + at : nullptr};
  }

  // log pi(a|s) of sample `row`, which went through the network as row m.
  float log_prob(const ProximoBatch& b, int64_t row, int m, bool with_entropy, float& entropy) {
    see(b.obs, row, m);
    return heads_.log_prob(action(b, row), with_entropy, entropy);
  }

  void standardize(const ProximoUpdate& u, const ProximoBatch& b, const int64_t* order, int M) {
    for (int m = 0; m < M; m++) advantage_[m] = b.advantage[order[m]];
    if (!u.standardize || M == 1) return;  // one sample is its own mean: it stays what it is
    double mean = 0, var = 0;
    for (int m = 0; m < M; m++) mean += advantage_[m];
    mean /= M;
    for (int m = 0; m < M; m++) var += (advantage_[m] - mean) * (advantage_[m] - mean);
    const double scale = 1 / std::sqrt(var / M + STANDARDIZE_EPS);
    for (int m = 0; m < M; m++) advantage_[m] = (float)((advantage_[m] - mean) * scale);
  }

  // The policy's objective with its entropy bonus, and its gradient by what the head put out.
  void policy_row(const ProximoUpdate& u, const ProximoBatch& b, int64_t row, int m, float advantage) {
    const bool bonus = u.entropy_coef > 0;
    float entropy = 0;
    const float log_p = log_prob(b, row, m, bonus, entropy);
    float g;  // of the loss by log pi(a|s)
    if (u.objective == LOG) {
      sum_.policy_loss -= log_p * advantage;
      g = -advantage * weight_;
    } else {
      const float log_ratio = log_p - b.log_prob[row];
      const float ratio = std::exp(std::min(log_ratio, LOG_RATIO_MAX));
      const float low = 1 - u.clip, high = 1 + u.clip_high;
      const float whole = ratio * advantage, cut = bounded(ratio, low, high) * advantage;
      float objective = std::min(whole, cut);
      // The minimum hands the gradient on inside the clip, and outside where it chose the whole.
      bool active = ((ratio >= low && ratio <= high) || whole < cut) && log_ratio <= LOG_RATIO_MAX;
      if (u.dual_clip > 0 && advantage < 0 && objective < u.dual_clip * advantage) {
        objective = u.dual_clip * advantage;
        active = false;
      }
      sum_.policy_loss -= objective;
      if (std::isnan(ratio)) sum_.policy_loss = NAN;
      g = active ? -whole * weight_ : 0.0f;
    }
    if (bonus) sum_.entropy += entropy;
    const float* old = u.beta > 0 ? b.parameters + row * heads_.parameters : nullptr;
    const int64_t at = (int64_t)m * logits_.width();
    const float kl = heads_.backward(logits_.out() + at, action(b, row), g, u.entropy_coef * weight_,
                                     u.beta * weight_, old, logits_.gradient() + at);
    sum_.policy_loss += u.beta * kl;
  }

  // The value loss, and its gradient by what the critic put out.
  void value_row(const ProximoUpdate& u, const ProximoBatch& b, int64_t row, int m) {
    const float v = baseline_.out()[(int64_t)m * baseline_.width()], error = v - b.target[row];
    float slope;
    if (u.value_loss == HUBER) {
      const float size = std::fabs(error), delta = u.huber_delta;
      sum_.value_loss += size <= delta ? 0.5f * error * error : delta * (size - 0.5f * delta);
      slope = bounded(error, -delta, delta);
    } else if (u.value_loss == CLIPPED) {
      const float moved = v - b.value[row], range = u.value_clip;
      const float held = b.value[row] + bounded(moved, -range, range) - b.target[row];
      const bool inside = moved >= -range && moved <= range;
      const float square = error * error, held_square = held * held;
      sum_.value_loss += std::max(square, held_square);
      // At a tie PyTorch halves the gradient between both; inside the range both are this one.
      slope = inside || square > held_square ? 2 * error : square == held_square ? error : 0.0f;
    } else {
      sum_.value_loss += error * error;
      slope = 2 * error;
    }
    baseline_.gradient()[(int64_t)m * baseline_.width()] = u.value_coef * weight_ * slope;
  }

  const ProximoPolicy p_;
  const bool acts_, values_;
  const int wide_;
  float* const weights_;
  Net trunk_, logits_, baseline_;
  Heads heads_;
  Floats x_, below_;
  std::unique_ptr<Memory> memory_;
  Packing packing_;
  std::vector<float> advantage_;
  int64_t deviations_ = 0;  // where the free ones stand among the weights
  float weight_ = 0;
  Terms sum_;
};

std::vector<std::unique_ptr<Lane>> make_lanes(const ProximoPolicy& p, int64_t most) {
  std::vector<std::unique_ptr<Lane>> lanes;
  lanes.push_back(std::make_unique<Lane>(p, true, p.shared, most));
  if (!p.shared) lanes.push_back(std::make_unique<Lane>(p, false, true, most));
  return lanes;
}

// A second thread that does half of the work, if it comes in time: what it has not begun when the first
// has done its own half, the first does too. Who does it changes no number. Where the cores are busy with
// other things it would cost more than it brings: if it is late more than one time in eight, it is sent
// away, for longer every time.
class Helper {
 public:
  explicit Helper(bool wanted) {
    if (!wanted || absence().left-- > 0) return;
    try {
      thread_ = std::thread([this] { serve(); });
      present_ = true;
    } catch (const std::system_error&) {  // no more threads to be had
    }
  }

  ~Helper() {
    if (present_) {
      absence().length = 0;
      leave();
    }
  }

  template <typename Mine, typename Theirs>
  void both(Mine mine, Theirs theirs) {
    if (!present_) {
      mine();
      theirs();
      return;
    }
    job_ = [](void* work) { (*static_cast<Theirs*>(work))(); };
    work_ = &theirs;
    state_.store(OFFERED, std::memory_order_release);
    const auto begin = Clock::now();
    mine();
    const auto done = Clock::now();
    int offered = OFFERED;
    bool late = state_.compare_exchange_strong(offered, IDLE, std::memory_order_acq_rel);
    if (late) {
      theirs();
    } else {
      for (int spins = 0; state_.load(std::memory_order_acquire) != DONE;) pause(++spins);
      late = Clock::now() - done > std::max(done - begin, Clock::duration(std::chrono::microseconds(20)));
      state_.store(IDLE, std::memory_order_relaxed);
    }
    if (!started_.load(std::memory_order_relaxed)) return;
    offers_++;
    missed_ += late;
    if (missed_ >= 3 && 8 * missed_ > offers_) {
      leave();
      absence().length = std::min(256, std::max(8, 2 * absence().length));
      absence().left = absence().length;
    }
  }

 private:
  enum State { IDLE, OFFERED, TAKEN, DONE, OVER };
  using Clock = std::chrono::steady_clock;
  static constexpr int PATIENCE = 2000;  // looks, some 40 us, before others may run

  struct Absence {
    int left = 0, length = 0;  // calls
  };
  static Absence& absence() {
    static thread_local Absence absence;
    return absence;
  }

  static void pause(int spins) {
    if (spins > PATIENCE) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  void serve() {
    started_.store(true, std::memory_order_relaxed);
    for (int spins = 0;; pause(++spins)) {
      int state = state_.load(std::memory_order_acquire);
      if (state == OVER) return;
      if (state != OFFERED || !state_.compare_exchange_strong(state, TAKEN, std::memory_order_acq_rel)) continue;
      job_(work_);
      state_.store(DONE, std::memory_order_release);
      spins = 0;
    }
  }

  void leave() {
    state_.store(OVER, std::memory_order_release);
    thread_.join();
    present_ = false;
  }

  bool present_ = false;
  int64_t offers_ = 0, missed_ = 0;
  std::atomic<bool> started_{false};
  std::atomic<int> state_{IDLE};
  void (*job_)(void*) = nullptr;
  void* work_ = nullptr;
  std::thread thread_;
};

}  // namespace

extern "C" {

int32_t proximo_version() { return 6; }

// Use the kernels of this level or the nearest below that the processor has: for tests.
void proximo_use(int32_t level) { kernel = kernels_of(level); }

struct ProximoActor {
  Lane lane;
  ProximoRollout rollout;
};

// What acts with the weights as they are now. Returns null if there is no memory for it.
ProximoActor* proximo_open(const ProximoPolicy* policy, const ProximoRollout* rollout) {
  try {
    return new ProximoActor{Lane(*policy, true, false, 0), *rollout};
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void proximo_act(ProximoActor* actor, int64_t t) { actor->lane.act(actor->rollout, t); }

void proximo_close(ProximoActor* actor) { delete actor; }

// Fills `to`. Returns 0, or 1 if there is no memory for it.
int32_t proximo_evaluate(const ProximoPolicy* policy, const ProximoBatch* batch, const ProximoEvaluation* to,
                         int32_t threads) try {
  auto lanes = make_lanes(*policy, 0);
  Helper helper(threads > 1 && lanes.size() == 2);
  helper.both([&] { lanes[0]->evaluate(*batch, *to); },
              [&] { if (lanes.size() == 2) lanes[1]->evaluate(*batch, *to); });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// K epochs of minibatches, or those before the first whose loss or gradient is not finite: no step is taken along
// that one. Returns 0, or 1 if there is no memory for it.
int32_t proximo_update(const ProximoPolicy* policy, const ProximoBatch* batch, ProximoUpdate* u) try {
  int64_t most = 1;
  const int64_t* bounds = u->bounds;
  for (int32_t epoch = 0; epoch < u->epochs; epoch++, bounds++)
    for (; *bounds < batch->count; bounds++) most = std::max(most, bounds[1] - bounds[0]);
  auto lanes = make_lanes(*policy, most);
  ProximoPart* parts = u->parts;
  if (u->objective == NONE) {  // the critic alone, which must have a trunk of its own
    lanes.erase(lanes.begin());
    parts++;
  }
  const int count = (int)lanes.size();
  Helper helper(u->threads > 1 && count == 2);
  Terms terms[2];
  Descent descent{u->optimizer, 0, u->decay1, u->decay2, u->eps, 0, 0, 0};
  bool due = false;  // a step along the last gradient, taken before the next
  auto step = [&](int k) { if (due && k < count) lanes[k]->step(descent, parts[k]); };
  int64_t steps = u->step;
  bounds = u->bounds;
  for (int32_t epoch = 0; epoch < u->epochs; epoch++, bounds++) {
    for (; *bounds < batch->count; bounds++) {
      const int64_t* order = u->order + epoch * batch->count + bounds[0];
      const int M = (int)(bounds[1] - bounds[0]);
      auto learn = [&](int k) {
        step(k);
        if (k < count) terms[k] = lanes[k]->learn(*u, *batch, parts[k], order, M);
      };
      helper.both([&] { learn(0); }, [&] { learn(1); });
      const Terms &actor = terms[0], &critic = terms[count - 1];
      const float norm = (float)std::sqrt(actor.square + (count == 2 ? critic.square : 0));
      const double loss =
          actor.policy_loss + u->value_coef * critic.value_loss - u->entropy_coef * actor.entropy;
      u->loss = (float)loss;
      u->norm = norm * norm < INFINITY ? norm : norm * norm;  // the records hold squares in single precision
      u->finite = std::isfinite(u->loss) && std::isfinite(u->norm);
      if (!u->finite) return 0;
      u->sums[0] += loss;
      u->sums[1] += actor.policy_loss;
      u->sums[2] += critic.value_loss;
      u->sums[3] += norm;
      u->steps_done++;
      steps++;
      descent.bias1 = 1 - std::pow((double)u->decay1, (double)steps);
      descent.root_bias2 = std::sqrt(1 - std::pow((double)u->decay2, (double)steps));
      descent.scale = u->max_norm > 0 ? u->max_norm / std::max(norm, u->max_norm) : 1.0f;
      due = true;
    }
    u->epochs_done++;
    if (epoch + 1 == u->epochs || u->target_kl > 0) {
      step(0), step(1);
      due = false;
      if (epoch + 1 < u->epochs && lanes[0]->kl(*batch) > u->target_kl) break;
    }
  }
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
}
