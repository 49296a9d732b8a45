#include "support/thread_team.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
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
    // Shifted by one, so that at the borders of the shares a thread reads what another wrote.
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
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than they spin
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

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"every index is visited once", dlf::every_index_is_visited_once},
      {"ranges start on grains", dlf::ranges_start_on_grains},
      {"an empty loop calls nothing", dlf::an_empty_loop_calls_nothing},
      {"a loop sees what the loop before wrote", dlf::a_loop_sees_what_the_loop_before_wrote},
      {"sleeping workers wake up", dlf::sleeping_workers_wake_up},
      {"a team that never ran can be destroyed", dlf::a_team_that_never_ran_can_be_destroyed},
  });
}
