#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda_testing.h"
#include "fusion/cpu/solver.h"
#include "fusion/cuda/solver.h"
#include "fusion/joint.h"
#include "support/cuda/runtime.h"
#if __has_include("emulator.h")
#include "emulator.h"
#endif

// Compares the solver on CUDA with the one on the CPU, and its divergences with plain loops in double precision.
namespace dlf::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Match kMatches[] = {Match::symmetric, Match::forward, Match::reverse};
constexpr Combine kCombines[] = {Combine::select, Combine::centroid, Combine::joint, Combine::grid,
                                 Combine::static_alpha};

using Floats = std::vector<float>;

// Logits of the large model, the bases and the experts; all rows have the same number of experts.
struct Problem {
  explicit Problem(int64_t size, int count = 1, bool shared = true)
      : vocab(size), experts(count), shared_base(shared) {}

  int64_t vocab;
  int experts;
  bool shared_base;
  std::vector<Floats> large;  // [rows][vocab]
  std::vector<Floats> bases;  // [rows][vocab], or [rows][experts * vocab]
  std::vector<Floats> tuned;  // [rows][experts * vocab]

  int rows() const { return static_cast<int>(large.size()); }
  const float* base(int row, int t) const { return bases[row].data() + (shared_base ? 0 : t * vocab); }
  const float* expert(int row, int t) const { return tuned[row].data() + t * vocab; }
};

class Generator {
 public:
  explicit Generator(uint32_t seed) : bits_(seed) {}

  Floats normal(int64_t count, float scale = 1.0F) {
    std::normal_distribution<float> draw(0.0F, scale);
    Floats values(count);
    std::generate(values.begin(), values.end(), [&] { return draw(bits_); });
    return values;
  }
  double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(bits_); }

  // Adds a row of independent logits.
  void draw(Problem& problem, float scale) {
    problem.large.push_back(normal(problem.vocab, scale));
    problem.bases.push_back(normal(problem.vocab * (problem.shared_base ? 1 : problem.experts), scale));
    problem.tuned.push_back(normal(problem.vocab * problem.experts, scale));
  }
  // Adds a row of logits like those of language models: a shared peaked shape, varied by each model.
  void language(Problem& problem) {
    Floats shared(problem.vocab);
    for (float& logit : shared) {
      logit = static_cast<float>(-2.0 * std::log(-std::log(uniform(1e-12, 1.0))));
    }
    Floats large = normal(problem.vocab);
    Floats base = normal(problem.vocab);
    for (int64_t i = 0; i < problem.vocab; ++i) {
      large[i] += 1.3F * shared[i];
      base[i] += shared[i];
    }
    Floats tuned;
    for (int t = 0; t < problem.experts; ++t) {
      const Floats moved = normal(problem.vocab, static_cast<float>(uniform(0.2, 1.0)));
      for (int64_t i = 0; i < problem.vocab; ++i) {
        tuned.push_back(base[i] + moved[i]);
      }
    }
    problem.large.push_back(large);
    problem.bases.emplace_back();
    for (int t = 0; t < (problem.shared_base ? 1 : problem.experts); ++t) {
      problem.bases.back().insert(problem.bases.back().end(), base.begin(), base.end());
    }
    problem.tuned.push_back(tuned);
  }

 private:
  std::mt19937 bits_;
};

Rule rule_of(Combine combine, Match match = Match::symmetric) { return {combine, match, {}}; }

Rule bounded(Combine combine, Match match, double alpha_max, int experts = 1) {
  return {combine, match, std::vector<ExpertWeight>(experts, ExpertWeight{alpha_max, std::nullopt})};
}

double bound_of(const Rule& rule) { return rule.weights.empty() ? 2.0 : rule.weights[0].alpha_max; }

struct Answers {
  std::vector<FusionRecord> records;
  std::vector<Floats> fused;
};

constexpr FusionShape kChosen = {0, 0};

// The rules of a batch in device memory.
class DeviceRules {
 public:
  explicit DeviceRules(const std::vector<RowRule>& rules) : count_(static_cast<int>(rules.size())) {
    const auto bytes = static_cast<int64_t>(rules.size() * sizeof(RowRule));
    at::Tensor here = at::empty({bytes}, at::kByte);
    std::memcpy(here.mutable_data_ptr(), rules.data(), bytes);
    there_ = here.to(on_device(0).device());
    for (const RowRule& rule : rules) {
      kernels_ |= rule.kernels;
    }
  }
  void put(FusionArgs& args) const {
    args.rules = static_cast<const RowRule*>(there_.const_data_ptr());
    args.rule_count = count_;
    args.kernels = kernels_;
  }

 private:
  at::Tensor there_;
  int count_;
  uint32_t kernels_ = 0;
};

// Runs a problem on the device, with `padding` elements after each row. `rules` holds one rule for all rows or one a
// row; `chosen` holds the experts that each row uses, as bits.
Answers run_cuda(const Problem& problem, const std::vector<Rule>& rules, FusionShape shape = kChosen,
                 int64_t padding = 0, const std::vector<uint32_t>& chosen = {}) {
  const auto floats = on_device(0).dtype(at::kFloat);
  const int64_t stride = problem.vocab + padding;
  const auto put = [&](const std::vector<Floats>& rows, int64_t pieces) {
    at::Tensor host = at::zeros({problem.rows(), pieces, stride}, at::kFloat);
    for (int row = 0; row < problem.rows(); ++row) {
      for (int64_t piece = 0; piece < pieces; ++piece) {
        std::copy_n(rows[row].data() + piece * problem.vocab, problem.vocab,
                    host.mutable_data_ptr<float>() + (row * pieces + piece) * stride);
      }
    }
    return host.to(floats.device());
  };
  const int64_t bases = problem.shared_base ? 1 : problem.experts;
  const at::Tensor large = put(problem.large, 1);
  const at::Tensor base = put(problem.bases, bases);
  const at::Tensor tuned = put(problem.tuned, problem.experts);
  const at::Tensor fused = at::empty({problem.rows(), stride}, floats);
  const auto bytes = static_cast<int64_t>(problem.rows() * sizeof(FusionRecord));
  const at::Tensor records = at::empty({bytes}, on_device(0).dtype(at::kByte));
  const size_t count = std::max({rules.size(), chosen.size(), size_t{1}});
  std::vector<RowRule> numbers;
  for (size_t row = 0; row < count; ++row) {
    std::vector<int> experts;
    Rule own = rules[rules.size() == 1 ? 0 : row];
    const std::vector<ExpertWeight> weights = std::exchange(own.weights, {});
    for (int t = 0; t < problem.experts; ++t) {
      if (chosen.empty() || (chosen[row] >> t & 1U) != 0) {
        experts.push_back(t);
        if (!weights.empty()) {
          own.weights.push_back(weights[t]);
        }
      }
    }
    numbers.push_back(row_rule(own, experts, problem.experts));
  }
  const DeviceRules device_rules(numbers);
  FusionArgs args = {};
  args.expert_count = problem.experts;
  device_rules.put(args);
  args.large = {large.const_data_ptr<float>(), stride};
  for (int t = 0; t < problem.experts; ++t) {
    args.experts[t] = {tuned.const_data_ptr<float>() + t * stride, problem.experts * stride};
    args.bases[t] = {base.const_data_ptr<float>() + (problem.shared_base ? 0 : t * stride), bases * stride};
  }
  args.fused = fused.mutable_data_ptr<float>();
  args.fused_stride = stride;
  args.records = reinterpret_cast<FusionRecord*>(records.mutable_data_ptr<uint8_t>());
  args.rows = problem.rows();
  args.vocab = problem.vocab;
  Queue queue(0);
  queue.run([&] {
    if (shape.cluster == 0) {
      solve(args, queue.stream());
    } else {
      solve(args, shape, queue.stream());
    }
  });
  queue.synchronize();
  Answers answers;
  answers.records.resize(problem.rows());
  const at::Tensor records_here = records.cpu();
  std::memcpy(answers.records.data(), records_here.const_data_ptr(), bytes);
  const at::Tensor fused_here = fused.cpu();
  for (int row = 0; row < problem.rows(); ++row) {
    const float* at = fused_here.const_data_ptr<float>() + row * stride;
    answers.fused.emplace_back(at, at + problem.vocab);
  }
  return answers;
}

