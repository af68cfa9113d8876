// Multilayer perceptrons: layers, forwards and backwards.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace {

constexpr int CHUNK = 64;  // rows that go through a network at once: their activations stay in the cache

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
      kernel.turn(w, l.inputs, l.forth.get(), l.wide_out, l.outputs, l.inputs);
      std::memcpy(l.bias.get(), w + (int64_t)l.outputs * l.inputs, l.outputs * sizeof(float));
    }
  }

  void forward(const float* x, int stride, int rows) {
    for (size_t n = 0; n < layers_.size(); n++) {
      Layer& l = layers_[n];
      kernel.multiply({rows, l.wide_out, l.inputs, x, stride, 1, l.forth.get(), l.wide_out, l.out.get(),
                       l.wide_out, l.bias.get(), 0, WIDE, activates(n) ? 0 : l.outputs});
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
