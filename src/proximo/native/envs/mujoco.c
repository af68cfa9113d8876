/* Gymnasium's MuJoCo environments (v5): a step of the simulation, and what it shows and pays.
 *
 * Gymnasium makes and resets them; MuJoCo's library simulates. Sums and roundings are those of NumPy in Gymnasium's
 * code, to the last bit (sines, cosines and lengths as far as the mathematical libraries agree).
 */
#include <math.h>

#include "proximo_env.h"

typedef struct { /* envs/mujoco.py fills it in, field by field */
  void (*simulate)(const void* model, void* data);
  void (*contacts)(const void* model, void* data); /* or NULL: nothing looks at cfrc_ext */
  const void* model;
  void* data;
  double *ctrl, *qpos, *qvel, *xpos, *xipos, *site_xpos, *cinert, *cvel, *qfrc_actuator, *qfrc_constraint, *cfrc_ext;
  const double* body_mass;
  double total_mass, timestep;
  int64_t obs_size, nq, nv, nu, nbody, frame_skip, bodies[3];
} Mujoco;

int64_t proximo_mujoco_size(void) { return sizeof(Mujoco); }

typedef struct {
  double reward;
  int terminated;
} Outcome;

/* numpy.sum of squares of less than 128 numbers: eight sums side by side. */
#define SUM_OF_SQUARES(name, number)                                                                       \
  static number name(const number* x, int64_t n) {                                                         \
    number part[8], sum = 0;                                                                               \
    int64_t i = 0;                                                                                         \
    if (n >= 8) {                                                                                          \
      for (; i < 8; i++) part[i] = x[i] * x[i];                                                            \
      for (; i < n - n % 8; i += 8)                                                                        \
        for (int j = 0; j < 8; j++) part[j] += x[i + j] * x[i + j];                                        \
      sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));     \
    }                                                                                                      \
    for (; i < n; i++) sum += x[i] * x[i];                                                                 \
    return sum;                                                                                            \
  }
SUM_OF_SQUARES(squares, double)
SUM_OF_SQUARES(squares_of_action, float)

static double clip(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

static double square(double x) {
  static volatile double two = 2; /* a product would be rounded in another way now and then */
  return pow(x, two);
}

static double distance(const double* a, const double* b) {
  const double x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2]; /* as BLAS adds up a product of vectors */
  return sqrt(fma(z, z, fma(y, y, x * x)));
}

static float* put(float* to, const double* from, int64_t count) {
  for (int64_t i = 0; i < count; i++) *to++ = (float)from[i];
  return to;
}

static float* put_clipped(float* to, const double* from, int64_t count, double most) {
  for (int64_t i = 0; i < count; i++) *to++ = (float)clip(from[i], -most, most);
  return to;
}

/* Positions without the first `skipped`, and velocities, up to `most`. */
static float* put_state(float* to, const Mujoco* m, int64_t skipped, double most) {
  to = put(to, m->qpos + skipped, m->nq - skipped);
  return put_clipped(to, m->qvel, m->nv, most);
}

static void simulate(Mujoco* m, const float* action) {
  for (int64_t i = 0; i < m->nu; i++) m->ctrl[i] = action[i];
  for (int64_t i = 0; i < m->frame_skip; i++) m->simulate(m->model, m->data);
  if (m->contacts) m->contacts(m->model, m->data);
}

/* Velocity of what was at `before`. */
static double velocity(const Mujoco* m, double before, double after) {
  return (after - before) / (m->timestep * (double)m->frame_skip);
}

static Outcome half_cheetah(Mujoco* m, const float* action, float* obs) {
  const double before = m->qpos[0];
  simulate(m, action);
  put_state(obs, m, 1, INFINITY);
  return (Outcome){velocity(m, before, m->qpos[0]) - 0.1f * squares_of_action(action, m->nu), 0};
}