struct HostAnswer {
  std::vector<double> alpha;
  std::vector<double> a;
  std::vector<double> b;
  double f;
  double g;
  int bad_model;
  bool open;
  Floats fused;
};

std::vector<HostAnswer> run_cpu(const Problem& problem, const Rule& rule) {
  ThreadTeam team(1);
  FusionSolver solver(problem.experts, problem.vocab, problem.rows(), team);
  std::vector<std::vector<const float*>> experts(problem.rows());
  std::vector<std::vector<const float*>> bases(problem.rows());
  std::vector<FusionInput> inputs;
  std::vector<HostAnswer> answers(problem.rows());
  std::vector<Floats> fused(problem.rows(), Floats(problem.vocab));
  std::vector<FusionResult> results;
  for (int row = 0; row < problem.rows(); ++row) {
    for (int t = 0; t < problem.experts; ++t) {
      experts[row].push_back(problem.expert(row, t));
      bases[row].push_back(problem.base(row, t));
    }
    for (auto* numbers : {&answers[row].alpha, &answers[row].a, &answers[row].b}) {
      numbers->resize(problem.experts);
    }
    inputs.push_back({problem.large[row].data(), experts[row].data(), bases[row].data(), &rule, problem.experts});
    results.push_back({answers[row].alpha.data(), answers[row].a.data(), answers[row].b.data(), fused[row].data(), 0.0,
                       0.0, 0, kNoBadModel});
  }
  solver.solve(inputs, results);
  for (int row = 0; row < problem.rows(); ++row) {
    answers[row].f = results[row].f;
    answers[row].g = results[row].g;
    answers[row].bad_model = results[row].bad_model;
    answers[row].open = results[row].open;
    answers[row].fused = std::move(fused[row]);
  }
  return answers;
}

// KL(P̃‖P) and KL(P‖P̃) of a row under given weights, by plain loops over the tokens that all models allow.
struct Exact {
  double f;
  double g;
};

bool allowed(const Problem& problem, int row, int64_t i) {
  bool all = problem.large[row][i] != -kInfinity;
  for (int t = 0; t < problem.experts; ++t) {
    all = all && problem.expert(row, t)[i] != -kInfinity && problem.base(row, t)[i] != -kInfinity;
  }
  return all;
}

double moved_by(const Problem& problem, int row, int64_t i, const std::vector<double>& alpha) {
  double sum = 0.0;
  for (int t = 0; t < problem.experts; ++t) {
    sum += alpha[t] * (static_cast<double>(problem.expert(row, t)[i]) - problem.base(row, t)[i]);
  }
  return sum;
}

Exact exact(const Problem& problem, int row, const std::vector<double>& alpha) {
  std::vector<double> large;
  std::vector<double> delta;
  for (int64_t i = 0; i < problem.vocab; ++i) {
    if (allowed(problem, row, i)) {
      large.push_back(problem.large[row][i]);
      delta.push_back(moved_by(problem, row, i, alpha));
    }
  }
  const auto log_sum = [&](double weight) {
    double peak = -HUGE_VAL;
    for (size_t i = 0; i < large.size(); ++i) {
      peak = std::max(peak, large[i] + weight * delta[i]);
    }
    double sum = 0.0;
    for (size_t i = 0; i < large.size(); ++i) {
      sum += std::exp(large[i] + weight * delta[i] - peak);
    }
    return peak + std::log(sum);
  };
  const double before = log_sum(0.0);
  const double after = log_sum(1.0);
  Exact found = {0.0, 0.0};
  for (size_t i = 0; i < large.size(); ++i) {
    const double change = delta[i] - (after - before);
    found.f += std::exp(large[i] + delta[i] - after) * change;
    found.g -= std::exp(large[i] - before) * change;
  }
  return {std::max(found.f, 0.0), std::max(found.g, 0.0)};
}

bool near(double x, double y, double share, double least) { return std::abs(x - y) <= share * std::abs(y) + least; }

struct Worst {
  double alpha = 0.0;   // error of α where the loss is curved
  double loss = 0.0;    // excess over the CPU's loss
  double target = 0.0;  // relative error
  double divergence = 0.0;
  int sweeps = 0;
  int rows = 0;
} worst;

std::vector<double> weights_of(const FusionRecord& record, int experts) {
  return {record.alpha, record.alpha + experts};
}

