// A small pool: parallel loops over atoms. Work is gathered, never scattered, so who does what changes no bit.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "mfmd.hpp"

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

  // Each round of a loop has a gate. The caller closes it when no piece is left, and waits for the workers inside: one that was asleep and comes too
  // late is not waited for.
  class Team {
   public:
    explicit Team(int workers) : shares_(static_cast<std::size_t>(workers) + 1) {
      try {
        for (int worker = 1; worker <= workers; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
      } catch (const std::system_error& error) {
        end();
        throw InputError("no " + std::to_string(workers + 1) + " threads can be started here (" + error.what() + "); ask for fewer");
      }
    }
    ~Team() { end(); }

    void run(int items, int grain, Call call, const void* context) {
      context_ = context;
      call_ = call;
      grain_ = grain;
      const long pieces = (static_cast<long>(items) + grain - 1) / grain, teams = static_cast<long>(shares_.size());
      long begin = 0;
      for (long k = 0; k < teams; ++k) {  // the caller has a piece, however few there are
        Share& share = shares_[static_cast<std::size_t>(k)];
        const long end = (pieces * (k + 1) + teams - 1) / teams * grain;
        share.next.store(begin, std::memory_order_relaxed);
        begin = share.end = end < items ? end : items;
      }
      gate_.store(kOpen, std::memory_order_release);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        round_.fetch_add(1, std::memory_order_release);
      }
      wake_.notify_all();
      struct Closing {
        Team& team;
        ~Closing() { team.close(); }
      } closing{*this};
      work(0);
    }

    const pid_t process = getpid();

   private:
    static constexpr int kSpins = 2000;      // some 20 µs: stages of one step follow each other closely
    static constexpr int kOpen = 1 << 30;

    static void pause() {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ __volatile__("isb");  // a wait, as x86's pause is; `yield` does nothing on most
#endif
    }
    void end() {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
      }
      wake_.notify_all();
      for (auto& worker : workers_) worker.join();
    }
    // With mutex_ locked. std::condition_variable's own `wait` is of a libstdc++ newer than manylinux_2_34 has.
    void wait(std::condition_variable& condition) { pthread_cond_wait(condition.native_handle(), mutex_.native_handle()); }
    void close() {
      if (gate_.fetch_and(~kOpen, std::memory_order_acq_rel) == kOpen) return;
      for (int spin = 0; spin < kSpins; ++spin) {
        if (gate_.load(std::memory_order_acquire) == 0) return;
        pause();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      while (gate_.load(std::memory_order_acquire) != 0) wait(done_);
    }
    void serve(int worker) {
      for (long seen = 0;;) {
        for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
        if (round_.load(std::memory_order_acquire) == seen) {
          std::unique_lock<std::mutex> lock(mutex_);
          while (!stop_ && round_.load() == seen) wait(wake_);
          if (stop_) return;
        }
        seen = round_.load(std::memory_order_acquire);
        int gate = gate_.load(std::memory_order_acquire);
        while (gate & kOpen && !gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {}
        if (!(gate & kOpen)) continue;
        work(worker);
        if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
          std::lock_guard<std::mutex> lock(mutex_);
          done_.notify_one();
        }
      }
    }
    // A worker's own share first, the same rows in every loop of a step, so that they are in its cache; then what the others have left.
    void work(int worker) {
      for (std::size_t k = 0; k < shares_.size(); ++k) {
        Share& share = shares_[(static_cast<std::size_t>(worker) + k) % shares_.size()];
        while (share.next.load(std::memory_order_relaxed) < share.end) {
          const long begin = share.next.fetch_add(grain_, std::memory_order_relaxed), end = begin + grain_ < share.end ? begin + grain_ : share.end;
          if (begin < end) call_(context_, static_cast<int>(begin), static_cast<int>(end), worker);
        }
      }
    }

    struct alignas(64) Share {
      std::atomic<long> next{0};
      long end = 0;
    };
    std::vector<Share> shares_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    alignas(64) std::atomic<long> round_{0};
    alignas(64) std::atomic<int> gate_{0};  // kOpen, and how many workers are inside
    alignas(64) const void* context_ = nullptr;
    Call call_ = nullptr;
    int grain_ = 1;
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
