/* Pendulum, as Gymnasium's Pendulum-v1 computes it: what it holds in single precision is single here too. */
#include <math.h>

#include "proximo_env.h"
#include "proximo_random.h"

typedef struct {
  double angle, spin;
} Pendulum;

static const double PI = 3.141592653589793, GRAVITY = 10, FASTEST = 8, SECONDS = 0.05;
static const float STRONGEST = 2;

static void observe(const Pendulum* s, float* obs) {
  obs[0] = (float)cos(s->angle);
  obs[1] = (float)sin(s->angle);
  obs[2] = (float)s->spin;
}

static void reset(void* state, uint64_t seed, float* obs) {
  Pendulum* s = (Pendulum*)state;
  ProximoRandom random = proximo_random(seed);
  s->angle = proximo_random_uniform(&random, -PI, PI);
  s->spin = proximo_random_uniform(&random, -1, 1);
  observe(s, obs);
}

/* Python's x ** 2 is the library's power, whose last bit is not always that of x * x. */
static double square(double x) {
  volatile double two = 2; /* or the compiler would multiply */
  return pow(x, two);
}

static float square_single(float x) {
  volatile float two = 2;
  return powf(x, two);
}

/* ((x + pi) % (2 pi)) - pi, with Python's remainder. */
static double normalized(double x) {
  double rest = fmod(x + PI, 2 * PI);
  if (rest < 0) rest += 2 * PI;
  return rest - PI;
}

static void step(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs,
                 double* reward, uint8_t* terminated, uint8_t* truncated) {
  (void)choices, (void)truncated;
  for (int64_t i = 0; i < count; i++) {
    Pendulum* s = (Pendulum*)states + i;
    const float torque = fminf(fmaxf(actions[i], -STRONGEST), STRONGEST);
    const double angle = normalized(s->angle);
    reward[i] = -(square(angle) + 0.1 * square(s->spin) + 0.001f * square_single(torque));
    double spin = s->spin + (3 * GRAVITY / 2 * sin(s->angle) + 3.0f * torque) * SECONDS;
    spin = fmin(fmax(spin, -FASTEST), FASTEST);
    s->angle = s->angle + spin * SECONDS;
    s->spin = spin;
    observe(s, obs + 3 * i);
    terminated[i] = 0;
  }
}

const ProximoEnv* proximo_env(void) {
  static const float high[] = {1, 1, 8}, low[] = {-1, -1, -8}, strongest[] = {2}, weakest[] = {-2};
  static const ProximoEnv env = {PROXIMO_ENV_VERSION, 3, low, high, 0, 1, weakest, strongest, sizeof(Pendulum), 200,
                                 0, 0, reset, step, NULL};
  return &env;
}
