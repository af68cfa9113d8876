/* MountainCarContinuous, as Gymnasium's MountainCarContinuous-v0 computes it.
 *
 * Its state is in double precision until the first step of an episode, and in single precision from then on; so is
 * the sum of the forces, unless the action was cut off at its bounds.
 */
#include <math.h>

#include "proximo_env.h"
#include "proximo_random.h"

typedef struct {
  double position, speed;
  int32_t stepped;
} Car;

static const double LEFT = -1.2, RIGHT = 0.6, FASTEST = 0.07, POWER = 0.0015, GRAVITY = 0.0025;
static const float GOAL = 0.45f;

static void observe(const Car* s, float* obs) {
  obs[0] = (float)s->position;
  obs[1] = (float)s->speed;
}

static void reset(void* state, uint64_t seed, float* obs) {
  Car* s = (Car*)state;
  ProximoRandom random = proximo_random(seed);
  s->position = proximo_random_uniform(&random, -0.6, -0.4);
  s->speed = 0;
  s->stepped = 0;
  observe(s, obs);
}

/* In double precision. Returns whether the goal is reached. */
static int first_step(Car* s, float action) {
  const double down = GRAVITY * cos(3 * s->position);
  const int cut = action < -1 || action > 1;
  double speed = s->speed, position = s->position;
  speed += cut ? (action > 0 ? POWER : -POWER) - down : (double)(action * (float)POWER - (float)down);
  speed = fmin(fmax(speed, -FASTEST), FASTEST);
  position = fmin(fmax(position + speed, LEFT), RIGHT);
  if (position == LEFT && speed < 0) speed = 0;
  s->position = position;
  s->speed = speed;
  return position >= 0.45 && speed >= 0;
}

/* In single precision. */
static int later_step(Car* s, float action) {
  float speed = (float)s->speed, position = (float)s->position;
  const double down = GRAVITY * cos((double)(3 * position));
  const int cut = action < -1 || action > 1;
  speed += cut ? (float)((action > 0 ? POWER : -POWER) - down) : action * (float)POWER - (float)down;
  speed = fminf(fmaxf(speed, -(float)FASTEST), (float)FASTEST);
  position = fminf(fmaxf(position + speed, (float)LEFT), (float)RIGHT);
  if (position == (float)LEFT && speed < 0) speed = 0;
  s->position = position;
  s->speed = speed;
  return position >= GOAL && speed >= 0;
}

/* math.pow(x, 2), whose last bit is not always that of x * x. */
static double square(double x) {
  volatile double two = 2; /* or the compiler would multiply */
  return pow(x, two);
}

static void step(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs,
                 double* reward, uint8_t* terminated, uint8_t* truncated) {
  (void)choices, (void)truncated;
  for (int64_t i = 0; i < count; i++) {
    Car* s = (Car*)states + i;
    terminated[i] = (uint8_t)(s->stepped ? later_step(s, actions[i]) : first_step(s, actions[i]));
    s->position = (float)s->position;
    s->speed = (float)s->speed;
    s->stepped = 1;
    reward[i] = (terminated[i] ? 100.0 : 0.0) - square(actions[i]) * 0.1;
    observe(s, obs + 2 * i);
  }
}

const ProximoEnv* proximo_env(void) {
  static const float high[] = {0.6f, 0.07f}, low[] = {-1.2f, -0.07f}, strongest[] = {1}, weakest[] = {-1};
  static const ProximoEnv env = {PROXIMO_ENV_VERSION, 2, low, high, 0, 1, weakest, strongest, sizeof(Car), 999, 0, 0,
                                 reset, step, NULL};
  return &env;
}
