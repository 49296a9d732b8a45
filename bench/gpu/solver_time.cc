#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <vector>

#include "fusion/cuda/solver.h"
#include "graph_time.h"
#include "sampling/cuda/sampler_state.h"
#include "support/cuda/runtime.h"

// Prints the time of one fusion solve and of one sampled token on a GPU, as lines of JSON on stdout. It captures many
// of them in a graph and replays it, so the time includes no launch by the host.
//
//   dlf_solver_time [--tiny | --targets]
//
// --targets measures only the shapes that have a target, which takes seconds.
namespace dlf::cuda {
namespace {

constexpr int64_t kLeastRows = 16;  // different logits, to average the number of sweeps
constexpr int kTop = 20;
constexpr int64_t kMaxTokens = 4096;  // of a history; a full one takes no more

struct Plan {
  std::vector<int64_t> vocabularies = {32'000, 128'256, 151'936, 262'144};
  std::vector<int64_t> sampled = {32'000, 151'936};
  std::vector<int> batches = {1, 8, 64};
  int in_graph = 50;
  double round_seconds = 0.01;
};

// Logits of rows: large [rows, V], base [rows, V], experts [rows, T, V].
struct Rows {
  at::Tensor large;
  at::Tensor base;
  at::Tensor experts;
};

// Draws one of the two kinds of bench/solver.py on the device: a long tail that all models share, or with `peaked` the
// same with 40 candidates far above the rest, as in the middle of a sentence.
Rows draw(int64_t rows, int64_t vocab, int experts, bool peaked) {
  const auto floats = on_device(0).dtype(at::kFloat);
  at::Tensor shared;
  if (peaked) {
    shared = at::randn({rows, vocab}, floats).mul_(2.2);
    const int64_t count = std::min<int64_t>(40, vocab);
    for (int64_t row = 0; row < rows; ++row) {
      const at::Tensor candidates = at::randperm(vocab, floats.dtype(at::kLong)).narrow(0, 0, count);
      shared[row].index_add_(0, candidates, at::linspace(20.0, 8.0, count, floats) + at::randn({count}, floats));
    }
  } else {
    shared = at::rand({rows, vocab}, floats).clamp_min_(1e-12).log_().neg_().clamp_min_(1e-12).log_().mul_(-2.0);
  }
  const double noise = peaked ? 0.5 : 1.0;
  const at::Tensor base = shared + noise * at::randn({rows, vocab}, floats);
  const at::Tensor strength = 0.2 + 0.8 * at::rand({rows, experts, 1}, floats);
  return {(peaked ? 1.1 : 1.3) * shared + noise * at::randn({rows, vocab}, floats), base,
          base.unsqueeze(1) + strength * noise * at::randn({rows, experts, vocab}, floats)};
}

void time_solver(const Plan& plan, int64_t vocab, int experts, int batch, bool peaked, Combine combine) {
  const int64_t rows = std::max<int64_t>(batch, kLeastRows);
  Queue queue(0);
  Rows logits;
  at::Tensor fused;
  at::Tensor records;
  queue.run([&] {
    logits = draw(rows, vocab, experts, peaked);
    fused = at::empty({batch, vocab}, on_device(0).dtype(at::kFloat));
    records = at::zeros({rows, static_cast<int64_t>(sizeof(FusionRecord))}, on_device(0).dtype(at::kByte));
  });
  std::vector<int> every(experts);
  std::iota(every.begin(), every.end(), 0);
  const RowRule rule = row_rule({combine, Match::symmetric, {}}, every, experts);
  at::Tensor rule_there = at::empty({static_cast<int64_t>(sizeof(rule))}, at::kByte);
  std::memcpy(rule_there.mutable_data_ptr(), &rule, sizeof(rule));
  rule_there = rule_there.to(on_device(0).device());
  queue.synchronize();
  const auto solve_rows = [&](int64_t first) {
    FusionArgs args = {};
    args.expert_count = experts;
    args.rules = static_cast<const RowRule*>(rule_there.const_data_ptr());
    args.rule_count = 1;
    args.kernels = rule.kernel;
    args.large = {logits.large.const_data_ptr<float>() + first * vocab, vocab};
    for (int t = 0; t < experts; ++t) {
      args.experts[t] = {logits.experts.const_data_ptr<float>() + (first * experts + t) * vocab, experts * vocab};
      args.bases[t] = {logits.base.const_data_ptr<float>() + first * vocab, vocab};
    }
    args.fused = fused.mutable_data_ptr<float>();
    args.fused_stride = vocab;
    args.records = static_cast<FusionRecord*>(records.mutable_data_ptr()) + first;
    args.rows = batch;
    args.vocab = vocab;
    solve(args, queue.stream());
  };
  queue.run([&] { solve_rows(0); });  // loads the kernel before the capture
  queue.synchronize();
  Graph graph;
  graph.capture(queue, [&] {
    for (int i = 0; i < plan.in_graph; ++i) {
      solve_rows(i % (rows / batch) * batch);
    }
  });
  const Microseconds us = time_graph(graph, queue, plan.in_graph, plan.round_seconds);
  const at::Tensor host = records.cpu();
  const auto* found = static_cast<const FusionRecord*>(host.const_data_ptr());
  double sweeps = 0.0;
  int64_t solved = 0;
  bool good = true;
  for (int64_t row = 0; row < rows && row < plan.in_graph * static_cast<int64_t>(batch); ++row) {
    sweeps += found[row].sweeps;
    good = good && found[row].bad_model == kNoBadModel;
    ++solved;
  }
  std::printf(
      "{\"what\": \"solver\", \"vocab\": %lld, \"experts\": %d, \"batch\": %d, \"combine\": \"%s\", "
      "\"logits\": \"%s\", \"median_us\": %.3f, \"min_us\": %.3f, \"sweeps\": %.2f, \"good\": %s}\n",
      static_cast<long long>(vocab), experts, batch, combine == Combine::joint ? "joint" : "select",
      peaked ? "peaked" : "long tail", us.median, us.least, sweeps / static_cast<double>(solved),
      good ? "true" : "false");
  std::fflush(stdout);
}

void time_sampler(const Plan& plan, int64_t vocab, int batch, bool top_p) {
  Queue queue(0);
  at::Tensor logits;
  at::Tensor active;
  queue.run([&] {
    logits = draw(batch, vocab, 1, false).large;
    active = at::ones({batch}, on_device(0).dtype(at::kInt));
  });
  queue.synchronize();
  SamplerState state(0, {batch, batch, vocab, kMaxTokens, kTop});
  SamplingOptions options;
  options.seed = 1;
  if (top_p) {
    options.temperature = 0.8;
    options.top_p = 0.95;
  }
  const std::vector<int64_t> prompt = {1, 2, 3};
  for (int row = 0; row < batch; ++row) {
    options.stream = row;
    state.set(row, options, prompt, queue);
  }
  const auto choose = [&] {
    state.sample({logits.const_data_ptr<float>(), vocab, active.const_data_ptr<int32_t>()}, batch, queue);
  };
  queue.run(choose);
  queue.synchronize();
  Graph graph;
  graph.capture(queue, [&] {
    for (int i = 0; i < plan.in_graph; ++i) {
      choose();
    }
  });
  const Microseconds us = time_graph(graph, queue, plan.in_graph, plan.round_seconds);
  std::printf(
      "{\"what\": \"sampler\", \"vocab\": %lld, \"batch\": %d, \"options\": \"%s\", \"median_us\": %.3f, "
      "\"min_us\": %.3f}\n",
      static_cast<long long>(vocab), batch, top_p ? "temperature 0.8, top-p 0.95" : "greedy", us.median, us.least);
  std::fflush(stdout);
}

void measure(const Plan& plan) {
  const DeviceGuard guard(0);
  for (const int64_t vocab : plan.vocabularies) {
    for (const int experts : {1, 4}) {
      for (const int batch : plan.batches) {
        for (const bool peaked : {true, false}) {
          time_solver(plan, vocab, experts, batch, peaked, Combine::select);
        }
        if (experts > 1) {
          time_solver(plan, vocab, experts, batch, true, Combine::joint);
        }
      }
    }
  }
  for (const int64_t vocab : plan.sampled) {
    for (const int batch : plan.batches) {
      for (const bool top_p : {false, true}) {
        time_sampler(plan, vocab, batch, top_p);
      }
    }
  }
}

void measure_targets(const Plan& plan) {
  const DeviceGuard guard(0);
  for (const bool peaked : {true, false}) {
    time_solver(plan, 32'000, 1, 1, peaked, Combine::select);
    time_solver(plan, 151'936, 4, 8, peaked, Combine::select);
  }
  for (const int batch : {1, 64}) {
    time_solver(plan, 32'000, 4, batch, true, Combine::joint);
  }
  for (const int batch : {1, 64}) {
    time_sampler(plan, 151'936, batch, true);
  }
}

}  // namespace
}  // namespace dlf::cuda

int main(int argc, char** argv) {
  const bool tiny = argc == 2 && std::strcmp(argv[1], "--tiny") == 0;
  const bool targets = argc == 2 && std::strcmp(argv[1], "--targets") == 0;
  if (argc > 1 && !tiny && !targets) {
    std::fputs("usage: dlf_solver_time [--tiny | --targets]\n", stderr);
    return 2;
  }
  dlf::cuda::Plan plan;
  if (tiny) {
    plan = {{100, 1000}, {1000}, {1, 2}, 3, 1e-4};
  }
  try {
    if (dlf::cuda::devices().empty()) {
      std::fputs("no CUDA device\n", stderr);
      return 1;
    }
    if (targets) {
      dlf::cuda::measure_targets(plan);
    } else {
      dlf::cuda::measure(plan);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