// Checks a row's targets, divergences at the weights found, and fused logits.
void check_numbers(const Problem& problem, int row, const HostAnswer& host, const Answers& device) {
  const FusionRecord& record = device.records[row];
  EXPECT(record.bad_model == host.bad_model);
  if (host.bad_model != kNoBadModel || record.bad_model != kNoBadModel) {
    return;
  }
  for (int t = 0; t < problem.experts; ++t) {
    EXPECT(near(record.target_f[t], host.a[t], 1e-5, 1e-8));
    EXPECT(near(record.target_g[t], host.b[t], 1e-5, 1e-8));
    worst.target = std::max(worst.target, std::abs(record.target_f[t] - host.a[t]) / (host.a[t] + 1e-4));
    EXPECT(std::isfinite(record.alpha[t]));
  }
  const std::vector<double> alpha = weights_of(record, problem.experts);
  const Exact there = exact(problem, row, alpha);
  EXPECT(near(record.f, there.f, 1e-5, 1e-8 + 2e-6 * there.g));  // f is computed as a difference from g
  EXPECT(near(record.g, there.g, 1e-5, 1e-8));
  worst.divergence = std::max(worst.divergence, std::abs(record.f - there.f) / (there.f + 1e-4));
  worst.sweeps += record.sweeps;
  ++worst.rows;
  bool fused = true;
  for (int64_t i = 0; i < problem.vocab; ++i) {
    const float found = device.fused[row][i];
    if (!allowed(problem, row, i)) {
      fused = fused && found == -kInfinity;
    } else {
      const double sum = problem.large[row][i] + moved_by(problem, row, i, alpha);
      fused = fused && near(found, sum, 1e-5, 1e-5);
    }
  }
  EXPECT(fused);
}

// Checks the weight of a single expert: its loss is not above the CPU's, and α is the same where the loss is curved.
void check_weight(const Problem& problem, int row, int t, const Rule& rule, double a, double b, double alpha,
                  double expected) {
  const double f_weight = rule.match == Match::reverse ? 0.0 : 1.0;
  const double g_weight = rule.match == Match::forward ? 0.0 : 1.0;
  const auto loss = [&](double weight) {
    std::vector<double> all(problem.experts, 0.0);
    all[t] = weight;
    const Exact at = exact(problem, row, all);
    return f_weight * (at.f - a) * (at.f - a) + g_weight * (at.g - b) * (at.g - b);
  };
  const double scale = f_weight * a * a + g_weight * b * b;
  EXPECT(alpha >= 0.0 && alpha <= static_cast<float>(bound_of(rule)));
  const double ours = loss(alpha);
  const double best = loss(expected);
  const double excess = std::max(ours - best, 0.0);
  worst.loss = std::max(worst.loss, excess);
  EXPECT(excess <= std::min(1e-5, 1e-6 * scale) + 1e-20);
  const double lower = loss(std::max(alpha - 1e-3, 0.0));
  const double upper = loss(std::min(alpha + 1e-3, bound_of(rule)));
  const double least = 1e-8 * scale + 1e-16;
  if (lower - ours > least && upper - ours > least && excess <= 1e-8 * scale) {
    worst.alpha = std::max(worst.alpha, std::abs(alpha - expected));
    EXPECT(std::abs(alpha - expected) < 1e-3);
  }
}

// Checks a problem with one expert.
void check_single(const Problem& problem, const Rule& rule, FusionShape shape = kChosen) {
  const std::vector<HostAnswer> host = run_cpu(problem, rule);
  const Answers device = run_cuda(problem, {rule}, shape);
  const int before = testing::failures;
  for (int row = 0; row < problem.rows(); ++row) {
    check_numbers(problem, row, host[row], device);
    if (host[row].bad_model == kNoBadModel) {
      check_weight(problem, row, 0, rule, host[row].a[0], host[row].b[0], device.records[row].alpha[0],
                   host[row].alpha[0]);
    }
    if (testing::failures > before) {
      std::fprintf(stderr,
                   "  vocab %d row %d match %d alpha_max %g: alpha %.9g, cpu %.9g; f %.9g g %.9g; a %.9g %.9g b %.9g "
                   "%.9g sweeps %d\n",
                   static_cast<int>(problem.vocab), row, static_cast<int>(rule.match), bound_of(rule),
                   device.records[row].alpha[0], host[row].alpha[0], device.records[row].f, device.records[row].g,
                   device.records[row].target_f[0], host[row].a[0], device.records[row].target_g[0], host[row].b[0],
                   device.records[row].sweeps);
      testing::failures = before + 1;
    }
  }
}

void one_expert_is_solved_as_on_the_cpu() {
  Generator generator(1);
  for (const int64_t vocab : {2, 3, 33, 1000}) {
    for (const float scale : {0.1F, 0.5F, 1.0F, 2.0F, 4.0F, 6.0F, 10.0F}) {
      Problem problem(vocab);
      for (int row = 0; row < 3; ++row) {
        generator.draw(problem, scale);
      }
      for (const Match match : kMatches) {
        check_single(problem, rule_of(Combine::select, match));
      }
    }
  }
}

void language_models() {
  Generator generator(2);
  Problem problem(3000);
  for (int row = 0; row < 6; ++row) {
    generator.language(problem);
  }
  for (const Match match : kMatches) {
    check_single(problem, rule_of(Combine::select, match));
  }
}

Problem of_one(Floats large, Floats base, Floats expert) {
  Problem problem(static_cast<int64_t>(large.size()));
  problem.large.push_back(std::move(large));
  problem.bases.push_back(std::move(base));
  problem.tuned.push_back(std::move(expert));
  return problem;
}

void two_minima() {
  Generator generator(6);
  int met = 0;
  for (int draw = 0; draw < 300; ++draw) {
    Problem problem(static_cast<int64_t>(generator.uniform(4, 60)));
    generator.draw(problem, static_cast<float>(generator.uniform(4, 10)));
    const HostAnswer host = run_cpu(problem, {})[0];
    std::vector<double> losses;
    for (int i = 0; i <= 500; ++i) {
      const Exact at = exact(problem, 0, {0.004 * i});
      losses.push_back((at.f - host.a[0]) * (at.f - host.a[0]) + (at.g - host.b[0]) * (at.g - host.b[0]));
    }
    int minima = losses[500] < losses[499] ? 1 : 0;
    for (size_t i = 1; i < 500; ++i) {
      minima += losses[i] < losses[i - 1] && losses[i] < losses[i + 1] ? 1 : 0;
    }
    if (minima > 1) {
      ++met;
      check_single(problem, {});
    }
  }
  EXPECT(met >= 5);
}

void other_alpha_max() {
  Generator generator(4);
  for (const double alpha_max : {0x1p-30, 0.05, 0.25, 0.75, 1.0, 5.0, 20.0, 200.0}) {
    Problem problem(200);
    for (const float scale : {0.5F, 2.0F, 6.0F}) {
      generator.draw(problem, scale);
    }
    generator.language(problem);
    for (const Match match : kMatches) {
      check_single(problem, bounded(Combine::select, match, alpha_max));
    }
  }
}

