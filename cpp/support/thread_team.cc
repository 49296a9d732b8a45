#include "support/thread_team.h"

#include <algorithm>

namespace dlf {
namespace {

constexpr int kSpins = 4000;  // about 50 us

void pause() {
#ifdef DLF_X86_64
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadTeam::ThreadTeam(int size) {
  for (int index = 1; index < size; ++index) {
    workers_.emplace_back([this, index] { work(index); });
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
  running_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  run_share(0);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();  // a worker has lost its core: let it have ours
    }
  }
}

void ThreadTeam::work(int index) {
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
    run_share(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadTeam::run_share(int index) const {
  const int64_t grains = (loop_.count + loop_.grain - 1) / loop_.grain;
  const int64_t begin = grains * index / size() * loop_.grain;
  const int64_t end = std::min(grains * (index + 1) / size() * loop_.grain, loop_.count);
  if (begin < end) {
    loop_.call(loop_.body, begin, end);
  }
}

}  // namespace dlf
