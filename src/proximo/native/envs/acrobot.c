/* Acrobot (Sutton 1996, with the book's equations), as Gymnasium's Acrobot-v1 computes it. */
#include <math.h>

#include "proximo_env.h"
#include "proximo_random.h"

typedef struct {
  double angle1, angle2, spin1, spin2;
} Acrobot;

static const double PI = 3.141592653589793, GRAVITY = 9.8, SECONDS = 0.2;

static void observe(const Acrobot* s, float* obs) {
  obs[0] = (float)cos(s->angle1);
  obs[1] = (float)sin(s->angle1);
  obs[2] = (float)cos(s->angle2);
  obs[3] = (float)sin(s->angle2);
  obs[4] = (float)s->spin1;
  obs[5] = (float)s->spin2;
}

static void reset(void* state, uint64_t seed, float* obs) {
  Acrobot* s = (Acrobot*)state;
  ProximoRandom random = proximo_random(seed);
  s->angle1 = (float)proximo_random_uniform(&random, -0.1, 0.1);
  s->angle2 = (float)proximo_random_uniform(&random, -0.1, 0.1);
  s->spin1 = (float)proximo_random_uniform(&random, -0.1, 0.1);
  s->spin2 = (float)proximo_random_uniform(&random, -0.1, 0.1);
  observe(s, obs);
}

/* Python's x ** 2 is the library's power, whose last bit is not always that of x * x. */
static double square(double x) {
  volatile double two = 2; /* or the compiler would multiply */
  return pow(x, two);
}

/* How the state changes in a second. Both links are of length and mass 1, with their centre in the middle. */
static Acrobot derivative(Acrobot s, double torque) {
  const double cos2 = cos(s.angle2), sin2 = sin(s.angle2);
  const double d1 = 0.25 + (1 + 0.25 + 2 * 0.5 * cos2) + 1 + 1;
  const double d2 = 0.25 + 0.5 * cos2 + 1;
  const double phi2 = 0.5 * GRAVITY * cos(s.angle1 + s.angle2 - PI / 2.0);
  const double phi1 = -0.5 * square(s.spin2) * sin2 - 2 * 0.5 * s.spin2 * s.spin1 * sin2 +
                      (0.5 + 1) * GRAVITY * cos(s.angle1 - PI / 2) + phi2;
  const double turned2 = (torque + d2 / d1 * phi1 - 0.5 * square(s.spin1) * sin2 - phi2) /
                         (0.25 + 1 - square(d2) / d1);
  const Acrobot change = {s.spin1, s.spin2, -(d2 * turned2 + phi1) / d1, turned2};
  return change;
}

static Acrobot moved(Acrobot s, double by, Acrobot change) {
  const Acrobot after = {s.angle1 + by * change.angle1, s.angle2 + by * change.angle2, s.spin1 + by * change.spin1,
                         s.spin2 + by * change.spin2};
  return after;
}

static double mean(double a, double b, double c, double d) { return a + 2 * b + 2 * c + d; }

static double wrapped(double x) {
  while (x > PI) x = x - 2 * PI;
  while (x < -PI) x = x + 2 * PI;
  return x;
}

static double bounded(double x, double most) { return fmin(fmax(x, -most), most); }

static void step(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs,
                 double* reward, uint8_t* terminated, uint8_t* truncated) {
  (void)actions, (void)truncated;
  for (int64_t i = 0; i < count; i++) {
    Acrobot* s = (Acrobot*)states + i;
    const double torque = (double)(choices[i] - 1);
    const Acrobot k1 = derivative(*s, torque); /* Runge-Kutta */
    const Acrobot k2 = derivative(moved(*s, SECONDS / 2, k1), torque);
    const Acrobot k3 = derivative(moved(*s, SECONDS / 2, k2), torque);
    const Acrobot k4 = derivative(moved(*s, SECONDS, k3), torque);
    const Acrobot sum = {mean(k1.angle1, k2.angle1, k3.angle1, k4.angle1),
                         mean(k1.angle2, k2.angle2, k3.angle2, k4.angle2),
                         mean(k1.spin1, k2.spin1, k3.spin1, k4.spin1), mean(k1.spin2, k2.spin2, k3.spin2, k4.spin2)};
    const Acrobot after = moved(*s, SECONDS / 6.0, sum);
    s->angle1 = wrapped(after.angle1);
    s->angle2 = wrapped(after.angle2);
    s->spin1 = bounded(after.spin1, 4 * PI);
    s->spin2 = bounded(after.spin2, 9 * PI);
    terminated[i] = -cos(s->angle1) - cos(s->angle2 + s->angle1) > 1.0;
    reward[i] = terminated[i] ? 0 : -1;
    observe(s, obs + 6 * i);
  }
}

const ProximoEnv* proximo_env(void) {
  static const float high[] = {1, 1, 1, 1, 12.566370614359172f, 28.274333882308138f};
  static const float low[] = {-1, -1, -1, -1, -12.566370614359172f, -28.274333882308138f};
  static const ProximoEnv env = {PROXIMO_ENV_VERSION, 6, low, high, 3, 0, NULL, NULL, sizeof(Acrobot), 500, 0, 0,
                                 reset, step, NULL};
  return &env;
}
