/* The interface of a compiled environment: one C or C++ file that defines `proximo_env`.
 *
 *     proximo train ppo native:my_env.c
 *
 * Observations are rows of numbers; an action is one choice, or a row of numbers. Several environments are stepped in
 * one call. State lies in memory that Proximo holds: so many bytes for each environment, aligned to 16, zero before the
 * first reset. A function may be called from any thread, for different states at the same time: keep nothing elsewhere.
 */
#ifndef PROXIMO_ENV_H
#define PROXIMO_ENV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PROXIMO_ENV_VERSION 1

typedef struct {
  int32_t version;         /* PROXIMO_ENV_VERSION */
  int32_t obs_size;        /* numbers of an observation */
  const float* obs_low;    /* their bounds, [obs_size]; NULL: none */
  const float* obs_high;
  int32_t num_actions;     /* an action is one of 0 to num_actions - 1; or 0: */
  int32_t action_size;     /* an action is so many numbers */
  const float* action_low; /* their bounds, [action_size] */
  const float* action_high;
  int64_t state_size;        /* bytes of the state of one environment */
  int32_t max_episode_steps; /* an episode is truncated after so many steps; 0: never */
  int32_t render_width;      /* of a picture; 0: there is none */
  int32_t render_height;

  /* Begin an episode. The same seed begins the same one. */
  void (*reset)(void* state, uint64_t seed, float* obs);

  /* Step `count` environments whose states lie one behind the other, each by its own action: choices[count], or
   * actions[count][action_size]; the other one is NULL. Fill in all of the rest; obs[count][obs_size] is the true
   * successor, where an episode ends too. Only an environment that does not end in `terminated` need set `truncated`,
   * which is 0 before. */
  void (*step)(void* states, int64_t count, const int64_t* choices, const float* actions, float* obs, double* reward,
               uint8_t* terminated, uint8_t* truncated);

  /* The picture of a state, [render_height][render_width][3]; NULL: there is none. */
  void (*render)(const void* state, uint8_t* rgb);
} ProximoEnv;

/* What the file defines: a description that lives as long as the process. */
const ProximoEnv* proximo_env(void);

#ifdef __cplusplus
}
#endif
#endif
