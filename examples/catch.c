/* Catch: a ball falls over ten rows, and a paddle of one cell below must be where it lands.
 *
 *     proximo check native:examples/catch.c
 *     proximo train ppo native:examples/catch.c --total-steps 200000 --run-dir runs/catch
 *     proximo play runs/catch --env native:examples/catch.c --video catch.gif
 *
 * What each function must do stands in proximo_env.h, which lies beside proximo_random.h in the package.
 */
#include <string.h>

#include "proximo_env.h"
#include "proximo_random.h"

enum { COLUMNS = 9, ROWS = 10, CELL = 16 };

typedef struct {
  ProximoRandom random;
  int column, row, drift, paddle;
} Catch;

static void observe(const Catch* s, float* obs) {
  obs[0] = (float)s->column / (COLUMNS - 1);
  obs[1] = (float)s->row / (ROWS - 1);
  obs[2] = (float)s->drift;
  obs[3] = (float)s->paddle / (COLUMNS - 1);
}

static int drawn(Catch* s, int count) { return (int)(proximo_random_bits(&s->random) % (uint64_t)count); }

static void reset(void* state, uint64_t seed, float* obs) {
  Catch* s = (Catch*)state;
  s->random = proximo_random(seed);
  s->column = drawn(s, COLUMNS);
  s->drift = drawn(s, 3) - 1; /* the ball moves sideways too, and bounces off the walls */
  s->row = 0;
  s->paddle = COLUMNS / 2;
  observe(s, obs);
}

static int within(int column) { return column < 0 ? 0 : column >= COLUMNS ? COLUMNS - 1 : column; }

static void step(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs,
                 double* reward, uint8_t* terminated, uint8_t* truncated) {
  (void)actions, (void)truncated;
  for (int64_t i = 0; i < count; i++) {
    Catch* s = (Catch*)states + i;
    s->paddle = within(s->paddle + (int)choices[i] - 1);
    if (s->column + s->drift != within(s->column + s->drift)) s->drift = -s->drift;
    s->column += s->drift;
    s->row++;
    terminated[i] = s->row == ROWS - 1;
    reward[i] = terminated[i] ? (s->column == s->paddle ? 1 : -1) : 0;
    observe(s, obs + 4 * i);
  }
}

static void paint(uint8_t* rgb, int column, int row, uint8_t red, uint8_t green, uint8_t blue) {
  for (int y = row * CELL; y < (row + 1) * CELL; y++)
    for (int x = column * CELL; x < (column + 1) * CELL; x++) {
      uint8_t* pixel = rgb + 3 * (y * COLUMNS * CELL + x);
      pixel[0] = red, pixel[1] = green, pixel[2] = blue;
    }
}

static void render(const void* state, uint8_t* rgb) {
  const Catch* s = (const Catch*)state;
  memset(rgb, 245, 3 * COLUMNS * ROWS * CELL * CELL);
  paint(rgb, s->paddle, ROWS - 1, 40, 90, 160);
  paint(rgb, s->column, s->row, 210, 90, 40);
}

const ProximoEnv* proximo_env(void) {
  static const float low[] = {0, 0, -1, 0}, high[] = {1, 1, 1, 1};
  static const ProximoEnv env = {
      .version = PROXIMO_ENV_VERSION,
      .obs_size = 4,
      .obs_low = low,
      .obs_high = high,
      .num_actions = 3, /* left, stay, right */
      .state_size = sizeof(Catch),
      .render_width = COLUMNS * CELL,
      .render_height = ROWS * CELL,
      .reset = reset,
      .step = step,
      .render = render,
  };
  return &env;
}
