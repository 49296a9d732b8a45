#include "fusion/solver_cuda.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "fusion/solver.h"
#include "support/cuda/runtime.h"
#if __has_include("emulator.h")
#include "emulator.h"
#endif

// The solver on CUDA beside the one on the CPU, and its divergences beside plain loops in double.
namespace dlf::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Match kMatches[] = {Match::symmetric, Match::forward, Match::reverse};
constexpr Combine kCombines[] = {Combine::select, Combine::centroid, Combine::joint, Combine::grid,
                                 Combine::static_alpha};

using Floats = std::vector<float>;

// Logits of rows × (large, base, experts), all rows with the same number of experts.
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

  // Logits that know nothing of each other.
  void draw(Problem& problem, float scale) {
    problem.large.push_back(normal(problem.vocab, scale));
    problem.bases.push_back(normal(problem.vocab * (problem.shared_base ? 1 : problem.experts), scale));
    problem.tuned.push_back(normal(problem.vocab * problem.experts, scale));
  }
  // Logits as language models have them: a peaked shape that all share, and what each makes of it.
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
    problem.bases.push_back(base);
    problem.tuned.push_back(tuned);
  }

 private:
  std::mt19937 bits_;
};

FusionOptions options_of(Combine combine, Match match = Match::symmetric, double alpha_max = 2.0) {
  FusionOptions options;
  options.combine = combine;
  options.match = match;
  options.alpha_max = alpha_max;
  return options;
}

struct Answers {
  std::vector<FusionRecord> records;
  std::vector<Floats> fused;
};

constexpr FusionShape kChosen = {0, 0};

// Runs a problem on the device. The rows lie `padding` further apart than they are long.
Answers run_cuda(const Problem& problem, const FusionOptions& options, FusionShape shape = kChosen,
                 int64_t padding = 0) {
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
  FusionArgs args = {};
  args.large = {large.const_data_ptr<float>(), stride};
  for (int t = 0; t < problem.experts; ++t) {
    args.experts[t] = {tuned.const_data_ptr<float>() + t * stride, problem.experts * stride};
    args.bases[t] = {base.const_data_ptr<float>() + (problem.shared_base ? 0 : t * stride), bases * stride};
    args.alpha[t] = options.alpha.empty() ? 0.0F : static_cast<float>(options.alpha[t]);
  }
  args.fused = fused.mutable_data_ptr<float>();
  args.fused_stride = stride;
  args.records = reinterpret_cast<FusionRecord*>(records.mutable_data_ptr<uint8_t>());
  args.rows = problem.rows();
  args.expert_count = problem.experts;
  args.vocab = problem.vocab;
  args.combine = options.combine;
  args.match = options.match;
  args.alpha_max = static_cast<float>(options.alpha_max);
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
};

std::vector<HostAnswer> run_cpu(const Problem& problem, const FusionOptions& options) {
  ThreadTeam team(1);
  FusionSolver solver(options, problem.experts, problem.vocab, problem.rows(), team);
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
    inputs.push_back({problem.large[row].data(), experts[row].data(), bases[row].data()});
    results.push_back({answers[row].alpha.data(), answers[row].a.data(), answers[row].b.data(), fused[row].data(), 0.0,
                       0.0, 0, kNoBadModel});
  }
  solver.solve(inputs, results);
  for (int row = 0; row < problem.rows(); ++row) {
    answers[row].f = results[row].f;
    answers[row].g = results[row].g;
    answers[row].bad_model = results[row].bad_model;
  }
  return answers;
}

// KL(P̃‖P) and KL(P‖P̃) of a row under the weights, by plain loops over the tokens that all models allow.
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
  double alpha = 0.0;   // where the loss is curved
  double loss = 0.0;    // beyond the CPU's
  double target = 0.0;  // relative
  double divergence = 0.0;
  int passes = 0;
  int rows = 0;
} worst;

std::vector<double> weights_of(const FusionRecord& record, int experts) {
  return {record.alpha, record.alpha + experts};
}

