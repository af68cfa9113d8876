// Compiled environments in step: N of them, reset by us, each episode from its own seed.
//
// What SyncEnvs (envs/base.py) does with environments in Python, here in one call for all environments, or, with an
// actor of engine.cpp in between, for all steps of a rollout. Plain C interface on raw pointers.

#ifndef _WIN32
#include <signal.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "proximo_env.h"
#include "team.h"

namespace {

constexpr int64_t NUMBERED = -1;  // episode k starts with seed k

// The first 4 bytes of BLAKE2b (RFC 7693) with a digest of that length, of a text of less than 128 bytes.
uint32_t blake2b(const char* text, int length) {
  static const uint64_t start[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
  static const uint8_t sigma[10][16] = {
      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
      {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
      {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
      {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
      {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};
  uint64_t m[16] = {}, v[16];
  for (int i = 0; i < length; i++) m[i / 8] |= (uint64_t)(uint8_t)text[i] << 8 * (i % 8);
  const uint64_t first = start[0] ^ 0x01010000 ^ 4;  // no key, a digest of 4 bytes
  std::copy_n(start, 8, v);
  std::copy_n(start, 8, v + 8);
  v[0] = first;
  v[12] ^= (uint64_t)length;
  v[14] = ~v[14];  // the last block is the first
  auto turn = [](uint64_t x, int by) { return x >> by | x << (64 - by); };
  auto mix = [&](int a, int b, int c, int d, uint64_t x, uint64_t y) {
    v[a] += v[b] + x, v[d] = turn(v[d] ^ v[a], 32), v[c] += v[d], v[b] = turn(v[b] ^ v[c], 24);
    v[a] += v[b] + y, v[d] = turn(v[d] ^ v[a], 16), v[c] += v[d], v[b] = turn(v[b] ^ v[c], 63);
  };
  for (int round = 0; round < 12; round++) {
    const uint8_t* s = sigma[round % 10];
    for (int i = 0; i < 4; i++) mix(i, 4 + i, 8 + i, 12 + i, m[s[2 * i]], m[s[2 * i + 1]]);
    for (int i = 0; i < 4; i++)
      mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[s[8 + 2 * i]], m[s[9 + 2 * i]]);
  }
  const uint64_t hash = first ^ v[0] ^ v[8];
  return (uint32_t)(hash & 0xff) << 24 | (uint32_t)(hash >> 8 & 0xff) << 16 | (uint32_t)(hash >> 16 & 0xff) << 8 |
         (uint32_t)(hash >> 24 & 0xff);
}

#ifndef _WIN32
char crash_text[1024], crash_stack[1 << 16];

// Calls only what a handler may call. The signal then does what it did before: it ends the process.
void on_crash(int signal) {
  if (write(STDERR_FILENO, crash_text, std::strlen(crash_text)) < 0) crash_text[0] = 0;
  raise(signal);
}
#endif

}  // namespace

extern "C" {

int32_t proximo_stepper_version() { return 4; }

// Write this text where the process crashes, unless somebody else waits for that.
void proximo_stepper_on_crash(const char* text) {
#ifndef _WIN32
  std::strncpy(crash_text, text, sizeof crash_text - 1);
  stack_t stack = {};
  stack.ss_sp = crash_stack, stack.ss_size = sizeof crash_stack;
  sigaltstack(&stack, nullptr);  // a recursion without end has used up the other one
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
    struct sigaction action = {}, before = {};
    action.sa_handler = on_crash;
    action.sa_flags = SA_RESETHAND | SA_ONSTACK;
    if (!sigaction(signal, nullptr, &before) && before.sa_handler == SIG_DFL) sigaction(signal, &action, nullptr);
  }
#else
  (void)text;
#endif
}

// Seed of an episode (envs/base.py, `episode_seed`).
uint64_t proximo_episode_seed(int64_t seed, int64_t env, int64_t episode) {
  if (seed == NUMBERED) return (uint64_t)episode;
  char text[80];
  const int length = std::snprintf(text, sizeof text, "%lld/%lld/%lld", (long long)seed, (long long)env,
                                   (long long)episode);
  return blake2b(text, length);
}

// The rows of a rollout, and the number of the episode that runs in each environment.
struct ProximoSteps {
  const int64_t* choices;  // [T, N], or
  const float* actions;    // [T, N, action_size]
  float* obs;              // [T + 1, N, obs_size]
  double* reward;          // [T, N], as are the flags
  uint8_t *terminated, *done;
  int64_t* episode;  // [N]
};

struct ProximoStepper {
  const ProximoEnv* env;
  int64_t count, seed, first, limit;
  std::unique_ptr<char[]> memory;
  char* states;
  std::vector<int64_t> length;  // of the running episodes
  std::vector<uint8_t> truncated;
  std::vector<int64_t> ended;  // t * N + i of the steps that ended an episode
  std::vector<float> final_obs;
  std::unique_ptr<Team> team;  // steps the environments one by one, on several threads
  std::vector<int64_t> first_step;  // of the first episodes: where their time limit begins

  void reset(int64_t i, int64_t episode, float* obs) {
    length[i] = episode ? 0 : first_step[i];
    env->reset(states + i * env->state_size, proximo_episode_seed(seed, first + i, episode), obs);
  }

  void step(const ProximoSteps& s, int64_t t) {
    const int64_t row = t * count, width = env->obs_size;
    float* obs = s.obs + (row + count) * width;
    uint8_t *terminated = s.terminated + row, *done = s.done + row;
    std::fill(truncated.begin(), truncated.end(), 0);
    auto some = [&](int64_t i, int64_t n) {
      env->step(states + i * env->state_size, n, s.choices ? s.choices + row + i : nullptr,
                s.actions ? s.actions + (row + i) * env->action_size : nullptr, obs + i * width, s.reward + row + i,
                terminated + i, truncated.data() + i);
    };
    if (team)
      team->each(count, [&](int64_t i) { some(i, 1); });
    else
      some(0, count);
    for (int64_t i = 0; i < count; i++) {
      terminated[i] = terminated[i] != 0;
      length[i]++;
      done[i] = terminated[i] || truncated[i] || (limit && length[i] >= limit);
      if (!done[i]) continue;
      ended.push_back(row + i);
      final_obs.insert(final_obs.end(), obs + i * width, obs + (i + 1) * width);
      reset(i, ++s.episode[i], obs + i * width);
    }
  }
};

// N environments of this kind. limit: steps of an episode at most; 0: any number. threads: that step them. Returns null
// without memory for it.
ProximoStepper* proximo_stepper_open(const ProximoEnv* env, int64_t count, int64_t seed, int64_t first, int64_t limit,
                                     int64_t threads) try {
  const int64_t size = count * env->state_size;
  auto stepper = std::make_unique<ProximoStepper>();
  *stepper = {env, count, seed, first, limit, std::make_unique<char[]>(size + 16), nullptr, {}, {}, {}, {}, {}, {}};
  stepper->states = stepper->memory.get() + (16 - (uintptr_t)stepper->memory.get() % 16) % 16;
  stepper->length.assign(count, 0);
  stepper->first_step.assign(count, 0);
  stepper->truncated.assign(count, 0);
  if (std::min(threads, count) > 1) stepper->team = std::make_unique<Team>(std::min(threads, count) - 1);
  return stepper.release();
} catch (const std::bad_alloc&) {
  return nullptr;
}

// Where the states of the environments lie, one behind the other.
void* proximo_stepper_states(ProximoStepper* stepper) { return stepper->states; }

void proximo_stepper_close(ProximoStepper* stepper) { delete stepper; }

// Let the time limit of the first episodes, those of number 0, begin at these steps. first_step: [N].
void proximo_stepper_stagger(ProximoStepper* stepper, const int64_t* first_step) {
  std::copy_n(first_step, stepper->count, stepper->first_step.begin());
}

// Begin these episodes in the environments where `begins` holds. obs: [N, obs_size].
void proximo_stepper_reset(ProximoStepper* stepper, const uint8_t* begins, const int64_t* episode, float* obs) {
  for (int64_t i = 0; i < stepper->count; i++)
    if (begins[i]) stepper->reset(i, episode[i], obs + i * stepper->env->obs_size);
}

// Take the steps begin, ..., end - 1. act: fills in the actions of a step before it is taken, or null. Returns 0, or 1
// if there is no memory for the last observations of episodes.
int32_t proximo_stepper_run(ProximoStepper* stepper, const ProximoSteps* steps, void (*act)(void*, int64_t),
                            void* actor, int64_t begin, int64_t end) {
  stepper->ended.clear();
  stepper->final_obs.clear();
  if (stepper->team) stepper->team->begin();
  int32_t failed = 0;
  try {
    for (int64_t t = begin; t < end; t++) {
      if (act) act(actor, t);
      stepper->step(*steps, t);
    }
  } catch (const std::bad_alloc&) {
    failed = 1;
  }
  if (stepper->team) stepper->team->end();
  return failed;
}

// The episodes that ended in the last run: their number, where (t * N + i), and their last observations.
int64_t proximo_stepper_ended(const ProximoStepper* stepper, const int64_t** index, const float** final_obs) {
  *index = stepper->ended.data();
  *final_obs = stepper->final_obs.data();
  return (int64_t)stepper->ended.size();
}

// Step environment i alone by these actions, within one episode. obs: [obs_size], what the last one shows.
void proximo_stepper_replay(ProximoStepper* stepper, int64_t i, const int64_t* choices, const float* actions,
                            int64_t length, float* obs) {
  const ProximoEnv* env = stepper->env;
  for (int64_t t = 0; t < length; t++) {
    double reward;
    uint8_t terminated, truncated = 0;
    env->step(stepper->states + i * env->state_size, 1, choices ? choices + t : nullptr,
              actions ? actions + t * env->action_size : nullptr, obs, &reward, &terminated, &truncated);
  }
  stepper->length[i] += length;
}
}