void extreme_logits() {
  Generator generator(3);
  const int64_t vocab = 5000;
  {  // nearly all of the fused mass moves to a token that the large model gives e^-60
    Problem problem(vocab);
    generator.draw(problem, 1.0F);
    problem.large[0][4321] = -60.0F;
    problem.tuned[0][4321] = problem.bases[0][4321] + 80.0F;
    for (const Match match : kMatches) {
      check_single(problem, rule_of(Combine::select, match));
    }
  }
  for (const float scale :
       {30.0F, 100.0F, 1000.0F}) {  // differences of hundreds: the answer is far below the first points
    Problem problem(500);
    generator.draw(problem, 1.0F);
    for (int64_t i = 0; i < 500; ++i) {
      problem.tuned[0][i] = problem.bases[0][i] + 0.01F * problem.tuned[0][i];
      problem.large[0][i] *= scale;
    }
    check_single(problem, {});
    Problem other(500);
    other.large = problem.bases;
    other.bases = problem.large;
    other.tuned = {problem.large[0]};
    const Floats moved = generator.normal(500, 0.01F * scale);
    for (int64_t i = 0; i < 500; ++i) {
      other.tuned[0][i] += moved[i];
    }
    check_single(other, {});
  }
  for (int which = 0; which < 3; ++which) {  // all but one probability is 0
    Floats logits[3];
    for (int index = 0; index < 3; ++index) {
      logits[index] = index == which ? Floats(100, -2000.0F) : generator.normal(100);
      logits[index][7] = 0.0F;
    }
    for (const Match match : kMatches) {
      check_single(of_one(logits[0], logits[1], logits[2]), rule_of(Combine::select, match));
    }
  }
  // The target is out of reach; curves that polynomials follow badly.
  const Problem small[] = {
      of_one({8, 0, 0}, {0, 0, 0}, {0.3F, 0, -3}),
      of_one({-23.72611F, -27.868994F, 6.5552588F}, {-21.676535F, -25.461538F, 5.9889846F},
             {-12.978767F, -15.245028F, 3.5858884F}),
      of_one({0, 0, 0}, {0, 0, 0}, {-5, 23, 14}),
      of_one({0.5F}, {1}, {2}),
      of_one({0, 1}, {5, 3}, {5.5F, 3.5F}),  // a constant difference
  };
  for (const Problem& problem : small) {
    for (const Match match : kMatches) {
      for (const double alpha_max : {2.0, 20.0, 200.0}) {
        if (problem.vocab > 1) {
          check_single(problem, bounded(Combine::select, match, alpha_max));
        }
      }
    }
  }
  const Answers alone = run_cuda(small[3], {Rule()});
  EXPECT(alone.records[0].bad_model == kNoBadModel && alone.records[0].alpha[0] == 0.0F);
  EXPECT(alone.fused[0][0] == 0.5F);
}

// An expert that is nearly its base: float32 sums of e^{αΔ} would lose the difference.
void small_divergences() {
  Generator generator(8);
  for (const float scale : {1e-1F, 1e-2F, 1e-3F}) {
    Problem problem(4000);
    const float offset = scale < 1e-2F ? 0.0F : 20.0F;  // Δ is itself a float32 number
    for (int row = 0; row < 3; ++row) {
      generator.language(problem);
      const Floats noise = generator.normal(4000, scale);
      for (int64_t i = 0; i < 4000; ++i) {
        problem.tuned[row][i] = problem.bases[row][i] + noise[i] + offset * row;
      }
      // A rare token differs much.
      problem.large[row][17] = -70.0F;
      problem.bases[row][17] = -70.0F;
      problem.tuned[row][17] = -50.0F + offset * row;
    }
    for (const Match match : kMatches) {
      check_single(problem, rule_of(Combine::select, match));
    }
  }
}

void an_expert_that_equals_its_base_weighs_nothing() {
  Generator generator(5);
  Problem problem(1000, 2);
  generator.draw(problem, 3.0F);
  problem.tuned[0] = problem.bases[0];
  problem.tuned[0].insert(problem.tuned[0].end(), problem.bases[0].begin(), problem.bases[0].end());
  for (const Combine combine : {Combine::select, Combine::centroid, Combine::joint, Combine::grid}) {
    for (const Match match : kMatches) {
      const Answers found = run_cuda(problem, {rule_of(combine, match)});
      EXPECT(found.records[0].alpha[0] == 0.0F && found.records[0].alpha[1] == 0.0F);
      EXPECT(found.records[0].f == 0.0F && found.records[0].g == 0.0F);
      EXPECT(found.fused[0] == problem.large[0]);
    }
  }
}

// Checks a problem with several experts against the CPU's weights.
void check_many(const Problem& problem, const Rule& rule, FusionShape shape = kChosen) {
  const std::vector<HostAnswer> host = run_cpu(problem, rule);
  const Answers device = run_cuda(problem, {rule}, shape);
  const int before = testing::failures;
  for (int row = 0; row < problem.rows(); ++row) {
    check_numbers(problem, row, host[row], device);
    if (host[row].bad_model != kNoBadModel) {
      continue;
    }
    const double tolerance = rule.combine == Combine::joint ? 2e-3 : 1e-3;
    for (int t = 0; t < problem.experts; ++t) {
      EXPECT(std::abs(device.records[row].alpha[t] - host[row].alpha[t]) < tolerance);
    }
    if (testing::failures > before) {
      std::fprintf(stderr, "  vocab %d experts %d row %d combine %d match %d sweeps %d\n",
                   static_cast<int>(problem.vocab), problem.experts, row, static_cast<int>(rule.combine),
                   static_cast<int>(rule.match), device.records[row].sweeps);
      for (int t = 0; t < problem.experts; ++t) {
        std::fprintf(stderr, "    %.7g %.7g\n", device.records[row].alpha[t], host[row].alpha[t]);
      }
      testing::failures = before + 1;
    }
  }
}

Rule with_weights(Rule rule, int experts) {
  for (int t = 0; t < experts && rule.combine == Combine::static_alpha; ++t) {
    rule.weights.push_back({2.0, t % 3 == 0 ? 0.75 : t % 3 == 1 ? -0.5 : 0.0});
  }
  return rule;
}

void many_experts() {
  Generator generator(9);
  for (const int experts : {2, 5, 16}) {
    for (const bool shared : {true, false}) {
      Problem problem(700, experts, shared);
      if (shared) {
        generator.language(problem);
        generator.language(problem);
      }
      generator.draw(problem, 1.0F);
      for (const Combine combine : kCombines) {
        for (const Match match : kMatches) {
          check_many(problem, with_weights(rule_of(combine, match), experts));
        }
      }
    }
  }
}

