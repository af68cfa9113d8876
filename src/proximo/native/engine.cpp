// One epoch of PPO on a multilayer perceptron: gather, forward, loss, backward, norm clip, Adam.
//
// The same numbers as algorithms/update.py gives with PyTorch, up to rounding; tests/native holds them
// side by side. Plain C interface on raw pointers. Everything is single precision, row-major, and runs
// on the calling thread. One kernel does all matrix products; it works on vectors of 16 numbers, which
// the compiler maps to what the processor has (a version each for AVX-512, AVX2 and anything else is
// built and chosen when the library is loaded).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int WIDE = 16;
typedef float Vec __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(WIDE * sizeof(int32_t))));

enum Activation { TANH = 0, RELU = 1, ELU = 2 };
enum Head { CATEGORICAL = 0, GAUSSIAN = 1 };
enum ValueLoss { MSE = 0, HUBER = 1, CLIPPED = 2 };

constexpr float LOG_STD_MIN = -10.0f, LOG_STD_MAX = 2.0f;  // functional/distributions.py
constexpr float STANDARDIZE_EPS = 1e-8f;                   // functional/masked.py
constexpr float LOG_RATIO_MAX = 80.0f;                     // functional/losses.py
constexpr int MAX_LAYERS = 6;

INLINE int padded(int n) { return (n + WIDE - 1) / WIDE * WIDE; }

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

INLINE Vec activate(Vec x, int kind) {
  if (kind == RELU) return most(x, all(0));
  if (kind == ELU) return x <= 0 ? expm1_of(least(most(x, all(-80)), all(0))) : x;
  const Vec u = expm1_of(least(most(2.0f * x, all(-40)), all(40)));
  return u / (u + 2.0f);  // tanh
}

// The derivative, from the value that came out.
INLINE Vec slope(Vec y, int kind) {
  if (kind == RELU) return y > 0 ? all(1) : all(0);
  if (kind == ELU) return y > 0 ? all(1) : y + 1.0f;
  return 1.0f - y * y;
}

// ROWS x (COLUMNS * 16) numbers of C = start + A B. A[i][k] stands at a[i * a_row + k * a_column], the
// rows of B and C lie b_row and c_row apart. start is one row for all rows of C, or null for 0.
template <int ROWS, int COLUMNS>
INLINE void tile(int depth, const float* a, int a_row, int a_column, const float* b, int b_row,
                 float* c, int c_row, const float* start) {
  Vec sum[ROWS][COLUMNS];
  for (int j = 0; j < COLUMNS; j++) {
    const Vec first = start ? *(const Vec*)(start + j * WIDE) : all(0);
    for (int i = 0; i < ROWS; i++) sum[i][j] = first;
  }
  for (int k = 0; k < depth; k++) {
    Vec line[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) line[j] = *(const Vec*)(b + (int64_t)k * b_row + j * WIDE);
    for (int i = 0; i < ROWS; i++) {
      const float x = a[(int64_t)i * a_row + (int64_t)k * a_column];
      for (int j = 0; j < COLUMNS; j++) sum[i][j] += x * line[j];
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < COLUMNS; j++) *(Vec*)(c + (int64_t)i * c_row + j * WIDE) = sum[i][j];
}

template <int COLUMNS>
INLINE void strip(int rows, int depth, const float* a, int a_row, int a_column, const float* b,
                  int b_row, float* c, int c_row, const float* start) {
  int i = 0;
  for (; i + 6 <= rows; i += 6)
    tile<6, COLUMNS>(depth, a + (int64_t)i * a_row, a_row, a_column, b, b_row,
                     c + (int64_t)i * c_row, c_row, start);
  for (; i < rows; i++)
    tile<1, COLUMNS>(depth, a + (int64_t)i * a_row, a_row, a_column, b, b_row,
                     c + (int64_t)i * c_row, c_row, start);
}

// C = start + A B with `columns`, a multiple of 16, of B and C.
INLINE void multiply(int rows, int columns, int depth, const float* a, int a_row, int a_column,
                     const float* b, int b_row, float* c, int c_row, const float* start) {
  int j = 0;
  for (; j + 2 * WIDE <= columns; j += 2 * WIDE)
    strip<2>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, start ? start + j : nullptr);
  if (j < columns)
    strip<1>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, start ? start + j : nullptr);
}

