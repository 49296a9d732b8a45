#include "support/thread_team.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace dlf {
namespace {

void every_index_is_visited_once() {
  for (int size : {1, 2, 3, 5}) {
    ThreadTeam team(size);
    for (int64_t count : {1, 2, 3, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 16, 2000}) {
        std::vector<int> visits(count);
        team.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            ++visits[i];
          }
        });
        EXPECT(visits == std::vector<int>(count, 1));
      }
    }
  }
}

void ranges_start_on_grains() {
  ThreadTeam team(3);
  std::atomic<int> misplaced{0};
  team.parallel_for(100, 8,
                    [&](int64_t begin, int64_t end) { misplaced += begin % 8 != 0 || (end % 8 != 0 && end != 100); });
  EXPECT(misplaced == 0);
}

void an_empty_loop_calls_nothing() {
  ThreadTeam team(2);
  std::atomic<int> calls{0};
  team.parallel_for(0, 1, [&](int64_t, int64_t) { ++calls; });
  team.parallel_for(-4, 1, [&](int64_t, int64_t) { ++calls; });
  EXPECT(calls == 0);
}

void a_loop_sees_what_the_loop_before_wrote() {
  ThreadTeam team(4);
  std::vector<int64_t> values(257, 0);
  for (int64_t round = 0; round < 2000; ++round) {
    // The shift by one makes a thread read, at the border of its share, what another wrote.
    std::vector<int64_t> next(values.size());
    team.parallel_for(static_cast<int64_t>(values.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        next[i] = values[(i + 1) % values.size()] + 1;
      }
    });
    values = next;
  }
  EXPECT(std::accumulate(values.begin(), values.end(), int64_t{0}) == 2000 * 257);
}

void sleeping_workers_wake_up() {
  ThreadTeam team(2);
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than workers spin
    team.parallel_for(10, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  }
  EXPECT(sum == 30);
}

void a_team_that_never_ran_can_be_destroyed() {
  for (int round = 0; round < 50; ++round) {
    ThreadTeam team(3);
    EXPECT(team.size() == 3);
  }
}

void a_limit_keeps_threads_out_for_a_scope() {
  ThreadTeam team(4);
  // Threads of 50 loops, and of more while some are missing: a loop does not wait for a thread that comes late.
  const auto threads = [&](size_t expected) {
    std::mutex lock;
    std::set<std::thread::id> seen;
    for (int round = 0; round < 50 || (round < 20000 && seen.size() < expected); ++round) {
      team.parallel_for(64, 1, [&](int64_t, int64_t) {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
        const std::scoped_lock held(lock);
        seen.insert(std::this_thread::get_id());
      });
    }
    return seen.size();
  };
  for (const size_t most : {3, 1, 2}) {
    const ThreadTeam::Limit limit(team, static_cast<int>(most));
    EXPECT(threads(most) == most);
  }
  EXPECT(threads(4) == 4);
}

bool sums(ThreadTeam& team) {
  std::atomic<int64_t> sum{0};
  team.parallel_for(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  return sum == 100;
}

void what_a_body_throws_reaches_the_caller() {
  for (const int size : {1, 2, 4}) {
    ThreadTeam team(size);
    for (int64_t thrower = 0; thrower < 64; ++thrower) {
      std::string caught;
      try {
        team.parallel_for(64, 1, [&](int64_t begin, int64_t end) {
          if (begin <= thrower && thrower < end) {
            throw std::runtime_error("item " + std::to_string(thrower));
          }
        });
      } catch (const std::runtime_error& error) {
        caught = error.what();
      }
      EXPECT(caught == "item " + std::to_string(thrower));
      EXPECT(sums(team));
    }
  }
}

void every_thread_may_throw_at_once() {
  ThreadTeam team(4);
  for (int round = 0; round < 200; ++round) {
    EXPECT_THROWS(team.parallel_for(64, 1, [](int64_t, int64_t) { throw std::runtime_error("all"); }));
  }
  EXPECT(sums(team));
}

// Whether body() is true in a forked process, and that process ends in time.
template <typename Body>
bool holds_in_a_child(Body&& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0;
}

void a_team_works_on_in_a_forked_process() {
#ifdef __SANITIZE_THREAD__
  throw dlf::testing::Skip("ThreadSanitizer starts no threads in a forked process");
#endif
  ThreadTeam team(3);
  EXPECT(sums(team));
  {
    const ThreadTeam::Limit limit(team, 2);
    EXPECT(holds_in_a_child([&] { return sums(team); }));
  }
  EXPECT(holds_in_a_child([&] { return sums(team) && sums(team) && holds_in_a_child([&] { return sums(team); }); }));
  EXPECT(holds_in_a_child([] {
    {
      ThreadTeam own(2);
      static_cast<void>(sums(own));
    }
    return true;
  }));
  EXPECT(sums(team));
}

void a_team_may_be_destroyed_in_a_forked_process() {
  auto team = std::make_unique<ThreadTeam>(3);
  EXPECT(holds_in_a_child([&] {
    team.reset();
    return true;
  }));
}

bool refuses(int size, const char* reason) {
  try {
    ThreadTeam team(size);
  } catch (const std::exception& error) {
    return std::string(error.what()).find(reason) != std::string::npos;
  }
  return false;
}

void threads_that_there_are_not_are_an_error() {
  for (const int size : {-1, 0, 1025, INT32_MAX}) {
    EXPECT(refuses(size, "from 1 to 1024"));
  }
// Sanitizers take more address space than any limit leaves.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT(holds_in_a_child([] {
    const rlimit limit = {rlim_t{1} << 30, rlim_t{1} << 30};
    return setrlimit(RLIMIT_AS, &limit) == 0 && refuses(1000, "of 1000 threads") && refuses(1000, "ask for fewer");
  }));
#endif
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"every index is visited once", dlf::every_index_is_visited_once},
      {"ranges start on grains", dlf::ranges_start_on_grains},
      {"an empty loop calls nothing", dlf::an_empty_loop_calls_nothing},
      {"a loop sees what the loop before wrote", dlf::a_loop_sees_what_the_loop_before_wrote},
      {"sleeping workers wake up", dlf::sleeping_workers_wake_up},
      {"a limit keeps threads out for a scope", dlf::a_limit_keeps_threads_out_for_a_scope},
      {"a team that never ran can be destroyed", dlf::a_team_that_never_ran_can_be_destroyed},
      {"what a body throws reaches the caller", dlf::what_a_body_throws_reaches_the_caller},
      {"every thread may throw at once", dlf::every_thread_may_throw_at_once},
      {"a team works on in a forked process", dlf::a_team_works_on_in_a_forked_process},
      {"a team may be destroyed in a forked process", dlf::a_team_may_be_destroyed_in_a_forked_process},
      {"threads that there are not are an error", dlf::threads_that_there_are_not_are_an_error},
  });
}