void joint_weights_where_the_distribution_is_all_but_certain() {
  Generator generator(27);
  for (int draw = 0; draw < 6; ++draw) {
    Problem problem(draw % 2 == 0 ? 10 : 60, draw % 3 == 0 ? 3 : 5);
    generator.draw(problem, 6.0F);
    const Rule rule = bounded(Combine::joint, Match::symmetric, 10.0, problem.experts);
    const HostAnswer host = run_cpu(problem, rule)[0];
    const Answers device = run_cuda(problem, {rule});
    check_numbers(problem, 0, host, device);
    // A weight that moves only nearly impossible tokens hardly changes the dual; f is determined all the same.
    EXPECT(near(device.records[0].f, host.f, 1e-3, 1e-3));
  }
}

// A step ends at the minimum of a quadratic in the box, also where experts are nearly equal.
void joint_steps_end_at_the_least_in_the_box() {
  constexpr int kMost = JointSearch::kMost;
  Generator generator(41);
  for (int draw = 0; draw < 400; ++draw) {
    const int count = 2 + draw % 7;
    const double apart = draw % 3 == 0 ? 1e-3 : 1.0;  // how much the experts differ
    double factor[kMost][kMost];
    double bound[kMost];
    double start[kMost];
    double gradient[kMost];
    const double common = generator.uniform(-1.0, 1.0);
    for (int t = 0; t < count; ++t) {
      for (int k = 0; k < count; ++k) {
        factor[t][k] = (k == 0 ? common : 0.0) + apart * generator.uniform(-1.0, 1.0);
      }
      bound[t] = draw % 5 == 0 && t == 1 ? 0.0 : generator.uniform(0.5, 2.0);
      start[t] = bound[t] * std::clamp(generator.uniform(-0.5, 1.5), 0.0, 1.0);
      gradient[t] = generator.uniform(-1.0, 1.0);
    }
    double hessian[kMost][kMost] = {};
    double products[kMost * (kMost + 1) / 2];
    double* product = products;
    double scale = 0.0;
    for (int t = 0; t < count; ++t) {
      for (int s = 0; s < count; ++s) {
        for (int k = 0; k < count; ++k) {
          hessian[t][s] += factor[t][k] * factor[s][k];
        }
        if (s <= t) {
          *product++ = hessian[t][s] + gradient[t] * gradient[s];
        }
      }
      scale = std::max({scale, hessian[t][t], bound[t] > 0.0 ? std::abs(gradient[t]) / bound[t] : 0.0});
    }
    const double moments[kMost] = {};  // with zero moments the means are the gradient
    JointSearch search;
    search.start(count, bound, start, moments);
    search.take(0.0, gradient, products);
    for (int t = 0; t < count; ++t) {
      double slope = gradient[t];
      for (int s = 0; s < count; ++s) {
        slope += hessian[t][s] * (search.trial()[s] - start[s]);
      }
      const double place = search.trial()[t];
      EXPECT(place >= 0.0 && place <= bound[t]);
      EXPECT(slope < 1e-6 * scale || place <= 1e-9);
      EXPECT(slope > -1e-6 * scale || place >= bound[t] - 1e-9);
    }
  }
}

void the_first_of_equals_is_taken() {
  Generator generator(10);
  Problem problem(400, 3);
  generator.language(problem);
  std::copy_n(problem.tuned[0].begin(), 400, problem.tuned[0].begin() + 400);
  std::copy_n(problem.tuned[0].begin(), 400, problem.tuned[0].begin() + 800);
  for (const Match match : kMatches) {
    const Answers found = run_cuda(problem, {rule_of(Combine::select, match)});
    EXPECT(found.records[0].alpha[0] > 0.0F);
    EXPECT(found.records[0].alpha[1] == 0.0F && found.records[0].alpha[2] == 0.0F);
  }
}

void tokens_ruled_out() {
  Generator generator(17);
  for (int which = 0; which < 4; ++which) {
    Problem problem(2500, 3);
    generator.language(problem);
    for (int64_t i = 0; i < 2500; ++i) {
      const bool out = generator.uniform(0.0, 1.0) < 0.3;
      if ((which == 0 || which == 3) && (out || i < 1300)) {
        problem.large[0][i] = -kInfinity;
      }
      if (which == 1 || (which == 3 && i % 7 == 0)) {
        problem.bases[0][i] = out ? -kInfinity : problem.bases[0][i];
      }
      if (which == 2 || (which == 3 && i % 5 == 0)) {
        problem.tuned[0][2500 + i] = out ? -kInfinity : problem.tuned[0][2500 + i];
      }
    }
    for (const Combine combine : kCombines) {
      check_many(problem, with_weights(rule_of(combine), 3));
      check_many(problem, with_weights(rule_of(combine), 3), {4, 0});
    }
  }
  Problem single(50);
  generator.draw(single, 2.0F);
  std::fill_n(single.large[0].begin() + 1, 49, -kInfinity);
  const Answers found = run_cuda(single, {Rule()});
  EXPECT(found.records[0].alpha[0] == 0.0F && found.records[0].f == 0.0F);
}

void bad_logits() {
  Generator generator(18);
  Problem problem(3000, 2, false);
  for (int row = 0; row < 7; ++row) {
    generator.draw(problem, 2.0F);
  }
  problem.large[1][2999] = std::nanf("");
  problem.tuned[2][3000 + 5] = kInfinity;
  problem.bases[3][1234] = std::nanf("");
  problem.bases[4][3000] = kInfinity;
  problem.tuned[4][3000] = kInfinity;
  std::fill(problem.large[5].begin(), problem.large[5].end(), -kInfinity);
  for (const int cluster : {1, 4}) {
    const Answers found = run_cuda(problem, {Rule()}, {cluster, 200 * 1024});
    const int expected[] = {kNoBadModel, 0, 3, 2, 3, kEmptySupport, kNoBadModel};
    for (int row = 0; row < 7; ++row) {
      EXPECT(found.records[row].bad_model == expected[row]);
    }
  }
}

bool same(const Answers& one, const Answers& other) {
  bool equal = one.records.size() == other.records.size();
  for (size_t row = 0; equal && row < one.records.size(); ++row) {
    equal = std::memcmp(&one.records[row], &other.records[row], sizeof(FusionRecord)) == 0 &&
            std::memcmp(one.fused[row].data(), other.fused[row].data(), one.fused[row].size() * sizeof(float)) == 0;
  }
  return equal;
}

