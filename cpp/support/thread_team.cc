#include "support/thread_team.h"

#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace dlf {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kSpins = 4000;    // about 50 us
constexpr int64_t kShares = 6;  // chunks for each thread: few, so that each reads memory as one long stream

void pause() {
#ifdef DLF_X86_64
  __builtin_ia32_pause();
#endif
}

// Counts the forks between the first process and this one.
std::atomic<uint32_t>& forks() {
  static std::atomic<uint32_t> count{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1); });
  static_cast<void>(registered);
  return count;
}

}  // namespace

class ThreadTeam::Crew {
 public:
  explicit Crew(int workers) : forks_(forks().load()) {
    workers_.reserve(workers);
    try {
      while (static_cast<int>(workers_.size()) < workers) {
        workers_.emplace_back([this] { work(); });
      }
    } catch (const std::system_error& error) {
      stop();
      TORCH_CHECK(false, "the machine gave ", workers_.size() + 1, " of ", workers + 1, " threads (", error.what(),
                  "); ask for fewer with threads=, or raise its limit on processes, threads or memory");
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Crew() { stop(); }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Whether the workers belong to a parent process, and do not exist in this one.
  bool lost() const { return forks_ != forks().load(std::memory_order_relaxed); }

  void run(const Loop& loop);

 private:
  void stop();
  void work();
  void run_share() noexcept;

  uint32_t forks_;
  Loop loop_;
  int64_t chunk_ = 1;                    // items that a thread takes at once
  std::atomic<int64_t> next_{0};         // first item that no thread has taken
  std::atomic<uint32_t> generation_{0};  // a new value starts a loop
  std::atomic<int32_t> running_{0};      // workers still in the loop
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // the first that a body threw, if failed_
  std::vector<std::thread> workers_;
};

ThreadTeam::ThreadTeam(int size) : size_(size) {
  TORCH_CHECK_VALUE(size >= 1 && size <= kMostThreads, "threads is ", size, "; it must be from 1 to ", kMostThreads);
  if (size > 1) {
    hire();
  }
}

ThreadTeam::~ThreadTeam() = default;

// Frees the crew, unless its threads are another process's, which can be neither joined nor destroyed.
void ThreadTeam::Dismiss::operator()(Crew* crew) const {
  if (!crew->lost()) {
    const std::unique_ptr<Crew> owned(crew);
  }
}

void ThreadTeam::hire() { crew_.reset(std::make_unique<Crew>(size_ - 1).release()); }

void ThreadTeam::run(const Loop& loop) {
  if (crew_->lost()) {
    hire();
  }
  crew_->run(loop);
}

void ThreadTeam::Crew::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadTeam::Crew::run(const Loop& loop) {
  loop_ = loop;
  const int64_t grains = (loop.count + loop.grain - 1) / loop.grain;
  const auto threads = static_cast<int64_t>(workers_.size()) + 1;
  chunk_ = std::max(grains / (kShares * threads), int64_t{1}) * loop.grain;
  next_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  run_share();
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();  // a worker has lost its core: let it have ours
    }
  }
  if (failed_.exchange(false, std::memory_order_relaxed)) {
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void ThreadTeam::Crew::work() {
  uint32_t seen = 0;
  while (true) {
    uint32_t generation = generation_.load(std::memory_order_acquire);
    for (int spins = 0; generation == seen && spins < kSpins; ++spins) {
      pause();
      generation = generation_.load(std::memory_order_acquire);
    }
    if (generation == seen) {
      generation_.wait(seen, std::memory_order_acquire);
      continue;
    }
    seen = generation;
    if (stopping_.load(std::memory_order_relaxed)) {
      return;
    }
    run_share();
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadTeam::Crew::run_share() noexcept {
  try {
    while (true) {
      const int64_t begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
      if (begin >= loop_.count) {
        return;
      }
      loop_.call(loop_.body, begin, std::min(begin + chunk_, loop_.count));
    }
  } catch (...) {
    if (!failed_.exchange(true, std::memory_order_relaxed)) {
      error_ = std::current_exception();
    }
    next_.store(loop_.count, std::memory_order_relaxed);
  }
}

}  // namespace dlf
