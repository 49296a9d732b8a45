#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace dlf {

// A fixed team of threads that splits loops. A decode step has hundreds of short loops, so the workers spin for the
// next one for a few tens of microseconds before they sleep: starting a loop costs about a microsecond and allocates
// nothing. The caller is the team's first thread. Not reentrant: one loop at a time. A forked process has none of the
// workers; the team's next loop there makes new ones.
class ThreadTeam {
 public:
  // Throws if the machine does not give as many threads.
  explicit ThreadTeam(int size);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Lets the loops of a scope have fewer threads; the rest of the team sleeps.
  class Limit {
   public:
    Limit(ThreadTeam& team, int threads) : team_(team) { team_.limit(threads); }
    ~Limit() { team_.limit(team_.size_); }
    Limit(const Limit&) = delete;
    Limit& operator=(const Limit&) = delete;

   private:
    ThreadTeam& team_;
  };

  // Calls body(begin, end) on disjoint ranges that cover [0, count), each but the last a multiple of grain long. There
  // are a few for each thread, which takes the next one when it is free, because a thread may lose its core for a
  // while; a thread that has none when a loop ends is not waited for. If a body throws, no further range begins, and
  // the first exception reaches the caller when all threads have left the loop.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) {
      return;
    }
    if (limit_ == 1 || count <= grain) {
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
  class Crew;  // the workers of one process
  struct Dismiss {
    void operator()(Crew* crew) const;
  };

  void hire();
  void limit(int threads);
  void run(const Loop& loop);

  int size_;
  int limit_;                            // threads that take part in loops
  std::unique_ptr<Crew, Dismiss> crew_;  // null without workers
};

}  // namespace dlf