// Any number of blocks a row, any alignment, and logits that fit on the chip or do not.
void every_shape() {
  Generator generator(19);
  Problem problem(4099, 3, false);
  generator.language(problem);
  generator.draw(problem, 6.0F);
  for (const Combine combine : {Combine::select, Combine::joint, Combine::static_alpha}) {
    const Rule rule = with_weights(rule_of(combine), 3);
    for (const int cluster : {1, 2, 8, 16}) {
      const Answers whole = run_cuda(problem, {rule}, {cluster, 227 * 1024});
      for (const int kilobytes : {0, 24, 32, 48, 64}) {
        EXPECT(same(run_cuda(problem, {rule}, {cluster, kilobytes * 1024}), whole));
      }
      EXPECT(same(run_cuda(problem, {rule}, {cluster, 227 * 1024}, 1), whole));
      check_many(problem, rule, {cluster, 227 * 1024});
    }
  }
}

// Returns a rule with its own bound for each of four experts, the third with a given weight; all given for `static`.
Rule mixed(Combine combine, Match match = Match::symmetric) {
  Rule rule = {combine, match, {{2.0, {}}, {0.3, {}}, {2.0, -0.75}, {5.0, {}}}};
  for (ExpertWeight& weight : rule.weights) {
    weight.given = combine == Combine::static_alpha ? weight.alpha_max / 4.0 : weight.given;
  }
  return rule;
}

void given_weights_and_bounds_are_those_of_the_processor() {
  Generator generator(31);
  for (const bool shared : {true, false}) {
    Problem problem(900, 4, shared);
    generator.draw(problem, 1.0F);
    generator.draw(problem, 2.5F);
    for (const Combine combine : kCombines) {
      check_many(problem, mixed(combine));
    }
  }
}

// Rules over probabilities: measured and mixed weights, certainty, coefficients of the large model, masks and gates.
std::vector<Rule> probability_rules(int experts) {
  const auto shares = [&](double sum) {
    return std::vector<ExpertWeight>(experts, {2.0, sum / experts, /*mixed=*/true});
  };
  std::vector<ExpertWeight> some(experts);
  some[0] = {2.0, 0.3, true};
  std::vector<ExpertWeight> tight(experts, {0.05, std::nullopt});
  tight.back().given = -0.4;
  return {
      {Combine::jsd, Match::symmetric, {}},
      {Combine::jsd, Match::symmetric, tight, 0.7, 0.1},
      {Combine::static_alpha, Match::symmetric, shares(0.8)},
      {Combine::static_alpha, Match::symmetric, shares(1.0), 1.0, 0.01},
      {Combine::jsd, Match::symmetric, some, 0.0},
      {Combine::select, Match::forward, some, 1.0, 0.2, {GateKind::entropy, 3.0}},
      {Combine::centroid, Match::reverse, {}, 1.7, 0.0, {GateKind::disagree}},
      {Combine::joint, Match::symmetric, {}, 0.6, 0.0, {GateKind::top_prob, 0.5}},
      {Combine::grid, Match::symmetric, {}, 1.0, 0.001},
      {Combine::certainty, Match::symmetric, {}},
      {Combine::certainty, Match::forward, some, 0.4, 0.01},
      {Combine::certainty, Match::reverse, tight, 1.6},
  };
}

// Checks a row of a rule over probabilities: what the device fused is what the processor fused.
void check_as_on_the_processor(const Problem& problem, int row, const Rule& rule, const HostAnswer& host,
                               const Answers& device) {
  const FusionRecord& record = device.records[row];
  EXPECT(record.bad_model == host.bad_model && (record.closed != 0) == !host.open);
  if (host.bad_model != kNoBadModel) {
    return;
  }
  EXPECT(host.open || device.fused[row] == problem.large[row]);
  // A searched weight is as near as its loss is curved.
  const bool searched = rule.combining().weights != CombineRow::Weights::given && !rule.is_measured();
  for (int t = 0; t < problem.experts; ++t) {
    EXPECT(near(record.alpha[t], host.alpha[t], 0.0, searched ? 2e-3 : 1e-6));
    EXPECT(near(record.target_f[t], host.a[t], 1e-5, 1e-8));
  }
  EXPECT(near(record.f, host.f, searched ? 1e-2 : 1e-4, searched ? 1e-3 : 2e-6));
  EXPECT(near(record.g, host.g, searched ? 1e-2 : 1e-4, searched ? 1e-3 : 2e-6));
  bool fused = true;
  for (int64_t i = 0; i < problem.vocab; ++i) {
    const float expected = host.fused[i];
    fused = fused && (std::isinf(expected) ? device.fused[row][i] == expected
                                           : near(device.fused[row][i], expected, 1e-5, searched ? 2e-2 : 2e-5));
  }
  EXPECT(fused);
}

void rules_over_probabilities_are_those_of_the_processor() {
  for (const int experts : {1, 2, 5}) {
    Generator generator(50 + static_cast<uint32_t>(experts));
    Problem problem(2300, experts, experts != 2);
    for (int row = 0; row < 4; ++row) {
      generator.language(problem);
    }
    generator.draw(problem, 1.0F);
    generator.draw(problem, 0.05F);
    for (int64_t i = 0; i < 9; ++i) {
      problem.large[1][11 * i] = -kInfinity;
      problem.tuned[2][i] = -kInfinity;
      problem.bases[3][7 * i] = -kInfinity;
    }
    problem.tuned[3] = problem.bases[3];  // an expert that is its base
    problem.tuned[3].resize(experts * problem.vocab, 0.5F);
    int closed = 0;
    for (const Rule& rule : probability_rules(experts)) {
      const std::vector<HostAnswer> host = run_cpu(problem, rule);
      for (const FusionShape shape : {kChosen, FusionShape{4, 24 * 1024}}) {
        const Answers device = run_cuda(problem, {rule}, shape, shape.cluster == 4 ? 1 : 0);
        for (int row = 0; row < problem.rows(); ++row) {
          check_as_on_the_processor(problem, row, rule, host[row], device);
        }
      }
      closed +=
          static_cast<int>(std::count_if(host.begin(), host.end(), [](const HostAnswer& one) { return !one.open; }));
    }
    EXPECT(closed >= 2);
  }
}

// The solver finds the fault, whatever works on the row before and after it.
void bad_logits_are_found_under_every_rule() {
  Generator generator(54);
  Problem problem(900, 2, false);
  for (int row = 0; row < 5; ++row) {
    generator.draw(problem, 2.0F);
  }
  problem.large[0][3] = std::nanf("");
  problem.large[1][899] = kInfinity;
  problem.tuned[2][900 + 7] = std::nanf("");
  problem.bases[3][8] = kInfinity;
  std::fill(problem.large[4].begin(), problem.large[4].end(), -kInfinity);
  const int expected[] = {0, 0, 3, 2, kEmptySupport};
  for (Rule rule : probability_rules(2)) {
    rule.gate = rule.gate.needs_experts() ? Gate() : rule.gate;  // closed gates hide a fault of the experts
    rule.gate.threshold = rule.gate.kind == GateKind::top_prob ? 1.0 : 0.0;
    const Answers found = run_cuda(problem, {rule});
    for (int row = 0; row < 5; ++row) {
      EXPECT(found.records[row].bad_model == expected[row]);
    }
  }
}

