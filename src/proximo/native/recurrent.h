// LSTM and GRU over segments of samples (nets/recurrent.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace {

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

}  // namespace