struct Layer {
  int inputs, outputs;
  int64_t offset;             // of its weights [outputs, inputs] in the flat vector; biases follow
  std::vector<float> turned;  // weights [inputs, padded(outputs)], for the way forward
  std::vector<float> padded_weights;  // [outputs, padded(inputs)], for the way back
  std::vector<float> bias;            // [padded(outputs)]
  std::vector<float> out;             // [M, padded(outputs)] after the activation
  std::vector<float> gradient;        // [M, padded(outputs)] of the loss by what came out
  std::vector<float> weight_gradient;  // [outputs, padded(inputs)]
};

struct Net {
  std::vector<Layer> layers;

  void add(int inputs, int outputs, int64_t& offset, int rows) {
    Layer layer{inputs, outputs, offset, {}, {}, {}, {}, {}, {}};
    layer.turned.assign((size_t)inputs * padded(outputs), 0);
    layer.padded_weights.assign((size_t)outputs * padded(inputs), 0);
    layer.bias.assign(padded(outputs), 0);
    layer.out.assign((size_t)rows * padded(outputs), 0);
    layer.gradient.assign((size_t)rows * padded(outputs), 0);
    layer.weight_gradient.assign((size_t)outputs * padded(inputs), 0);
    offset += (int64_t)inputs * outputs + outputs;
    layers.push_back(std::move(layer));
  }

  INLINE void load(const float* flat) {
    for (Layer& l : layers) {
      const float* w = flat + l.offset;
      const int wide_out = padded(l.outputs), wide_in = padded(l.inputs);
      for (int i = 0; i < l.outputs; i++)
        std::memcpy(&l.padded_weights[(size_t)i * wide_in], w + (size_t)i * l.inputs,
                    l.inputs * sizeof(float));
      for (int k = 0; k < l.inputs; k++)
        for (int i = 0; i < l.outputs; i++) l.turned[(size_t)k * wide_out + i] = w[(size_t)i * l.inputs + k];
      std::memcpy(l.bias.data(), w + (size_t)l.outputs * l.inputs, l.outputs * sizeof(float));
    }
  }

  // x: [rows, stride]. The last layer has no activation where `linear_end`.
  INLINE void forward(const float* x, int stride, int rows, int kind, bool linear_end) {
    for (size_t n = 0; n < layers.size(); n++) {
      Layer& l = layers[n];
      const int wide = padded(l.outputs);
      multiply(rows, wide, l.inputs, x, stride, 1, l.turned.data(), wide, l.out.data(), wide, l.bias.data());
      if (!(linear_end && n + 1 == layers.size()))
        for (int64_t i = 0; i < (int64_t)rows * wide; i += WIDE)
          *(Vec*)&l.out[i] = activate(*(const Vec*)&l.out[i], kind);
      x = l.out.data();
      stride = wide;
    }
  }

  // From the gradient by the last layer's output to those by all weights, written to flat.
  // `down`, [rows, padded(inputs)], takes the gradient by the input where it is asked for.
  INLINE void backward(const float* x, int stride, int rows, int kind, float* flat, float* down,
                       bool linear_end) {
    for (int n = (int)layers.size() - 1; n >= 0; n--) {
      Layer& l = layers[n];
      const int wide_out = padded(l.outputs), wide_in = padded(l.inputs);
      float* g = l.gradient.data();
      if (!(linear_end && n + 1 == (int)layers.size()))
        for (int64_t i = 0; i < (int64_t)rows * wide_out; i += WIDE)
          *(Vec*)(g + i) *= slope(*(const Vec*)&l.out[i], kind);
      const float* below = n ? layers[n - 1].out.data() : x;
      const int below_stride = n ? wide_in : stride;
      multiply(l.outputs, wide_in, rows, g, 1, wide_out, below, below_stride, l.weight_gradient.data(),
               wide_in, nullptr);
      float* w = flat + l.offset;
      for (int i = 0; i < l.outputs; i++)
        std::memcpy(w + (size_t)i * l.inputs, &l.weight_gradient[(size_t)i * wide_in],
                    l.inputs * sizeof(float));
      float* b = w + (size_t)l.outputs * l.inputs;
      std::vector<float>& sum = l.bias;  // its values have been used; `load` brings them back
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int m = 0; m < rows; m++)
        for (int i = 0; i < wide_out; i += WIDE)
          *(Vec*)&sum[i] += *(const Vec*)(g + (size_t)m * wide_out + i);
      std::memcpy(b, sum.data(), l.outputs * sizeof(float));
      float* to = n ? layers[n - 1].gradient.data() : down;
      if (to)
        multiply(rows, wide_in, l.outputs, g, wide_out, 1, l.padded_weights.data(), wide_in, to, wide_in,
                 nullptr);
    }
  }
};

}  // namespace

