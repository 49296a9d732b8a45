#include "ops/cpu/router.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>

namespace dlf::ops {
namespace {

void choose(const RouterArgs& args, int64_t row) {
  const float* logits = args.logits + row * args.experts;
  int32_t* expert = args.routes.expert + row * args.chosen;
  float* weight = args.routes.weight + row * args.chosen;
  std::bitset<kMostExperts> taken;
  for (int k = 0; k < args.chosen; ++k) {
    uint64_t best = 0;
    for (int e = 0; e < args.experts; ++e) {
      if (!taken[e]) {
        best = std::max(best, router_key(logits[e], e));
      }
    }
    expert[k] = expert_of_key(best);
    taken.set(expert[k]);
  }
  const float largest = logits[expert[0]];
  for (int k = 0; k < args.chosen; ++k) {
    weight[k] = std::exp(logits[expert[k]] - largest);
  }
  float total = 0.0F;
  if (args.normalise) {
    for (int k = 0; k < args.chosen; ++k) {
      total += weight[k];
    }
  } else {
    for (int e = 0; e < args.experts; ++e) {
      total += std::exp(logits[e] - largest);
    }
  }
  for (int k = 0; k < args.chosen; ++k) {
    weight[k] /= total;
  }
}

}  // namespace

void router(const RouterArgs& args, ThreadTeam& team) {
  team.parallel_for(args.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      choose(args, row);
    }
  });
  const Routes& routes = args.routes;
  const int pairs = args.rows * args.chosen;
  std::array<int32_t, kMostExperts> next = {};  // pairs of each expert, then the place of its next one
  for (int i = 0; i < pairs; ++i) {
    ++next[routes.expert[i]];
  }
  int32_t runs = 0;
  int32_t first = 0;
  for (int32_t e = 0; e < args.experts; ++e) {
    const int32_t end = first + next[e];
    next[e] = first;
    while (first < end) {
      const int32_t run = std::min(args.run_pairs, end - first);
      routes.runs[runs++] = {e, first, run};
      first += run;
    }
  }
  *routes.run_count = runs;
  for (int i = 0; i < pairs; ++i) {
    const int32_t place = next[routes.expert[i]]++;
    routes.place[i] = place;
    routes.row[place] = i / args.chosen;
  }
}

}  // namespace dlf::ops
