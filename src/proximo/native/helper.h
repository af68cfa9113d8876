// A second thread that does half of the work, if it comes in time: what it has not begun when the first
// has done its own half, the first does too. Who does it changes no number. Where the cores are busy with
// other things it would cost more than it brings: if it is late more than one time in eight, it is sent
// away, for longer every time. Between two calls it sleeps; nobody ever waits for it to wake.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

inline void pause(int spins) {
  constexpr int PATIENCE = 2000;  // looks, some 40 us, before others may run
  if (spins > PATIENCE) std::this_thread::yield();
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// The thread: one in a process, for one call at a time.
class Worker {
 public:
  enum State { IDLE, OFFERED, TAKEN, DONE };

  // Null where another call has it, or no more threads are to be had.
  static Worker* hire() {
    static std::mutex hiring;
    static Worker* worker = nullptr;  // never freed: it may be asleep when the process ends
    const std::unique_lock<std::mutex> lock(hiring, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    if (!worker || worker->process_ != getpid()) {  // a child of `fork` has no such thread
      Worker* made = new (std::nothrow) Worker;
      if (!made) return nullptr;
      try {
        std::thread([made] { made->serve(); }).detach();
      } catch (const std::system_error&) {
        delete made;
        return nullptr;
      }
      worker = made;
    }
    if (worker->hired_) return nullptr;
    worker->hired_ = true;
    worker->awake.store(false, std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> sleeping(worker->mutex_);
      worker->wanted_.store(true, std::memory_order_relaxed);
    }
    worker->wake_.notify_one();
    return worker;
  }

  void dismiss() {
    wanted_.store(false, std::memory_order_release);
    hired_ = false;
  }

  std::atomic<bool> awake{false};  // since it was hired
  std::atomic<int> state{IDLE};
  void (*job)(void*) = nullptr;
  void* work = nullptr;

 private:
  void serve() {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return wanted_.load(std::memory_order_acquire); });
      }
      for (int spins = 0; wanted_.load(std::memory_order_acquire); pause(++spins)) {
        awake.store(true, std::memory_order_relaxed);
        int offered = OFFERED;
        if (state.load(std::memory_order_acquire) != OFFERED ||
            !state.compare_exchange_strong(offered, TAKEN, std::memory_order_acq_rel))
          continue;
        job(work);
        state.store(DONE, std::memory_order_release);
        spins = 0;
      }
    }
  }

  const pid_t process_ = getpid();
  std::atomic<bool> hired_{false}, wanted_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

class Helper {
 public:
  explicit Helper(bool wanted) {
    if (wanted && absence().left-- <= 0) worker_ = Worker::hire();
  }

  ~Helper() {
    if (!worker_) return;
    absence().length = 0;
    worker_->dismiss();
  }

  template <typename Mine, typename Theirs>
  void both(Mine mine, Theirs theirs) {
    if (!worker_) {
      mine();
      theirs();
      return;
    }
    worker_->job = [](void* work) { (*static_cast<Theirs*>(work))(); };
    worker_->work = &theirs;
    worker_->state.store(Worker::OFFERED, std::memory_order_release);
    const auto begin = Clock::now();
    mine();
    const auto done = Clock::now();
    int offered = Worker::OFFERED;
    bool late = worker_->state.compare_exchange_strong(offered, Worker::IDLE, std::memory_order_acq_rel);
    if (late) {
      theirs();
    } else {
      for (int spins = 0; worker_->state.load(std::memory_order_acquire) != Worker::DONE;) pause(++spins);
      late = Clock::now() - done > std::max(done - begin, Clock::duration(std::chrono::microseconds(20)));
      worker_->state.store(Worker::IDLE, std::memory_order_relaxed);
    }
    if (!worker_->awake.load(std::memory_order_relaxed)) return;
    offers_++;
    missed_ += late;
    if (missed_ >= 3 && 8 * missed_ > offers_) {
      worker_->dismiss();
      worker_ = nullptr;
      absence().length = std::min(256, std::max(8, 2 * absence().length));
      absence().left = absence().length;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct Absence {
    int left = 0, length = 0;  // calls
  };
  static Absence& absence() {
    static thread_local Absence absence;
    return absence;
  }

  Worker* worker_ = nullptr;
  int64_t offers_ = 0, missed_ = 0;
};

}  // namespace
