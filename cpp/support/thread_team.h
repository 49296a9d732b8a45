#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace dlf {

// A fixed team of threads that splits loops. A decode step holds hundreds of short loops, so the workers spin for the
// next one for a few tens of microseconds before they sleep: starting a loop costs about a microsecond and allocates
// nothing. The caller is the team's first thread. Not reentrant: one loop at a time.
class ThreadTeam {
 public:
  explicit ThreadTeam(int size);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) on disjoint ranges that cover [0, count), each but the last a multiple of grain long: a few
  // for each thread, taken as it comes to them, because a thread may lose its core for a while. The body must not
  // throw.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) {
      return;
    }
    if (workers_.empty() || count <= grain) {
      body(int64_t{0}, count);
      return;
    }
    using Function = std::remove_reference_t<Body>;
    Loop loop{count, grain, const_cast<void*>(static_cast<const void*>(&body)),
              [](void* function, int64_t begin, int64_t end) { (*static_cast<Function*>(function))(begin, end); }};
    run(loop);
  }

 private:
  struct Loop {
    int64_t count = 0;
    int64_t grain = 1;
    void* body = nullptr;
    void (*call)(void*, int64_t, int64_t) = nullptr;
  };

  void run(const Loop& loop);
  void work();
  void run_share();

  Loop loop_;
  int64_t chunk_ = 1;                    // items that a thread takes at once
  std::atomic<int64_t> next_{0};         // first item that no thread has taken
  std::atomic<uint32_t> generation_{0};  // a new value starts a loop
  std::atomic<int32_t> running_{0};      // workers still in it
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace dlf
