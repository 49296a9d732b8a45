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

#include "support/turn.h"

namespace dlf {
namespace {

constexpr int kMostThreads = 1024;
// A gate counts the workers inside below this bit, which says that it is open; above it are the loops that have ended.
constexpr uint32_t kOpen = kMostThreads;
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
  explicit Crew(int workers) : forks_(forks().load()), limit_(workers) {
    workers_.reserve(workers);
    try {
      while (static_cast<int>(workers_.size()) < workers) {
        workers_.emplace_back([this, number = static_cast<int>(workers_.size())] { work(number); });
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

  void limit(int workers);
  void run(const Loop& loop);

 private:
  void stop();
  void work(int number);
  bool enter(uint32_t& loop);
  bool run_share(Turn& turn) noexcept;

  uint32_t forks_;
  Turn turn_;  // of the thread that calls run()
  Loop loop_;
  int64_t chunk_ = 1;              // items that a thread takes at once
  std::atomic<int64_t> next_{0};   // first item that no thread has taken
  std::atomic<uint32_t> gate_{0};  // nobody waits for a worker that does not come in while it is open
  std::atomic<int> limit_;         // workers that take part
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // the first that a body threw, if failed_
  std::vector<std::thread> workers_;
};

ThreadTeam::ThreadTeam(int size) : size_(size), limit_(size) {
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

void ThreadTeam::limit(int threads) {
  if (threads != limit_ && crew_ != nullptr) {
    limit_ = threads;
    crew_->limit(threads - 1);
  }
}

void ThreadTeam::run(const Loop& loop) {
  if (crew_->lost()) {
    hire();
    crew_->limit(limit_ - 1);
  }
  crew_->run(loop);
}

void ThreadTeam::Crew::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  gate_.fetch_add(2 * kOpen, std::memory_order_release);
  gate_.notify_all();
  limit(static_cast<int>(workers_.size()));
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadTeam::Crew::limit(int workers) {
  limit_.store(workers, std::memory_order_release);
  limit_.notify_all();
}

void ThreadTeam::Crew::run(const Loop& loop) {
  loop_ = loop;
  const int64_t grains = (loop.count + loop.grain - 1) / loop.grain;
  const auto threads = static_cast<int64_t>(limit_.load(std::memory_order_relaxed)) + 1;
  chunk_ = std::max(grains / (kShares * threads), int64_t{1}) * loop.grain;
  next_.store(0, std::memory_order_relaxed);
  gate_.fetch_add(kOpen, std::memory_order_release);
  gate_.notify_all();
  while (run_share(turn_)) {
    turn_.rest();
  }
  gate_.fetch_add(kOpen, std::memory_order_relaxed);
  for (int spins = 0; gate_.load(std::memory_order_acquire) % kOpen != 0; ++spins) {
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

// Goes in if the gate is open, for another loop than `loop`.
bool ThreadTeam::Crew::enter(uint32_t& loop) {
  uint32_t gate = gate_.load(std::memory_order_relaxed);
  const uint32_t found = gate / kOpen;
  if (found % 2 == 0 || found == loop ||
      !gate_.compare_exchange_strong(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed)) {
    return false;
  }
  loop = found;
  return true;
}

void ThreadTeam::Crew::work(int number) {
  Turn turn;
  uint32_t loop = 0;  // the last one without work for this worker
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (const int limit = limit_.load(std::memory_order_relaxed); number >= limit) {
      limit_.wait(limit, std::memory_order_acquire);
      continue;
    }
    const uint32_t gate = gate_.load(std::memory_order_relaxed);
    bool inside = enter(loop);
    for (int spins = 0; !inside && spins < kSpins; ++spins) {
      pause();
      inside = enter(loop);
    }
    if (!inside) {
      gate_.wait(gate, std::memory_order_acquire);
      continue;
    }
    const bool early = run_share(turn);
    gate_.fetch_sub(1, std::memory_order_release);
    if (early) {
      loop = 0;
      turn.rest();
    }
  }
}

// Works until there is nothing left, or the turn of this thread is over; returns whether it ended early.
bool ThreadTeam::Crew::run_share(Turn& turn) noexcept {
  try {
    while (true) {
      const int64_t begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
      if (begin >= loop_.count) {
        return false;
      }
      loop_.call(loop_.body, begin, std::min(begin + chunk_, loop_.count));
      if (turn.over()) {
        return true;
      }
    }
  } catch (...) {
    if (!failed_.exchange(true, std::memory_order_relaxed)) {
      error_ = std::current_exception();
    }
    next_.store(loop_.count, std::memory_order_relaxed);
    return false;
  }
}

}  // namespace dlf
