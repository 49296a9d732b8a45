#include "support/team_size.h"

#include <algorithm>
#include <vector>

#include "check.h"

namespace dlf {
namespace {

// Time of some work that threads share evenly.
double alone(int threads) { return 1.0 / threads; }

// Repeats the work; returns the threads that it had each time.
template <typename Time>
std::vector<int> repeat(TeamSize& size, int64_t times, Time&& time) {
  std::vector<int> threads;
  for (int64_t i = 0; i < times; ++i) {
    threads.push_back(size.next());
    size.add(time(size.next()));
  }
  return threads;
}

double share(const std::vector<int>& threads, int wanted) {
  return static_cast<double>(std::count(threads.begin(), threads.end(), wanted)) / static_cast<double>(threads.size());
}

void a_team_alone_stays_whole() {
  for (const int most : {2, 3, 16}) {
    TeamSize size(most);
    EXPECT(size.next() == most);
    repeat(size, 2000, alone);
    EXPECT(share(repeat(size, 5000, alone), most) > 0.99);
  }
}

void one_thread_has_no_choice() {
  TeamSize size(1);
  EXPECT(share(repeat(size, 500, alone), 1) == 1.0);
}

void where_threads_are_in_the_way_there_are_fewer() {
  for (const int best : {1, 2, 4}) {
    TeamSize size(8);
    const auto crowded = [&](int threads) { return threads <= best ? 1.0 / threads : 3.0; };
    repeat(size, 1000, crowded);
    EXPECT(share(repeat(size, 4000, crowded), best) > 0.97);
  }
}

void a_change_is_noticed() {
  TeamSize size(2);
  repeat(size, 3000, alone);
  const auto crowded = [](int threads) { return threads == 1 ? 1.1 : 4.0; };
  EXPECT(share(repeat(size, 60, crowded), 1) > 0.5);  // at once: the time has grown
  EXPECT(size.next() == 1);
  repeat(size, 2000, crowded);
  EXPECT(share(repeat(size, 1500, alone), 2) > 0.6);  // at the next trial
}

void equal_times_keep_the_size() {
  TeamSize size(4);
  EXPECT(share(repeat(size, 5000, [](int) { return 1.0; }), 4) > 0.9);
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"a team alone stays whole", dlf::a_team_alone_stays_whole},
      {"one thread has no choice", dlf::one_thread_has_no_choice},
      {"where threads are in the way there are fewer", dlf::where_threads_are_in_the_way_there_are_fewer},
      {"a change is noticed", dlf::a_change_is_noticed},
      {"equal times keep the size", dlf::equal_times_keep_the_size},
  });
}
