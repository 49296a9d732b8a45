#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "support/cuda/runtime.h"

// Times the work of a graph, without launches by the host.
namespace dlf::cuda {

struct Microseconds {
  double median;
  double least;
};

// Time of one of the `count` equal operations in the graph.
inline Microseconds time_graph(Graph& graph, Queue& queue, int count, double round_seconds) {
  constexpr int kRounds = 9;
  const auto seconds_of = [&](int replays) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < replays; ++i) {
      graph.replay(queue);
    }
    queue.synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  seconds_of(1);  // uploads the graph
  const double once = std::max(seconds_of(1), 1e-6);
  const int replays = static_cast<int>(std::clamp(round_seconds / once, 1.0, 100.0)) + 1;
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    times.push_back(1e6 * seconds_of(replays) / replays / count);
  }
  std::sort(times.begin(), times.end());
  return {times[kRounds / 2], times.front()};
}

}  // namespace dlf::cuda
