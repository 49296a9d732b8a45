#include "support/thread_team.h"

#include <algorithm>

namespace dlf {
namespace {

constexpr int kSpins = 4000;    // about 50 us
constexpr int64_t kShares = 6;  // chunks for each thread: few, so that each reads memory as one long stream

void pause() {
#ifdef DLF_X86_64
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadTeam::ThreadTeam(int size) {
  for (int index = 1; index < size; ++index) {
    workers_.emplace_back([this] { work(); });
  }
}

ThreadTeam::~ThreadTeam() {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadTeam::run(const Loop& loop) {
  loop_ = loop;
  const int64_t grains = (loop.count + loop.grain - 1) / loop.grain;
  chunk_ = std::max(grains / (kShares * size()), int64_t{1}) * loop.grain;
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
}

void ThreadTeam::work() {
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

void ThreadTeam::run_share() {
  while (true) {
    const int64_t begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
    if (begin >= loop_.count) {
      return;
    }
    loop_.call(loop_.body, begin, std::min(begin + chunk_, loop_.count));
  }
}

}  // namespace dlf
