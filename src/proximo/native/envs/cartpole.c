/* CartPole (Barto, Sutton & Anderson 1983), as Gymnasium's CartPole-v1 computes it. */
#include <math.h>

#include "proximo_env.h"
#include "proximo_random.h"

typedef struct {
  double x, speed, angle, spin;
} CartPole;

static const double GRAVITY = 9.8, MASS = 1.1, POLE_MASS = 0.1, LENGTH = 0.5, FORCE = 10, SECONDS = 0.02;
#define X_LIMIT 2.4
#define ANGLE_LIMIT (12 * 2 * 3.141592653589793 / 360)

static void observe(const CartPole* s, float* obs) {
  obs[0] = (float)s->x;
  obs[1] = (float)s->speed;
  obs[2] = (float)s->angle;
  obs[3] = (float)s->spin;
}

static void reset(void* state, uint64_t seed, float* obs) {
  CartPole* s = (CartPole*)state;
  ProximoRandom random = proximo_random(seed);
  s->x = proximo_random_uniform(&random, -0.05, 0.05);
  s->speed = proximo_random_uniform(&random, -0.05, 0.05);
  s->angle = proximo_random_uniform(&random, -0.05, 0.05);
  s->spin = proximo_random_uniform(&random, -0.05, 0.05);
  observe(s, obs);
}

static void step(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs,
                 double* reward, uint8_t* terminated, uint8_t* truncated) {
  (void)actions, (void)truncated;
  const double pole = POLE_MASS * LENGTH;
  for (int64_t i = 0; i < count; i++) {
    CartPole* s = (CartPole*)states + i;
    const double cosine = cos(s->angle), sine = sin(s->angle);
    const double force = choices[i] == 1 ? FORCE : -FORCE;
    const double pushed = (force + pole * (s->spin * s->spin) * sine) / MASS;
    const double turned = (GRAVITY * sine - cosine * pushed) /
                          (LENGTH * (4.0 / 3.0 - POLE_MASS * (cosine * cosine) / MASS));
    const double moved = pushed - pole * turned * cosine / MASS;
    s->x = s->x + SECONDS * s->speed;
    s->speed = s->speed + SECONDS * moved;
    s->angle = s->angle + SECONDS * s->spin;
    s->spin = s->spin + SECONDS * turned;
    observe(s, obs + 4 * i);
    reward[i] = 1;
    terminated[i] = s->x < -X_LIMIT || s->x > X_LIMIT || s->angle < -ANGLE_LIMIT || s->angle > ANGLE_LIMIT;
  }
}

const ProximoEnv* proximo_env(void) {
  static const float high[] = {4.8f, INFINITY, (float)(2 * ANGLE_LIMIT), INFINITY};
  static const float low[] = {-4.8f, -INFINITY, -(float)(2 * ANGLE_LIMIT), -INFINITY};
  static const ProximoEnv env = {PROXIMO_ENV_VERSION, 4, low, high, 2, 0, NULL, NULL, sizeof(CartPole), 500, 0, 0,
                                 reset, step, NULL};
  return &env;
}
