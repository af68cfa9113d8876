// PPO and its relatives on multilayer perceptrons, with an LSTM or GRU behind them if need be: act, evaluate, and a
// whole update (all epochs and minibatches: gather, forward, loss, backward, norm clip, optimizer, KL stop) in one
// call each.
//
// The same numbers as PyTorch gives with nets/ and algorithms/, up to rounding; tests/native holds them
// side by side. Plain C interface on raw pointers; single precision, row-major.
//
// From the bottom up: interface.h, the structures that Python fills; vectors.h, vectors of 16 numbers, which the
// compiler maps to what a processor has; kernels.h, a handful of kernels on them, built for several processors and
// chosen when the library is loaded; nets.h, layers and networks; recurrent.h, LSTM and GRU; heads.h, from outputs
// to actions; lane.h, one Lane for the actor and one for the critic, which share nothing but the gradient's norm and
// so can run on a thread each with the same bits; helper.h, that thread; and here the functions that Python calls.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>

#include "helper.h"
#include "interface.h"
#include "kernels.h"
#include "lane.h"

extern "C" {

int32_t proximo_version() { return 12; }

// Bytes of a structure of interface.h, by its place there; 0 behind the last.
int64_t proximo_size(int32_t n) {
  const int64_t sizes[] = {sizeof(ProximoHead),       sizeof(ProximoPolicy), sizeof(ProximoRollout), sizeof(ProximoBatch),
                           sizeof(ProximoEvaluation), sizeof(ProximoPart),   sizeof(ProximoUpdate)};
  return n < (int32_t)(sizeof sizes / sizeof *sizes) ? sizes[n] : 0;
}

// Use the kernels of this level or the nearest below that the processor has: for tests.
void proximo_use(int32_t level) { kernel = kernels_of(level); }

// Name of the kernels in use: plain, avx2 or avx512.
const char* proximo_kernels() { return kernel.name; }

// y_t += decay_t y_{t+1} for T steps of N numbers, from the last to the first, by doubling
// (functional/returns.py). Changes decay too.
void proximo_discounted_sum(float* y, float* decay, int64_t T, int64_t N) {
  for (int64_t reach = 1; reach < T; reach *= 2) kernel.scan(y, y + reach * N, decay, decay + reach * N, (T - reach) * N);
}

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

void proximo_act(ProximoActor* actor, int64_t t) { actor->lane.act(actor->rollout, t, 0, actor->rollout.num_envs); }

// Envs begin, ..., end - 1 alone.
void proximo_act_some(ProximoActor* actor, int64_t t, int64_t begin, int64_t end) {
  actor->lane.act(actor->rollout, t, begin, end);
}

void proximo_close(ProximoActor* actor) { delete actor; }

// Fills `to`. Returns 0, or 1 if there is no memory for it.
int32_t proximo_evaluate(const ProximoPolicy* policy, const ProximoBatch* batch, const ProximoEvaluation* to,
                         int32_t threads) try {
  const bool halves = threads > 1 && !policy->memory;  // a memory's samples belong together
  const int64_t half = halves ? batch->count / 2 : batch->count;
  std::vector<std::unique_ptr<Lane>> lanes[2] = {make_lanes(*policy, 0), make_lanes(*policy, 0)};
  Helper helper(halves);
  helper.both([&] { for (auto& lane : lanes[0]) lane->evaluate(*batch, *to, 0, half); },
              [&] { for (auto& lane : lanes[1]) lane->evaluate(*batch, *to, half, halves ? batch->count : half); });
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
      u->clipped_steps += u->max_norm > 0 && norm > u->max_norm;
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
