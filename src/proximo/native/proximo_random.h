/* NumPy's generator for compiled environments: the numbers of numpy.random.default_rng(seed), to the bit.
 *
 * PCG64 (O'Neill 2014), seeded by NumPy's SeedSequence. So a compiled environment can begin as the one in Python does.
 */
#ifndef PROXIMO_RANDOM_H
#define PROXIMO_RANDOM_H

#include <stdint.h>

typedef struct {
  unsigned __int128 state, increment;
} ProximoRandom;

static inline void proximo_random_advance(ProximoRandom* random) {
  const unsigned __int128 multiplier = ((unsigned __int128)2549297995355413924ULL << 64) | 4865540595714422341ULL;
  random->state = random->state * multiplier + random->increment;
}

static inline uint32_t proximo_random_hash(uint32_t value, uint32_t* constant, uint32_t multiplier) {
  value ^= *constant;
  *constant *= multiplier;
  value *= *constant;
  return value ^ (value >> 16);
}

/* The generator of numpy.random.default_rng(seed). */
static inline ProximoRandom proximo_random(uint64_t seed) {
  uint32_t pool[4], words[8], constant = 0x43b0d7e5u;
  const uint32_t entropy[4] = {(uint32_t)seed, (uint32_t)(seed >> 32), 0, 0};
  for (int i = 0; i < 4; i++) pool[i] = proximo_random_hash(entropy[i], &constant, 0x931e8875u);
  for (int from = 0; from < 4; from++)
    for (int to = 0; to < 4; to++)
      if (from != to) {
        const uint32_t mixed =
            0xca01f9ddu * pool[to] - 0x4973f715u * proximo_random_hash(pool[from], &constant, 0x931e8875u);
        pool[to] = mixed ^ (mixed >> 16);
      }
  constant = 0x8b51f9ddu;
  for (int i = 0; i < 8; i++) words[i] = proximo_random_hash(pool[i % 4], &constant, 0x58f38dedu);
  unsigned __int128 parts[4];
  for (int i = 0; i < 4; i++) parts[i] = (uint64_t)words[2 * i] | (uint64_t)words[2 * i + 1] << 32;
  ProximoRandom random;
  random.increment = ((parts[2] << 64 | parts[3]) << 1) | 1;
  random.state = random.increment + (parts[0] << 64 | parts[1]);
  proximo_random_advance(&random);
  return random;
}

/* 64 random bits. */
static inline uint64_t proximo_random_bits(ProximoRandom* random) {
  proximo_random_advance(random);
  const uint64_t folded = (uint64_t)(random->state >> 64) ^ (uint64_t)random->state;
  const int turn = (int)(random->state >> 122);
  return folded >> turn | folded << (-turn & 63);
}

/* Generator.uniform(low, high). */
static inline double proximo_random_uniform(ProximoRandom* random, double low, double high) {
  return low + (high - low) * ((double)(proximo_random_bits(random) >> 11) * (1.0 / 9007199254740992.0));
}

#endif