static Outcome swimmer(Mujoco* m, const float* action, float* obs) {
  const double before = m->qpos[0];
  simulate(m, action);
  put_state(obs, m, 2, INFINITY);
  return (Outcome){velocity(m, before, m->qpos[0]) - 1e-4f * squares_of_action(action, m->nu), 0};
}

static Outcome legs(Mujoco* m, const float* action, float* obs, int (*healthy)(const Mujoco*)) {
  const double before = m->qpos[0];
  simulate(m, action);
  put_state(obs, m, 1, 10);
  const int well = healthy(m);
  return (Outcome){velocity(m, before, m->qpos[0]) + well - 1e-3f * squares_of_action(action, m->nu), !well};
}

static int hopper_is_healthy(const Mujoco* m) {
  for (int64_t i = 2; i < m->nq; i++)
    if (!(-100 < m->qpos[i] && m->qpos[i] < 100)) return 0;
  for (int64_t i = 0; i < m->nv; i++)
    if (!(-100 < m->qvel[i] && m->qvel[i] < 100)) return 0;
  return 0.7 < m->qpos[1] && m->qpos[1] < INFINITY && -0.2 < m->qpos[2] && m->qpos[2] < 0.2;
}

static Outcome hopper(Mujoco* m, const float* action, float* obs) { return legs(m, action, obs, hopper_is_healthy); }

static int walker_is_healthy(const Mujoco* m) {
  return 0.8 < m->qpos[1] && m->qpos[1] < 2 && -1 < m->qpos[2] && m->qpos[2] < 1;
}

static Outcome walker2d(Mujoco* m, const float* action, float* obs) { return legs(m, action, obs, walker_is_healthy); }

static Outcome inverted_pendulum(Mujoco* m, const float* action, float* obs) {
  simulate(m, action);
  put_state(obs, m, 0, INFINITY);
  int finite = 1;
  for (int64_t i = 0; i < m->nq; i++) finite &= isfinite(m->qpos[i]) && isfinite(m->qvel[i]);
  const int terminated = !finite || fabs(m->qpos[1]) > 0.2;
  return (Outcome){!terminated, terminated};
}

static Outcome inverted_double_pendulum(Mujoco* m, const float* action, float* obs) {
  simulate(m, action);
  const double x = m->site_xpos[0], y = m->site_xpos[2];
  obs = put(obs, m->qpos, 1);
  for (int64_t i = 1; i < m->nq; i++) *obs++ = (float)sin(m->qpos[i]);
  for (int64_t i = 1; i < m->nq; i++) *obs++ = (float)cos(m->qpos[i]);
  obs = put_clipped(obs, m->qvel, m->nv, 10);
  put_clipped(obs, m->qfrc_constraint, 1, 10);
  const int terminated = y <= 1;
  const double far = 0.01 * square(x) + square(y - 2), fast = 1e-3 * square(m->qvel[1]) + 5e-3 * square(m->qvel[2]);
  return (Outcome){10.0 * !terminated - far - fast, terminated};
}

static Outcome reacher(Mujoco* m, const float* action, float* obs) {
  const double *fingertip = m->xpos + 3 * m->bodies[0], *target = m->xpos + 3 * m->bodies[1];
  simulate(m, action);
  for (int i = 0; i < 2; i++) *obs++ = (float)cos(m->qpos[i]);
  for (int i = 0; i < 2; i++) *obs++ = (float)sin(m->qpos[i]);
  obs = put(obs, m->qpos + 2, m->nq - 2);
  obs = put(obs, m->qvel, 2);
  for (int i = 0; i < 2; i++) *obs++ = (float)(fingertip[i] - target[i]);
  return (Outcome){-distance(fingertip, target) + -squares_of_action(action, m->nu), 0};
}

