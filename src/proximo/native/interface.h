// Interface: the structures of engines/library.py, field by field, whose sizes are compared when the library
// is loaded, and the numbers that stand for names in them.
#pragma once

#include <cstdint>

enum Activation { TANH = 0, RELU = 1, ELU = 2 };
enum ValueLoss { MSE = 0, HUBER = 1, CLIPPED = 2 };
enum Optimizer { ADAM = 0, RMSPROP = 1, SGD = 2 };
// The clipped surrogate, the policy gradient, the critic alone, the surrogate with SPO's quadratic penalty.
enum Objective { RATIO = 0, LOG = 1, NONE = 2, SPO = 3 };
enum Kind { CATEGORICAL = 0, BERNOULLI = 1, GAUSSIAN = 2 };
enum Remembers { NOTHING = 0, GRU = 1, LSTM = 2 };
enum Number { INT64 = 0, FLOAT32 = 1, FLOAT64 = 2 };

constexpr int MAX_LAYERS = 6;

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
  int32_t memory, recurrent_size, state_size;  // kind and width of the recurrent layer, numbers of its state
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
  void* env_action;    // [T, N, actions] what the envs are given
  float* parameters;   // [2, N, P] of the first step and of the latest one
  float *log_prob, *every;  // [T, N] and [T, N, P]: log pi(a|s) and the parameters of all steps; both may be null
  int32_t env_action_type;
  float* recurrent_state;       // [N, state_size], 0 after an episode's end
  const uint8_t *done, *valid;  // [T, N]
};

struct ProximoBatch {  // B samples
  int64_t count;
  const float* obs;  // [B, columns]
  const int64_t* choice;
  const float* action;
  const float *log_prob, *value, *advantage, *target;
  const float* parameters;  // [B, P] of the distributions that acted
  const uint8_t* begins;    // [B] for a recurrent policy: a segment begins there
  const float* initial_state;  // [B, state_size] recurrent state before a segment
};

struct ProximoEvaluation {  // of B samples
  float *log_prob, *entropy, *value, *parameters;  // each may be null
  float* recurrent_state;                          // [S, state_size] after every segment, or null
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
  int32_t clipped_steps;  // those whose gradient was longer than max_norm
  int32_t finite;         // 0: it ended at a minibatch whose loss or gradient was not, before its step
  float loss, norm;       // of that minibatch
};
}