// Experts that a row does not use are not read; its result is bit-identical to that without them.
void rows_may_use_some_of_the_experts() {
  Generator generator(32);
  const std::vector<uint32_t> masks = {0b1111, 0b0001, 0b1010, 0b0100, 0b1110, 0};
  for (const bool shared : {true, false}) {
    Problem problem(1500, 4, shared);
    for (size_t row = 0; row < masks.size(); ++row) {
      generator.draw(problem, 1.5F);
      for (int t = 0; t < 4; ++t) {
        if ((masks[row] >> t & 1U) == 0) {
          std::fill_n(problem.tuned[row].begin() + t * 1500, 1500, std::nanf(""));
          std::fill_n(problem.bases[row].begin() + t * 1500, shared ? 0 : 1500, std::nanf(""));
        }
      }
    }
    for (const Combine combine : kCombines) {
      const Rule rule = mixed(combine);
      for (const FusionShape shape : {FusionShape{1, 227 * 1024}, FusionShape{2, 8 * 1024}}) {
        const Answers found = run_cuda(problem, {rule}, shape, 0, masks);
        for (size_t row = 0; row < masks.size(); ++row) {
          const FusionRecord& record = found.records[row];
          EXPECT(record.bad_model == kNoBadModel);
          if (masks[row] == 0) {
            EXPECT(found.fused[row] == problem.large[row] && record.f == 0.0F && record.g == 0.0F);
            continue;
          }
          std::vector<int> chosen;
          Rule fewer = {combine, Match::symmetric, {}};
          for (int t = 0; t < 4; ++t) {
            if ((masks[row] >> t & 1U) != 0) {
              chosen.push_back(t);
              fewer.weights.push_back(rule.weights[t]);
            }
          }
          Problem some(1500, static_cast<int>(chosen.size()), shared);
          some.large.push_back(problem.large[row]);
          some.bases.emplace_back();
          some.tuned.emplace_back();
          for (const int t : chosen) {
            some.tuned[0].insert(some.tuned[0].end(), problem.expert(static_cast<int>(row), t),
                                 problem.expert(static_cast<int>(row), t) + 1500);
            some.bases[0].insert(some.bases[0].end(), problem.base(static_cast<int>(row), t),
                                 problem.base(static_cast<int>(row), t) + 1500);
          }
          some.bases[0].resize(shared ? 1500 : some.bases[0].size());
          const Answers alone = run_cuda(some, {fewer}, shape);
          for (size_t i = 0; i < chosen.size(); ++i) {
            EXPECT(record.alpha[chosen[i]] == alone.records[0].alpha[i]);
            EXPECT(record.target_f[chosen[i]] == alone.records[0].target_f[i]);
          }
          EXPECT(record.f == alone.records[0].f && record.g == alone.records[0].g);
          EXPECT(found.fused[row] == alone.fused[0]);
        }
      }
    }
  }
}

void inactive_rows_are_left_alone() {
  Generator generator(20);
  Problem problem(300);
  for (int row = 0; row < 3; ++row) {
    generator.draw(problem, 1.0F);
  }
  const auto floats = on_device(0).dtype(at::kFloat);
  const auto put = [&](const std::vector<Floats>& rows) {
    at::Tensor host = at::empty({3, 300}, at::kFloat);
    for (int row = 0; row < 3; ++row) {
      std::copy_n(rows[row].data(), 300, host.mutable_data_ptr<float>() + row * 300);
    }
    return host.to(floats.device());
  };
  const at::Tensor large = put(problem.large);
  const at::Tensor base = put(problem.bases);
  const at::Tensor tuned = put(problem.tuned);
  const at::Tensor fused = at::full({3, 300}, 7.0, floats);
  const at::Tensor records =
      at::full({3, static_cast<int64_t>(sizeof(FusionRecord))}, 5, on_device(0).dtype(at::kByte));
  const at::Tensor active = at::tensor({1, 0, 1}, at::kInt).to(floats.device());
  const DeviceRules rules({row_rule({}, std::vector<int>{0}, 1)});
  FusionArgs args = {};
  args.expert_count = 1;
  rules.put(args);
  args.large = {large.const_data_ptr<float>(), 300};
  args.experts[0] = {tuned.const_data_ptr<float>(), 300};
  args.bases[0] = {base.const_data_ptr<float>(), 300};
  args.fused = fused.mutable_data_ptr<float>();
  args.fused_stride = 300;
  args.records = reinterpret_cast<FusionRecord*>(records.mutable_data_ptr<uint8_t>());
  args.active = active.const_data_ptr<int32_t>();
  args.rows = 3;
  args.vocab = 300;
  Queue queue(0);
  queue.run([&] { solve(args, queue.stream()); });
  queue.synchronize();
  EXPECT(fused[1].eq(7.0).all().item<bool>() && records[1].eq(5).all().item<bool>());
  const Answers found = run_cuda(problem, {Rule()});
  const at::Tensor here = fused.cpu();
  for (const int row : {0, 2}) {
    EXPECT(std::memcmp(here.const_data_ptr<float>() + 300 * row, found.fused[row].data(), 1200) == 0);
  }
}

void the_answer_is_the_same_in_every_order() {
  Generator generator(21);
  Problem problem(9000, 2);
  generator.language(problem);
  generator.draw(problem, 6.0F);
  problem.large[1][17] = -60.0F;
  problem.tuned[1][17] = problem.bases[1][17] + 80.0F;
  std::vector<Rule> rules = probability_rules(2);
  for (const Combine combine : kCombines) {
    rules.push_back(with_weights(rule_of(combine), 2));
  }
  for (const Rule& rule : rules) {
    const Answers first = run_cuda(problem, {rule}, {4, 60 * 1024});
#if __has_include("emulator.h")
    emulation::set_order(emulation::Order::backward);
    EXPECT(same(run_cuda(problem, {rule}, {4, 60 * 1024}), first));
    for (int seed = 1; seed <= 3; ++seed) {
      emulation::set_order(emulation::Order::random, seed);
      EXPECT(same(run_cuda(problem, {rule}, {4, 60 * 1024}), first));
    }
    emulation::set_order(emulation::Order::forward);
#else
    for (int run = 0; run < 20; ++run) {
      EXPECT(same(run_cuda(problem, {rule}, {4, 60 * 1024}), first));
    }
#endif
  }
}