static Outcome pusher(Mujoco* m, const float* action, float* obs) {
  const double *tips = m->xpos + 3 * m->bodies[0], *object = m->xpos + 3 * m->bodies[1];
  const double* goal = m->xpos + 3 * m->bodies[2];
  simulate(m, action);
  obs = put(obs, m->qpos, 7);
  obs = put(obs, m->qvel, 7);
  obs = put(obs, tips, 3);
  obs = put(obs, object, 3);
  put(obs, goal, 3);
  const double ctrl = -squares_of_action(action, m->nu) * 0.1f;
  return (Outcome){-distance(object, goal) + ctrl + -distance(object, tips) * 0.5, 0};
}

static Outcome ant(Mujoco* m, const float* action, float* obs) {
  const double *torso = m->xpos + 3, before = torso[0];
  simulate(m, action);
  obs = put_state(obs, m, 2, INFINITY);
  double forces[128];
  const int64_t count = 6 * m->nbody;
  for (int64_t i = 0; i < count; i++) forces[i] = clip(m->cfrc_ext[i], -1, 1);
  put(obs, forces + 6, count - 6);
  int healthy = 0.2 <= m->qpos[2] && m->qpos[2] <= 1;
  for (int64_t i = 0; i < m->nq; i++) healthy &= isfinite(m->qpos[i]) != 0;
  for (int64_t i = 0; i < m->nv; i++) healthy &= isfinite(m->qvel[i]) != 0;
  const double costs = 0.5f * squares_of_action(action, m->nu) + 5e-4 * squares(forces, count);
  return (Outcome){velocity(m, before, torso[0]) + healthy - costs, !healthy};
}

static void put_humanoid(float* obs, const Mujoco* m) {
  obs = put_state(obs, m, 2, INFINITY);
  obs = put(obs, m->cinert + 10, 10 * (m->nbody - 1));
  obs = put(obs, m->cvel + 6, 6 * (m->nbody - 1));
  obs = put(obs, m->qfrc_actuator + 6, m->nv - 6);
  put(obs, m->cfrc_ext + 6, 6 * (m->nbody - 1));
}

/* Of the centre of mass, along x. */
static double centre(const Mujoco* m) {
  double sum = m->body_mass[0] * m->xipos[0];
  for (int64_t i = 1; i < m->nbody; i++) sum += m->body_mass[i] * m->xipos[3 * i];
  return sum / m->total_mass;
}

static Outcome humanoid(Mujoco* m, const float* action, float* obs) {
  const double before = centre(m);
  simulate(m, action);
  put_humanoid(obs, m);
  const int healthy = 1 < m->qpos[2] && m->qpos[2] < 2;
  const double costs = 0.1 * squares(m->ctrl, m->nu) + clip(5e-7 * squares(m->cfrc_ext, 6 * m->nbody), -INFINITY, 10);
  return (Outcome){1.25 * velocity(m, before, centre(m)) + 5.0 * healthy - costs, !healthy};
}

static Outcome humanoid_standup(Mujoco* m, const float* action, float* obs) {
  simulate(m, action);
  put_humanoid(obs, m);
  const double impact = clip(0.5e-6 * squares(m->cfrc_ext, 6 * m->nbody), -INFINITY, 10);
  return (Outcome){m->qpos[2] / m->timestep - 0.1 * squares(m->ctrl, m->nu) - impact + 1, 0};
}

#define STEP(name)                                                                                            \
  void proximo_##name(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs,  \
                      double* reward, uint8_t* terminated, uint8_t* truncated) {                              \
    (void)choices, (void)truncated;                                                                           \
    for (int64_t i = 0; i < count; i++) {                                                                     \
      Mujoco* m = (Mujoco*)states + i;                                                                        \
      const Outcome outcome = name(m, actions + i * m->nu, obs + i * m->obs_size);                            \
      reward[i] = outcome.reward;                                                                             \
      terminated[i] = (uint8_t)outcome.terminated;                                                            \
    }                                                                                                         \
  }
STEP(half_cheetah)
STEP(hopper)
STEP(walker2d)
STEP(swimmer)
STEP(inverted_pendulum)
STEP(inverted_double_pendulum)
STEP(reacher)
STEP(pusher)
STEP(ant)
STEP(humanoid)
STEP(humanoid_standup)
