// Threads that share the items of a call with the caller: whoever is free takes the next one. Who does it changes no
// number.
#pragma once

#include <system_error>
#include <vector>

#include "helper.h"

namespace {

class Team {
 public:
  explicit Team(int64_t helpers) {
    try {
      for (; helpers > 0; helpers--) threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {  // no more threads are to be had: fewer will do
    }
  }

  ~Team() {
    set(&over_, true);
    for (auto& thread : threads_) thread.join();
  }

  // Between the two, idle threads do not sleep.
  void begin() { set(&wanted_, true); }
  void end() { set(&wanted_, false); }

  // item(0), ..., item(count - 1), each once. Returns when all of them are done.
  template <typename Item>
  void each(int64_t count, Item item) {
    job_ = [](void* work, int64_t k) { (*static_cast<Item*>(work))(k); };
    work_ = &item;
    done_.store(0, std::memory_order_relaxed);
    left_.store(++calls_ << 32 | (uint64_t)count, std::memory_order_release);
    while (take()) {
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < count;) pause(++spins);
  }

 private:
  // The number of the call stands above the items left: what was seen in an earlier call is not taken for this one.
  bool take() {
    uint64_t left = left_.load(std::memory_order_acquire);
    do {
      if (!(uint32_t)left) return false;
    } while (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel));
    job_(work_, (int64_t)(uint32_t)left - 1);
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  void serve() {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return wanted_ || over_; });
      }
      if (over_) return;
      for (int spins = 0; wanted_.load(std::memory_order_acquire); pause(++spins))
        if (take()) spins = 0;
    }
  }

  void set(std::atomic<bool>* flag, bool to) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      flag->store(to, std::memory_order_release);
    }
    wake_.notify_all();
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> wanted_{false}, over_{false};
  std::atomic<uint64_t> left_{0};
  std::atomic<int64_t> done_{0};
  uint64_t calls_ = 0;
  void (*job_)(void*, int64_t) = nullptr;
  void* work_ = nullptr;
};

}  // namespace