void company_changes_no_bit() {
  Generator generator(34);
  Problem all(9000, 2);
  for (int row = 0; row < 12; ++row) {
    generator.draw(all, row % 3 == 2 ? 6.0F : 1.0F);
  }
  for (const Combine combine : {Combine::select, Combine::joint}) {
    const Answers together = run_cuda(all, {rule_of(combine)});
    for (const int row : {0, 2, 11}) {
      Problem one(all.vocab, all.experts);
      one.large = {all.large[row]};
      one.bases = {all.bases[row]};
      one.tuned = {all.tuned[row]};
      EXPECT(same(run_cuda(one, {rule_of(combine)}), {{together.records[row]}, {together.fused[row]}}));
    }
  }
}

// A row's bits do not depend on the other rules in the batch, nor on its place there.
void rows_of_other_rules_change_no_bit() {
  Generator generator(36);
  for (const int experts : {4, 1}) {
    std::vector<Rule> rules;
    for (const Combine combine : kCombines) {
      for (const Match match : kMatches) {
        rules.push_back(mixed(combine, match));
        rules.back().weights.resize(experts);
      }
    }
    Problem all(3000, experts);
    std::vector<uint32_t> masks;
    for (size_t row = 0; row < rules.size(); ++row) {
      generator.draw(all, row % 3 == 2 ? 6.0F : 1.0F);
      masks.push_back(row % 4 == 3 ? 0b1001U & ((1U << experts) - 1U) : (1U << experts) - 1U);
    }
    for (const Rule& rule : probability_rules(experts)) {
      rules.push_back(rule);
      generator.draw(all, 1.0F);
      masks.push_back((1U << experts) - 1U);
    }
    masks[7] = 0;
    std::rotate(rules.begin(), rules.begin() + 4, rules.end());
    const Answers together = run_cuda(all, rules, kChosen, 0, masks);
    for (size_t row = 0; row < rules.size(); ++row) {
      Problem one(all.vocab, all.experts);
      one.large = {all.large[row]};
      one.bases = {all.bases[row]};
      one.tuned = {all.tuned[row]};
      const Answers alone = run_cuda(one, {rules[row]}, kChosen, 0, {masks[row]});
      EXPECT(same(alone, {{together.records[row]}, {together.fused[row]}}));
      EXPECT(alone.records[0].bad_model == kNoBadModel);
    }
  }
}

// Drafted tokens of several sequences: row r has the rule of sequence r % count.
void rules_repeat_row_by_row() {
  Generator generator(37);
  Problem problem(700, 2);
  for (int row = 0; row < 6; ++row) {
    generator.draw(problem, 1.0F);
  }
  const std::vector<Rule> two = {rule_of(Combine::joint), bounded(Combine::select, Match::forward, 0.7, 2)};
  const std::vector<Rule> six = {two[0], two[1], two[0], two[1], two[0], two[1]};
  EXPECT(same(run_cuda(problem, two), run_cuda(problem, six)));
  EXPECT(!same(run_cuda(problem, two), run_cuda(problem, {two[0]})));
}

void large_vocabularies() {
  Generator generator(22);
  Problem problem(32000);
  generator.language(problem);
  check_single(problem, {});
  Problem wide(151936, 4);
  generator.language(wide);
  check_many(wide, {});
}

// Tests one row of every kind in few launches, for tools with which a launch takes seconds.
void every_kind() {
  Generator generator(35);
  for (const int experts : {1, 3, 5}) {
    Problem problem(2500, experts);
    generator.language(problem);
    generator.draw(problem, 6.0F);  // wide
    problem.tuned[0][7] = -kInfinity;
    for (const Combine combine : kCombines) {
      const Rule rule = with_weights(rule_of(combine), experts);
      check_many(problem, rule, {4, 227 * 1024});
      check_many(problem, rule, {1, 32 * 1024});
    }
  }
}

}  // namespace
}  // namespace dlf::cuda

int main(int argc, char** argv) {
  const int failed = dlf::testing::run_cuda(
      argc, argv,
      {
          {"one expert is solved as on the CPU", dlf::cuda::one_expert_is_solved_as_on_the_cpu},
          {"language models", dlf::cuda::language_models},
          {"two minima", dlf::cuda::two_minima},
          {"other alpha max", dlf::cuda::other_alpha_max},
          {"extreme logits", dlf::cuda::extreme_logits},
          {"small divergences", dlf::cuda::small_divergences},
          {"an expert that equals its base weighs nothing", dlf::cuda::an_expert_that_equals_its_base_weighs_nothing},
          {"many experts", dlf::cuda::many_experts},
          {"joint weights where the distribution is all but certain",
           dlf::cuda::joint_weights_where_the_distribution_is_all_but_certain},
          {"joint steps end at the least in the box", dlf::cuda::joint_steps_end_at_the_least_in_the_box},
          {"the first of equals is taken", dlf::cuda::the_first_of_equals_is_taken},
          {"tokens ruled out", dlf::cuda::tokens_ruled_out},
          {"bad logits", dlf::cuda::bad_logits},
          {"every shape", dlf::cuda::every_shape},
          {"given weights and bounds are those of the processor",
           dlf::cuda::given_weights_and_bounds_are_those_of_the_processor},
          {"rules over probabilities are those of the processor",
           dlf::cuda::rules_over_probabilities_are_those_of_the_processor, true},
          {"bad logits are found under every rule", dlf::cuda::bad_logits_are_found_under_every_rule},
          {"rows may use some of the experts", dlf::cuda::rows_may_use_some_of_the_experts},
          {"inactive rows are left alone", dlf::cuda::inactive_rows_are_left_alone},
          {"the answer is the same in every order", dlf::cuda::the_answer_is_the_same_in_every_order},
          {"company changes no bit", dlf::cuda::company_changes_no_bit},
          {"rows of other rules change no bit", dlf::cuda::rows_of_other_rules_change_no_bit},
          {"rules repeat row by row", dlf::cuda::rules_repeat_row_by_row},
          {"every kind", dlf::cuda::every_kind, true},
          {"large vocabularies", dlf::cuda::large_vocabularies},
      });
  std::printf("worst: alpha %.1e, loss %.1e, targets %.1e, divergences %.1e; %.2f sweeps\n", dlf::cuda::worst.alpha,
              dlf::cuda::worst.loss, dlf::cuda::worst.target, dlf::cuda::worst.divergence,
              static_cast<double>(dlf::cuda::worst.sweeps) / dlf::cuda::worst.rows);
  return failed;
}
