#include "ops/cpu/experts.h"

#include <algorithm>
#include <array>

#include "ops/cpu/activation.h"
#include "ops/cpu/linear.h"

namespace dlf::ops {
namespace {

// The products of one run's pairs: their rows of x, and of y [pairs, out].
struct RunProduct {
  LinearInputRows x;
  LinearArgs args;
};

RunProduct product(const LinearInputRows& x, const Matrix& weight, float* y, const ExpertRun& run) {
  return {x.from(run.first), {{weight, nullptr, y + run.first * weight.out, run.pairs}, /*accumulate=*/false}};
}

// Calls body(run, begin, end) with stretches of the tiles of every run. All runs share one loop, since one expert has
// too little work for many threads.
template <typename Body>
void for_tiles(const CpuExpertsArgs& args, const Matrix& first, ThreadTeam& team, Body&& body) {
  const int64_t count = tiles(first.out);
  team.parallel_for(*args.routes.run_count * count, 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const ExpertRun& run = args.routes.runs[begin / count];
      const int64_t tile = begin % count;
      const int64_t last = std::min(count, tile + end - begin);
      body(run, tile, last);
      begin += last - tile;
    }
  });
}

void multiply(const CpuExpertsArgs& args, const RunProduct& product, int64_t begin, int64_t end) {
  args.is_prompt ? multiply_prompt_tiles(product.x, product.args, begin, end)
                 : multiply_tiles(product.x, product.args, begin, end);
}

// gated = activation(gate(x)) * up(x)
void gate(const CpuExpertsArgs& args, const LinearInputRows& x, ThreadTeam& team) {
  auto* const gated = static_cast<float*>(args.gated);
  const Matrix& first = args.experts[0].gate;
  const auto activate = DLF_CPU_DISPATCH(activation_kernel);
  const bool updated = !args.gate_updates.empty();  // the activation waits for the updates
  const auto activation_args = [&](const ExpertRun& run) {
    const int64_t place = int64_t{run.first} * args.inner;
    return ActivationArgs{gated + place, args.up + place, args.inner,     gated + place,
                          run.pairs,     args.inner,      DType::float32, args.activation};
  };
  for_tiles(args, first, team, [&](const ExpertRun& run, int64_t begin, int64_t end) {
    const Expert& expert = args.experts[run.expert];
    multiply(args, product(x, expert.gate, gated, run), begin, end);
    multiply(args, product(x, expert.up, args.up, run), begin, end);
    for (int64_t pair = 0; !updated && pair < run.pairs; ++pair) {
      activate(activation_args(run), pair * first.out + begin * kTileOutputs,
               pair * first.out + std::min(end * kTileOutputs, first.out));
    }
  });
  if (updated) {
    const auto pairs = static_cast<int>(args.rows * args.chosen);
    lora(args.input->prepare(args.products, pairs, args.hidden, args.update_type, team), args.gate_updates,
         args.update_type, team);
    ops::activate(activation_args({0, 0, pairs}), team);
  }
}

// products = down(gated)
void project(const CpuExpertsArgs& args, const LinearInputRows& x, ThreadTeam& team) {
  const Matrix& first = args.experts[0].down;
  for_tiles(args, first, team, [&](const ExpertRun& run, int64_t begin, int64_t end) {
    multiply(args, product(x, args.experts[run.expert].down, args.products, run), begin, end);
  });
  if (!args.down_updates.empty()) {
    const int64_t pairs = int64_t{args.rows} * args.chosen;
    const auto* gated = static_cast<const float*>(args.gated);
    lora(args.input->prepare(gated, pairs, args.inner, args.update_type, team), args.down_updates, args.update_type,
         team);
  }
}

void mix(const CpuExpertsArgs& args, int64_t row) {
  constexpr int kBlock = 256;
  const int32_t* places = args.routes.place + row * args.chosen;
  const float* weights = args.routes.weight + row * args.chosen;
  for (int begin = 0; begin < args.hidden; begin += kBlock) {
    const int count = std::min(kBlock, args.hidden - begin);
    std::array<float, kBlock> sums = {};
    for (int k = 0; k < args.chosen; ++k) {
      const float* product = args.products + int64_t{places[k]} * args.hidden + begin;
      for (int i = 0; i < count; ++i) {
        sums[i] += weights[k] * product[i];
      }
    }
    float* y = static_cast<float*>(args.y) + row * args.hidden + begin;
    for (int i = 0; i < count; ++i) {
      y[i] = args.accumulate ? y[i] + sums[i] : sums[i];
    }
  }
}

}  // namespace

void experts(const CpuExpertsArgs& args, ThreadTeam& team) {
  const int64_t pairs = int64_t{args.rows} * args.chosen;
  const Expert& first = args.experts[0];
  const auto* x = static_cast<const float*>(args.x);
  team.parallel_for(pairs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      std::copy_n(x + int64_t{args.routes.row[pair]} * args.hidden, args.hidden, args.products + pair * args.hidden);
    }
  });
  gate(args, args.input->prepare(args.products, pairs, args.hidden, first.gate.type, team), team);
  const auto* gated = static_cast<const float*>(args.gated);
  project(args, args.input->prepare(gated, pairs, args.inner, first.down.type, team), team);
  team.parallel_for(args.rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      mix(args, row);
    }
  });
}

}  // namespace dlf::ops
