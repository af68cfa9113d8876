/* MountainCar (Moore 1990), as Gymnasium's MountainCar-v0 computes it. */
#include <math.h>

#include "proximo_env.h"
#include "proximo_random.h"

typedef struct {
  double position, speed;
} MountainCar;

static const double LEFT = -1.2, RIGHT = 0.6, FASTEST = 0.07, GOAL = 0.5, FORCE = 0.001, GRAVITY = 0.0025;

static void observe(const MountainCar* s, float* obs) {
  obs[0] = (float)s->position;
  obs[1] = (float)s->speed;
}

static void reset(void* state, uint64_t seed, float* obs) {
  MountainCar* s = (MountainCar*)state;
  ProximoRandom random = proximo_random(seed);
  s->position = proximo_random_uniform(&random, -0.6, -0.4);
  s->speed = 0;
  observe(s, obs);
}

static void step(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs,
                 double* reward, uint8_t* terminated, uint8_t* truncated) {
  (void)actions, (void)truncated;
  for (int64_t i = 0; i < count; i++) {
    MountainCar* s = (MountainCar*)states + i;
    s->speed += (double)(choices[i] - 1) * FORCE + cos(3 * s->position) * -GRAVITY;
    s->speed = fmin(fmax(s->speed, -FASTEST), FASTEST);
    s->position = fmin(fmax(s->position + s->speed, LEFT), RIGHT);
    if (s->position == LEFT && s->speed < 0) s->speed = 0;
    observe(s, obs + 2 * i);
    reward[i] = -1;
    terminated[i] = s->position >= GOAL && s->speed >= 0;
  }
}

const ProximoEnv* proximo_env(void) {
  static const float high[] = {0.6f, 0.07f}, low[] = {-1.2f, -0.07f};
  static const ProximoEnv env = {PROXIMO_ENV_VERSION, 2, low, high, 3, 0, NULL, NULL, sizeof(MountainCar), 200, 0, 0,
                                 reset, step, NULL};
  return &env;
}
