// Heads: from outputs of the actor to distributions over actions, and back to gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

constexpr float LOG_STD_MIN = -10.0f, LOG_STD_MAX = 2.0f;  // these three: functional/distributions.py
constexpr float ILLEGAL = -1e9f;

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

}  // namespace
