// What one thread works on: the actor with its head, the critic with its, or with a shared trunk both.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "heads.h"
#include "nets.h"
#include "recurrent.h"

namespace {

constexpr float STANDARDIZE_EPS = 1e-8f;                   // functional/masked.py
constexpr float LOG_RATIO_MAX = 80.0f;                     // functional/losses.py
constexpr int64_t CACHED = 1 << 16;                        // samples of a batch of which a core's cache holds most

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
  // Envs from, ..., to - 1 in step t: a row's numbers do not depend on the rows beside it.
  void act(const ProximoRollout& r, int64_t t, int64_t from, int64_t to) {
    const int width = heads_.parameters;
    for (int64_t begin = from; begin < to; begin += CHUNK) {
      const int rows = (int)std::min<int64_t>(CHUNK, to - begin);
      const int64_t first = t * r.num_envs + begin;
      take(r.obs, nullptr, first, rows, true);
      trunk_.forward(x_.get(), wide_, rows);
      if (memory_) remember(r, t, begin, rows);
      judge(rows, 0);
      for (int m = 0; m < rows; m++) {
        see(r.obs, first + m, m);
        heads_.draw(r, first + m);
        std::copy_n(heads_.now(), width, r.parameters + (r.num_envs + begin + m) * width);
        if (!r.log_prob) continue;
        const int64_t at = (first + m) * heads_.actions;
        float entropy;
        r.log_prob[first + m] =
            heads_.log_prob({r.choice ? r.choice + at : nullptr, r.action ? r.action + at : nullptr}, false, entropy);
        std::copy_n(heads_.now(), width, r.every + (first + m) * width);
      }
    }
    if (t == 0) std::copy_n(r.parameters + (r.num_envs + from) * width, (to - from) * width, r.parameters + from * width);
  }

  // Samples begin, ..., end - 1; a recurrent policy takes all of them.
  void evaluate(const ProximoBatch& b, const ProximoEvaluation& to, int64_t begin, int64_t end) {
    if (!(acts_ && to.log_prob) && !(values_ && to.value)) return;
    const int width = heads_.parameters;
    const int64_t* order = remember(b, nullptr, b.count, true);
    if (memory_ && to.recurrent_state) memory_->store(packing_, to.recurrent_state);
    for (; begin < end; begin += CHUNK) {
      const int rows = (int)std::min<int64_t>(CHUNK, end - begin);
      infer(b, order, begin, rows, true);
      for (int m = 0; m < rows; m++) {
        const int64_t row = order ? order[begin + m] : begin + m;
        if (acts_ && to.log_prob) {
          float entropy = 0;
          to.log_prob[row] = log_prob(b, row, m, to.entropy != nullptr, entropy);
          if (to.entropy) to.entropy[row] = entropy;
          if (to.parameters) std::copy_n(heads_.now(), width, to.parameters + row * width);
        }
        if (values_ && to.value) {
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
      if (b.count > CACHED) fetch(b, order + begin, rows);
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

  // Fetch what the loss reads of these samples while the network runs. In a batch beyond the cache they stand anywhere
  // in memory, and the loss would wait for each. (Inline, as a function that only fetches counts as one without effect.)
  __attribute__((always_inline)) void fetch(const ProximoBatch& b, const int64_t* order, int rows) const {
    auto ask = [&](const auto* numbers, int64_t width) __attribute__((always_inline)) {
      for (int m = 0; numbers && m < rows; m++) __builtin_prefetch(numbers + order[m] * width);
    };
    if (acts_) {
      ask(b.log_prob, 1);
      ask(b.choice, heads_.actions);
      ask(b.action, heads_.actions);
    }
    if (values_) {
      ask(b.target, 1);
      ask(b.value, 1);
    }
  }

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
    } else if (u.objective == SPO) {
      const float log_ratio = log_p - b.log_prob[row];
      const float ratio = std::exp(std::min(log_ratio, LOG_RATIO_MAX)), moved = ratio - 1;
      const float penalty = std::fabs(advantage) / u.clip;
      sum_.policy_loss -= ratio * advantage - 0.5f * penalty * moved * moved;
      g = log_ratio <= LOG_RATIO_MAX ? -ratio * (advantage - penalty * moved) * weight_ : 0.0f;
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

}  // namespace
