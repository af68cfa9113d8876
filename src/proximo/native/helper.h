// A second thread that does half of the work, if it comes in time: what it has not begun when the first
// has done its own half, the first does too. Who does it changes no number. Where the cores are busy with
// other things it would cost more than it brings: if it is late more than one time in eight, it is sent
// away, for longer every time.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>

namespace {

class Helper {
 public:
  explicit Helper(bool wanted) {
    if (!wanted || absence().left-- > 0) return;
    try {
      thread_ = std::thread([this] { serve(); });
      present_ = true;
    } catch (const std::system_error&) {  // no more threads to be had
    }
  }

  ~Helper() {
    if (present_) {
      absence().length = 0;
      leave();
    }
  }

  template <typename Mine, typename Theirs>
  void both(Mine mine, Theirs theirs) {
    if (!present_) {
      mine();
      theirs();
      return;
    }
    job_ = [](void* work) { (*static_cast<Theirs*>(work))(); };
    work_ = &theirs;
    state_.store(OFFERED, std::memory_order_release);
    const auto begin = Clock::now();
    mine();
    const auto done = Clock::now();
    int offered = OFFERED;
    bool late = state_.compare_exchange_strong(offered, IDLE, std::memory_order_acq_rel);
    if (late) {
      theirs();
    } else {
      for (int spins = 0; state_.load(std::memory_order_acquire) != DONE;) pause(++spins);
      late = Clock::now() - done > std::max(done - begin, Clock::duration(std::chrono::microseconds(20)));
      state_.store(IDLE, std::memory_order_relaxed);
    }
    if (!started_.load(std::memory_order_relaxed)) return;
    offers_++;
    missed_ += late;
    if (missed_ >= 3 && 8 * missed_ > offers_) {
      leave();
      absence().length = std::min(256, std::max(8, 2 * absence().length));
      absence().left = absence().length;
    }
  }

 private:
  enum State { IDLE, OFFERED, TAKEN, DONE, OVER };
  using Clock = std::chrono::steady_clock;
  static constexpr int PATIENCE = 2000;  // looks, some 40 us, before others may run

  struct Absence {
    int left = 0, length = 0;  // calls
  };
  static Absence& absence() {
    static thread_local Absence absence;
    return absence;
  }

  static void pause(int spins) {
    if (spins > PATIENCE) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  void serve() {
    started_.store(true, std::memory_order_relaxed);
    for (int spins = 0;; pause(++spins)) {
      int state = state_.load(std::memory_order_acquire);
      if (state == OVER) return;
      if (state != OFFERED || !state_.compare_exchange_strong(state, TAKEN, std::memory_order_acq_rel)) continue;
      job_(work_);
      state_.store(DONE, std::memory_order_release);
      spins = 0;
    }
  }

  void leave() {
    state_.store(OVER, std::memory_order_release);
    thread_.join();
    present_ = false;
  }

  bool present_ = false;
  int64_t offers_ = 0, missed_ = 0;
  std::atomic<bool> started_{false};
  std::atomic<int> state_{IDLE};
  void (*job_)(void*) = nullptr;
  void* work_ = nullptr;
  std::thread thread_;
};

}  // namespace