extern "C" {

// Mirrors the fields of native/library.py, in order.
struct ProximoSpec {
  int32_t inputs, actions, hidden_count, hidden[MAX_LAYERS], activation, shared, head, value_loss;
  int32_t standardize;  // advantages, per minibatch
  float clip, entropy_coef, value_coef, value_clip, huber_delta;
  float max_norm;  // 0: no limit
  float beta1, beta2, eps;
};

struct ProximoData {  // [B, ...]
  const float* obs;   // as the network takes them
  const int64_t* choice;  // categorical actions
  const float* action;    // Gaussian actions, [B, actions]
  const float *log_prob, *advantage, *target, *value;
};

struct ProximoGroup {  // parameters with one learning rate
  float *weights, *gradient, *mean, *square;
  int64_t size;
  float rate;
};

int32_t proximo_version() { return 1; }

// Minibatches are order[bounds[n] .. bounds[n + 1]]. group[0] holds the actor and, if there is one group
// only, behind it the critic; else group[1] holds the critic. `step` counts Adam's steps before this epoch.
// sums: loss, policy loss, value loss and gradient norm, added up over the minibatches.
EACH_PROCESSOR void proximo_epoch(const ProximoSpec* spec, const ProximoData* data,
                                  ProximoGroup* group, int32_t groups, const int64_t* order,
                                  const int64_t* bounds, int64_t minibatches, int64_t step,
                                  double* sums) {
  int64_t most_rows = 1;
  for (int64_t n = 0; n < minibatches; n++) most_rows = std::max(most_rows, bounds[n + 1] - bounds[n]);
  const int capacity = (int)most_rows, A = spec->actions, kind = spec->activation;
  const int wide_in = padded(spec->inputs), wide_a = padded(A);
  const bool shared = spec->shared, gaussian = spec->head == GAUSSIAN;

  // The flat vector, in the order of ActorCritic: trunk, logits, log_std, then the critic's own.
  Net trunk, logits, critic_trunk, baseline;
  int64_t offset = 0;
  int width = spec->inputs;
  for (int n = 0; n < spec->hidden_count; n++) {
    trunk.add(width, spec->hidden[n], offset, capacity);
    width = spec->hidden[n];
  }
  logits.add(width, A, offset, capacity);
  const int64_t log_std_offset = offset;
  if (gaussian) offset += A;
  const int64_t critic_begin = groups == 1 ? offset : 0;
  int64_t critic_offset = 0;
  width = spec->inputs;
  if (!shared)
    for (int n = 0; n < spec->hidden_count; n++) {
      critic_trunk.add(width, spec->hidden[n], critic_offset, capacity);
      width = spec->hidden[n];
    }
  else
    width = spec->hidden[spec->hidden_count - 1];
  baseline.add(width, 1, critic_offset, capacity);
  ProximoGroup& critic_group = group[groups - 1];

  const int wide_h = padded(width);
  std::vector<float> obs((size_t)capacity * wide_in, 0), advantage(capacity), below((size_t)capacity * wide_h);
  std::vector<float> log_p(A), inverse_std(A), log_std(A), log_std_gradient(A);

  for (int64_t n = 0; n < minibatches; n++) {
    const int64_t* rows = order + bounds[n];
    const int M = (int)(bounds[n + 1] - bounds[n]);
    const float weight = 1.0f / M;
    float* flat = group[0].weights;
    float* critic_flat = critic_group.weights + critic_begin;
    for (int m = 0; m < M; m++) {
      std::memcpy(&obs[(size_t)m * wide_in], data->obs + rows[m] * spec->inputs, spec->inputs * sizeof(float));
      advantage[m] = data->advantage[rows[m]];
    }
    if (spec->standardize) {
      double mean = 0, var = 0;
      for (int m = 0; m < M; m++) mean += advantage[m];
      mean /= M;
      for (int m = 0; m < M; m++) var += (advantage[m] - mean) * (advantage[m] - mean);
      const double scale = 1 / std::sqrt(var / M + STANDARDIZE_EPS);
      for (int m = 0; m < M; m++) advantage[m] = (float)((advantage[m] - mean) * scale);
    }

    trunk.load(flat);
    logits.load(flat);
    baseline.load(critic_flat);
    trunk.forward(obs.data(), wide_in, M, kind, false);
    const Layer& top = trunk.layers.back();
    logits.forward(top.out.data(), padded(top.outputs), M, kind, true);
    if (!shared) {
      critic_trunk.load(critic_flat);
      critic_trunk.forward(obs.data(), wide_in, M, kind, false);
    }
    const Layer& critic_top = shared ? top : critic_trunk.layers.back();
    baseline.forward(critic_top.out.data(), padded(critic_top.outputs), M, kind, true);

    if (gaussian)
      for (int d = 0; d < A; d++) {
        log_std[d] = std::min(std::max(flat[log_std_offset + d], LOG_STD_MIN), LOG_STD_MAX);
        inverse_std[d] = std::exp(-log_std[d]);
        log_std_gradient[d] = 0;
      }
    double policy_loss = 0, value_loss = 0, entropy_sum = 0;
    Layer& head = logits.layers[0];
    Layer& last = baseline.layers[0];
    for (int m = 0; m < M; m++) {
      const int64_t row = rows[m];
      const float* z = &head.out[(size_t)m * wide_a];
      float* dz = &head.gradient[(size_t)m * wide_a];
      float log_prob = 0, entropy = 0;
      if (gaussian) {
        for (int d = 0; d < A; d++) {
          const float u = (data->action[row * A + d] - z[d]) * inverse_std[d];
          log_prob -= 0.5f * u * u + log_std[d] + 0.918938533f;
          entropy += log_std[d] + 1.418938533f;
        }
      } else {
        float top_z = z[0], sum = 0;
        for (int j = 1; j < A; j++) top_z = std::max(top_z, z[j]);
        for (int j = 0; j < A; j++) sum += std::exp(z[j] - top_z);
        const float normalizer = top_z + std::log(sum);
        for (int j = 0; j < A; j++) {
          log_p[j] = z[j] - normalizer;
          if (spec->entropy_coef > 0) entropy -= std::exp(log_p[j]) * log_p[j];
        }
        log_prob = log_p[data->choice[row]];
      }
      const float log_ratio = log_prob - data->log_prob[row];
      const float ratio = std::exp(std::min(log_ratio, LOG_RATIO_MAX));
      const float low = 1 - spec->clip, high = 1 + spec->clip;
      const float whole = ratio * advantage[m];
      const float cut = std::min(std::max(ratio, low), high) * advantage[m];
      policy_loss -= std::min(whole, cut);
      entropy_sum += entropy;
      // The minimum hands the gradient on inside the clip, and outside where it chose the whole.
      const bool active = ((ratio >= low && ratio <= high) || whole < cut) && log_ratio <= LOG_RATIO_MAX;
      const float g = active ? -whole * weight : 0.0f;
      if (std::isnan(ratio)) policy_loss = NAN;
      if (gaussian) {
        for (int d = 0; d < A; d++) {
          const float u = (data->action[row * A + d] - z[d]) * inverse_std[d];
          dz[d] = g * u * inverse_std[d];
          log_std_gradient[d] += g * (u * u - 1) - spec->entropy_coef * weight;
        }
      } else {
        for (int j = 0; j < A; j++) {
          const float p = std::exp(log_p[j]);
          dz[j] = g * ((j == data->choice[row]) - p);
          if (spec->entropy_coef > 0) dz[j] += spec->entropy_coef * weight * p * (log_p[j] + entropy);
        }
      }

      const float v = last.out[(size_t)m * WIDE], error = v - data->target[row];
      float dv;
      if (spec->value_loss == HUBER) {
        const float size = std::fabs(error), delta = spec->huber_delta;
        value_loss += size <= delta ? 0.5f * error * error : delta * (size - 0.5f * delta);
        dv = std::min(std::max(error, -delta), delta);
      } else if (spec->value_loss == CLIPPED) {
        const float moved = v - data->value[row], range = spec->value_clip;
        const float held = data->value[row] + std::min(std::max(moved, -range), range) - data->target[row];
        const bool inside = moved >= -range && moved <= range;
        const float square = error * error, held_square = held * held;
        value_loss += std::max(square, held_square);
        // At a tie PyTorch halves the gradient between both; inside the range both are this one.
        dv = inside || square > held_square ? 2 * error : square == held_square ? error : 0.0f;
      } else {
        value_loss += error * error;
        dv = 2 * error;
      }
      last.gradient[(size_t)m * WIDE] = spec->value_coef * weight * dv;
    }

    float* gradient = group[0].gradient;
    float* critic_gradient = critic_group.gradient + critic_begin;
    Layer& trunk_top = trunk.layers.back();
    logits.backward(top.out.data(), padded(top.outputs), M, kind, gradient, trunk_top.gradient.data(), true);
    float* critic_down = shared ? below.data() : critic_trunk.layers.back().gradient.data();
    baseline.backward(critic_top.out.data(), padded(critic_top.outputs), M, kind, critic_gradient,
                      critic_down, true);
    if (shared)
      for (size_t i = 0; i < (size_t)M * wide_h; i++) trunk_top.gradient[i] += below[i];
    else
      critic_trunk.backward(obs.data(), wide_in, M, kind, critic_gradient, nullptr, false);
    trunk.backward(obs.data(), wide_in, M, kind, gradient, nullptr, false);
    if (gaussian)
      for (int d = 0; d < A; d++) {
        const float free = flat[log_std_offset + d];
        const bool inside = free >= LOG_STD_MIN && free <= LOG_STD_MAX;
        gradient[log_std_offset + d] = inside ? log_std_gradient[d] : 0.0f;
      }

    double square = 0;
    for (int32_t i = 0; i < groups; i++) {
      const float* g = group[i].gradient;
      int64_t k = 0;
      for (; k + WIDE <= group[i].size; k += WIDE) {
        const Vec x = *(const Vec*)(g + k);
        const Vec y = x * x;
        float part = 0;
        for (int lane = 0; lane < WIDE; lane++) part += y[lane];
        square += part;
      }
      for (; k < group[i].size; k++) square += (double)g[k] * g[k];
    }
    const float norm = (float)std::sqrt(square);
    const float scale = spec->max_norm > 0 ? spec->max_norm / std::max(norm, spec->max_norm) : 1.0f;

    step++;
    const double bias1 = 1 - std::pow((double)spec->beta1, (double)step);
    const double bias2_root = std::sqrt(1 - std::pow((double)spec->beta2, (double)step));
    const float b1 = spec->beta1, b2 = spec->beta2, eps = spec->eps, root = (float)bias2_root;
    for (int32_t i = 0; i < groups; i++) {
      float *w = group[i].weights, *g = group[i].gradient, *m1 = group[i].mean, *m2 = group[i].square;
      const float stride = (float)(group[i].rate / bias1);
      for (int64_t k = 0; k < group[i].size; k++) {
        const float x = g[k] * scale;
        g[k] = x;
        m1[k] += (1 - b1) * (x - m1[k]);
        m2[k] = b2 * m2[k] + (1 - b2) * x * x;
        w[k] -= stride * m1[k] / (std::sqrt(m2[k]) / root + eps);
      }
    }

    policy_loss *= weight;
    value_loss *= weight;
    sums[0] += policy_loss + spec->value_coef * value_loss - spec->entropy_coef * entropy_sum * weight;
    sums[1] += policy_loss;
    sums[2] += value_loss;
    sums[3] += norm;
  }
}
}