// What must hold of every row: targets, divergences at the weights found, and fused logits.
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
  EXPECT(near(record.f, there.f, 1e-5, 1e-8));
  EXPECT(near(record.g, there.g, 1e-5, 1e-8));
  worst.divergence = std::max(worst.divergence, std::abs(record.f - there.f) / (there.f + 1e-4));
  worst.passes += record.passes;
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

// The weight of a single expert: no loss above the CPU's, and the same α where a step aside costs something.
void check_weight(const Problem& problem, int row, int t, const FusionOptions& options, double a, double b,
                  double alpha, double expected) {
  const double f_weight = options.match == Match::reverse ? 0.0 : 1.0;
  const double g_weight = options.match == Match::forward ? 0.0 : 1.0;
  const auto loss = [&](double weight) {
    std::vector<double> all(problem.experts, 0.0);
    all[t] = weight;
    const Exact at = exact(problem, row, all);
    return f_weight * (at.f - a) * (at.f - a) + g_weight * (at.g - b) * (at.g - b);
  };
  const double scale = f_weight * a * a + g_weight * b * b;
  EXPECT(alpha >= 0.0 && alpha <= static_cast<float>(options.alpha_max));
  const double ours = loss(alpha);
  const double best = loss(expected);
  const double excess = std::max(ours - best, 0.0);
  worst.loss = std::max(worst.loss, excess);
  EXPECT(excess <= std::min(1e-5, 1e-6 * scale) + 1e-20);
  const double lower = loss(std::max(alpha - 1e-3, 0.0));
  const double upper = loss(std::min(alpha + 1e-3, options.alpha_max));
  const double least = 1e-8 * scale + 1e-16;
  if (lower - ours > least && upper - ours > least && excess <= 1e-8 * scale) {
    worst.alpha = std::max(worst.alpha, std::abs(alpha - expected));
    EXPECT(std::abs(alpha - expected) < 1e-3);
  }
}

// One expert a row, solved alone.
void check_single(const Problem& problem, const FusionOptions& options, FusionShape shape = kChosen) {
  const std::vector<HostAnswer> host = run_cpu(problem, options);
  const Answers device = run_cuda(problem, options, shape);
  const int before = testing::failures;
  for (int row = 0; row < problem.rows(); ++row) {
    check_numbers(problem, row, host[row], device);
    if (host[row].bad_model == kNoBadModel) {
      check_weight(problem, row, 0, options, host[row].a[0], host[row].b[0], device.records[row].alpha[0],
                   host[row].alpha[0]);
    }
    if (testing::failures > before) {
      std::fprintf(stderr,
                   "  vocab %d row %d match %d alpha_max %g: alpha %.9g, cpu %.9g; f %.9g g %.9g; a %.9g %.9g b %.9g "
                   "%.9g passes %d\n",
                   static_cast<int>(problem.vocab), row, static_cast<int>(options.match), options.alpha_max,
                   device.records[row].alpha[0], host[row].alpha[0], device.records[row].f, device.records[row].g,
                   device.records[row].target_f[0], host[row].a[0], device.records[row].target_g[0], host[row].b[0],
                   device.records[row].passes);
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
        check_single(problem, options_of(Combine::select, match));
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
    check_single(problem, options_of(Combine::select, match));
  }
}

}  // namespace
}  // namespace dlf::cuda

int main() {
  if (dlf::cuda::devices().empty()) {
    std::printf("skipped: no CUDA device\n");
    const char* required = std::getenv("DLF_REQUIRE_CUDA");
    return required != nullptr && std::strcmp(required, "1") == 0 ? 1 : 0;
  }
  const int failed = dlf::testing::run({
      {"one expert is solved as on the CPU", dlf::cuda::one_expert_is_solved_as_on_the_cpu},
      {"language models", dlf::cuda::language_models},
  });
  std::printf("worst: alpha %.1e, loss %.1e, targets %.1e, divergences %.1e; %.2f passes\n", dlf::cuda::worst.alpha,
              dlf::cuda::worst.loss, dlf::cuda::worst.target, dlf::cuda::worst.divergence,
              static_cast<double>(dlf::cuda::worst.passes) / dlf::cuda::worst.rows);
  return failed;
}
