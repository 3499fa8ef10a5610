// A small pool: parallel loops over atoms. Work is gathered, never scattered, so who does what changes no bit.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace mfmd {

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads < 1 ? 1 : threads) {}
  ~Pool() { forget_after_fork(); }

  int threads() const { return threads_; }

  // body(begin, end, worker) over [0, items) in pieces of `grain`; what fits one piece runs here and now, as does all with one thread. It must not throw
  // in another thread than the caller's.
  template <class Body> void loop(int items, int grain, const Body& body) {
    if (items <= 0) return;
    if (threads_ == 1 || items <= grain) {
      for (int begin = 0; begin < items; begin += grain) body(begin, begin + grain < items ? begin + grain : items, 0);
      return;
    }
    forget_after_fork();
    if (!team_) team_ = std::make_unique<Team>(threads_ - 1);
    team_->run(
        items, grain, [](const void* context, int begin, int end, int worker) { (*static_cast<const Body*>(context))(begin, end, worker); },
        &body);
  }

 private:
  using Call = void (*)(const void* context, int begin, int end, int worker);

  class Team {
   public:
    explicit Team(int workers) {
      for (int worker = 1; worker <= workers; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
    }
    ~Team() {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
      }
      wake_.notify_all();
      for (auto& worker : workers_) worker.join();
    }

    void run(int items, int grain, Call call, const void* context) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        context_ = context;
        call_ = call;
        items_ = items;
        grain_ = grain;
        next_.store(0, std::memory_order_relaxed);
        busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);
      }
      wake_.notify_all();
      work(0);
      for (int spin = 0; spin < kSpins && busy_.load(std::memory_order_acquire) != 0; ++spin) pause();
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [&] { return busy_.load() == 0; });
    }

    const pid_t process = getpid();

   private:
    static constexpr int kSpins = 2000;  // some 20 µs: stages of one step follow each other closely

    static void pause() {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    void serve(int worker) {
      long seen = 0;
      for (;;) {
        for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
        {
          std::unique_lock<std::mutex> lock(mutex_);
          wake_.wait(lock, [&] { return stop_ || round_.load() != seen; });
          if (stop_) return;
          seen = round_.load();
        }
        work(worker);
        if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
          std::lock_guard<std::mutex> lock(mutex_);
          done_.notify_one();
        }
      }
    }
    void work(int worker) {
      for (;;) {
        const int begin = next_.fetch_add(grain_, std::memory_order_relaxed);
        if (begin >= items_) return;
        call_(context_, begin, begin + grain_ < items_ ? begin + grain_ : items_, worker);
      }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::atomic<long> round_{0};
    std::atomic<int> next_{0}, busy_{0};
    const void* context_ = nullptr;
    Call call_ = nullptr;
    int items_ = 0, grain_ = 1;
    bool stop_ = false;
    std::vector<std::thread> workers_;
  };

  // A forked child has the team's memory, but none of its threads: it leaves them be and starts its own.
  void forget_after_fork() {
    if (team_ && team_->process != getpid()) static_cast<void>(team_.release());
  }

  const int threads_;
  std::unique_ptr<Team> team_;
};

}  // namespace mfmd
