#include "fusion/cpu/solver.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace dlf {
namespace {

constexpr int kGridPoints = 21;
constexpr double kGridSteps = 10.0;  // per unit of α
constexpr double kTie = 1e-10;       // losses that differ by at most this share of the loss at α = 0 are equal
constexpr int kCentreSamples = 32;

static_assert(kMaxExperts == kSweepExperts);
static_assert(kMaxExperts == JointSearch::kMost);
static_assert(CurveSearch::kFirstPoints <= kSweepPoints);
static_assert(kGridPoints <= kSweepPoints);

}  // namespace

FusionSolver::FusionSolver(int experts, int64_t vocab, int max_batch, ThreadTeam& threads)
    : experts_(experts),
      vocab_(vocab),
      blocks_((vocab + kSweepBlock - 1) / kSweepBlock),
      max_batch_(max_batch),
      threads_(threads) {
  check_expert_count(experts);
  TORCH_CHECK_VALUE(vocab >= 2, "the vocabulary holds ", vocab, " tokens; fusing takes at least 2");
  TORCH_CHECK_VALUE(max_batch >= 1, "max_batch is ", max_batch, "; give at least 1");
  const size_t rows = static_cast<size_t>(max_batch);
  const size_t curves = rows * experts;
  curves_.resize(curves);
  active_.reserve(curves);
  active_rows_.reserve(rows);
  large_.resize(rows);
  sums_ = std::make_unique_for_overwrite<BlockSum[]>(curves * blocks_ * kSums);
  flags_ = std::make_unique_for_overwrite<uint32_t[]>(curves * blocks_);
  ranges_.resize(curves);
  centres_.resize(curves);
  if (experts > 1) {  // only `joint` of several experts needs these
    joint_sum_size_ = joint_sums(experts);
    joints_ = std::make_unique_for_overwrite<JointSearch[]>(rows);
    joint_sums_ = std::make_unique_for_overwrite<double[]>(rows * blocks_ * joint_sum_size_);
  }
}

void FusionSolver::solve(std::span<const FusionInput> inputs, std::span<FusionResult> results) {
  TORCH_CHECK(inputs.size() == results.size() && inputs.size() <= static_cast<size_t>(max_batch_),
              "the solver was made for ", max_batch_, " rows; got ", inputs.size(), " and ", results.size(),
              " results");
  inputs_ = inputs;
  results_ = results;
  active_rows_.clear();
  for (int row = 0; row < static_cast<int>(inputs.size()); ++row) {
    TORCH_INTERNAL_ASSERT(experts(row) >= 1 && experts(row) <= experts_);
    results_[row].bad_model = kNoBadModel;
    results_[row].sweeps = 0;
  }
  close_gates();
  for (int row = 0; row < static_cast<int>(inputs.size()); ++row) {
    if (alive(row)) {
      active_rows_.push_back(row);
    }
  }
  scale_rows();
  sweep_rows(true);
  check_rows();
  shrink_supports();
  set_targets();
  search();
  measure();
  for (int row = 0; row < static_cast<int>(inputs.size()); ++row) {
    if (alive(row)) {
      combine(row);
    }
  }
  solve_joint();
  fuse();
  mix();
  mask();
}

// Estimates the mean of Δ from a few tokens. The sweeps subtract it: a large common part of Δ would cost digits of Δ².
double FusionSolver::find_centre(int curve) const {
  const FusionInput& input = inputs_[curve / experts_];
  const float* large = large_[curve / experts_];
  const float* expert = input.experts[curve % experts_];
  const float* base = input.bases[curve % experts_];
  const int64_t stride = std::max<int64_t>(vocab_ / kCentreSamples, 1);
  double total = 0.0;
  int found = 0;
  for (int64_t i = 0; i < vocab_; i += stride) {
    const double difference = static_cast<double>(expert[i]) - static_cast<double>(base[i]);
    if (large[i] != -HUGE_VALF && std::isfinite(difference)) {
      total += difference;
      ++found;
    }
  }
  return found > 0 ? total / found : 0.0;
}

int FusionSolver::name(int curve) const {
  const int* names = inputs_[curve / experts_].names;
  const int expert = curve % experts_;
  return names == nullptr ? expert : names[expert];
}

// Number of a row's experts whose weight is solved.
int FusionSolver::solved(int row) const {
  const Curve* curves = &curves_[row * experts_];
  return static_cast<int>(
      std::count_if(curves, curves + experts(row), [](const Curve& curve) { return curve.solved; }));
}

AlphaRange FusionSolver::first_range(int curve) const {
  if (!curves_[curve].solved) {
    return {0.0, 0.0, 1};
  }
  const double alpha_max = weight(curve).alpha_max;
  if (!rule(curve).on_grid()) {
    return CurveSearch::first_points(alpha_max);
  }
  int points = 1;
  while (points < kGridPoints && points / kGridSteps <= alpha_max) {
    ++points;
  }
  return {0.0, (points - 1) / kGridSteps, points};
}

// Evaluates the first range on every curve of the active rows, and the targets.
void FusionSolver::sweep_rows(bool check) {
  const auto each_curve = [&](auto&& body) {
    threads_.parallel_for(static_cast<int64_t>(active_rows_.size()) * experts_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int row = active_rows_[i / experts_];
        const int expert = static_cast<int>(i % experts_);
        if (expert < experts(row)) {
          body(row * experts_ + expert);
        }
      }
    });
  };
  each_curve([&](int index) {
    Curve& curve = curves_[index];
    curve.search.clear();
    const ExpertWeight wanted = weight(index);
    curve.solved = wanted.solved() && !rule(index).is_measured();
    curve.given = wanted.mixed ? 0.0 : wanted.given.value_or(0.0);
    curve.sweeps = check ? 1 : curve.sweeps + 1;
    curve.ranges = 1;
    curve.alpha[0] = first_range(index);
    ranges_[index] = curve.alpha[0];
    curve.flags = 0;
    centres_[index] = find_centre(index);
  });
  const auto kernel = DLF_CPU_DISPATCH(sweep_row);
  for_blocks(active_rows_.size(), [&](int item, int64_t block, int64_t begin, int64_t end) {
    const int row = active_rows_[item];
    const int first = row * experts_;
    kernel({large_[row], inputs_[row].experts, inputs_[row].bases, &centres_[first], experts(row), begin, end,
            &ranges_[first], sums(first) + block * kSums, check ? &flags_[first * blocks_ + block] : nullptr,
            blocks_ * kSums, blocks_});
  });
  each_curve([&](int index) {
    for (int64_t block = 0; check && block < blocks_; ++block) {
      curves_[index].flags |= flags_[index * blocks_ + block];
    }
    if (curves_[index].flags == 0) {  // otherwise the sums may be NaN
      take_first(index);
    }
  });
}

// Evaluates the planned points of every active curve: one sweep over its logits.
void FusionSolver::sweep_curves() {
  const auto kernel = DLF_CPU_DISPATCH(sweep_curve);
  for_blocks(active_.size(), [&](int item, int64_t block, int64_t begin, int64_t end) {
    const int index = active_[item];
    const Curve& curve = curves_[index];
    const FusionInput& input = inputs_[index / experts_];
    kernel({large_[index / experts_], input.experts[index % experts_], input.bases[index % experts_], centres_[index],
            begin, end, curve.alpha, curve.ranges, sums(index) + block * kSums});
  });
  threads_.parallel_for(static_cast<int64_t>(active_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ++curves_[active_[i]].sweeps;
      take_points(active_[i]);
    }
  });
}

void FusionSolver::take_first(int index) {
  Curve& curve = curves_[index];
  const BlockSum zero = merge(sums(index), blocks_, kSums);
  if (!(zero.weight > 0.0)) {
    results_[index / experts_].bad_model = kEmptySupport;
    return;
  }
  curve.zero = moments(zero);
  take_points(index);
  const BlockSum* targets = sums(index) + curve.alpha[0].count;
  const Moments base = moments(merge(targets, blocks_, kSums));
  const Moments expert = moments(merge(targets + 1, blocks_, kSums));
  // Along base + αΔ the expert lies at α = 1, so its divergences are that curve's f and g.
  const Divergences target = divergences(curve_point(1.0, expert, base));
  curve.a = target.f;
  curve.b = target.g;
  curve.base_log_sum = base.log_sum;
  curve.expert_log_sum = expert.log_sum + centres_[index];
}

void FusionSolver::take_points(int index) {
  Curve& curve = curves_[index];
  const BlockSum* at = sums(index);
  for (int i = 0; i < curve.ranges; ++i) {
    const AlphaRange& range = curve.alpha[i];
    for (int k = 0; k < range.count; ++k, ++at) {
      const Moments here = moments(merge(at, blocks_, kSums));
      curve.search.add(curve_point(alpha_of(range, k), here, curve.zero));
    }
  }
}

void FusionSolver::check_rows() {
  active_rows_.clear();
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    if (!results_[row].open) {
      continue;
    }
    uint32_t any = 0;
    for (int t = experts(row) - 1; t >= 0; --t) {
      const uint32_t flags = curves_[row * experts_ + t].flags;
      any |= flags;
      if ((flags & kBadBase) != 0) {
        results_[row].bad_model = 2 + 2 * name(row * experts_ + t);
      }
      if ((flags & kBadExpert) != 0) {
        results_[row].bad_model = 1 + 2 * name(row * experts_ + t);
      }
    }
    if ((any & kBadLarge) != 0) {
      results_[row].bad_model = 0;
    }
    if (alive(row) && (any & kShrinksSupport) != 0) {
      active_rows_.push_back(row);
    }
  }
}

// Removes each token that is −inf in an expert or a base from every distribution of its row, and sweeps the row again.
// The row's large logits are replaced by a copy with −inf there, kept where the fused logits will go.
void FusionSolver::shrink_supports() {
  const auto kernel = DLF_CPU_DISPATCH(sweep_support);
  for_blocks(active_rows_.size(), [&](int item, int64_t, int64_t begin, int64_t end) {
    const int row = active_rows_[item];
    const FusionInput& input = inputs_[row];
    kernel({large_[row], input.experts, input.bases, experts(row), begin, end, results_[row].logits});
  });
  for (int row : active_rows_) {
    large_[row] = results_[row].logits;
    ++results_[row].sweeps;
  }
  sweep_rows(false);
}

void FusionSolver::set_targets() {
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    if (!alive(row)) {
      continue;
    }
    Curve* curves = &curves_[row * experts_];
    double mean_a = 0.0;
    double mean_b = 0.0;
    const int count = solved(row);
    for (int t = 0; t < experts(row); ++t) {
      results_[row].target_f[t] = curves[t].a;
      results_[row].target_g[t] = curves[t].b;
    }
    if (inputs_[row].rule->follows_certainty()) {
      weigh_targets(row);
    }
    for (int t = 0; t < experts(row); ++t) {
      mean_a += curves[t].solved ? curves[t].a / count : 0.0;
      mean_b += curves[t].solved ? curves[t].b / count : 0.0;
    }
    // Σ_t (f − a_t)² is T(f − ā)² and a constant, so one expert among several is searched with the mean targets.
    const Rule& rule = *inputs_[row].rule;
    const MatchRow& match = rule.matching();
    for (int t = 0; t < experts(row); ++t) {
      const double a = rule.meets_mean() ? mean_a : curves[t].a;
      const double b = rule.meets_mean() ? mean_b : curves[t].b;
      curves[t].search.set_loss({a, b, match.f_weight, match.g_weight});
    }
  }
}

void FusionSolver::search() {
  const int curves = static_cast<int>(inputs_.size()) * experts_;
  active_.clear();
  for (int i = 0; i < curves; ++i) {
    if (alive(i / experts_) && i % experts_ < experts(i / experts_) && curves_[i].solved) {
      active_.push_back(i);
    }
  }
  while (!active_.empty()) {
    threads_.parallel_for(static_cast<int64_t>(active_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        CurveSearch& search = curves_[active_[i]].search;
        rule(active_[i]).on_grid() ? search.choose() : search.look();
      }
    });
    std::erase_if(active_, [&](int index) { return !plan(index); });
    if (!active_.empty()) {
      sweep_curves();
    }
  }
}

// Plans a curve's next sweep; returns whether it takes one.
bool FusionSolver::plan(int index) {
  Curve& curve = curves_[index];
  curve.ranges = rule(index).on_grid() ? 0 : curve.search.plan(rival(index / experts_), curve.alpha);
  return curve.ranges > 0;
}

// Loss that a curve of this row must be able to beat, or its search ends. Where one expert is selected, those that
// can't be the best needn't be known well; those that tie with the best must be.
double FusionSolver::rival(int row) const {
  if (!inputs_[row].rule->meets_mean()) {
    return HUGE_VAL;
  }
  const Curve* curves = &curves_[row * experts_];
  double least = HUGE_VAL;
  for (int t = 0; t < experts(row); ++t) {
    least = curves[t].solved ? std::min(least, curves[t].search.answer_loss()) : least;
  }
  return least + 2.0 * kTie * curves[0].search.scale();
}

void FusionSolver::combine(int row) {
  FusionResult& result = results_[row];
  Curve* curves = &curves_[row * experts_];
  const int count = experts(row);
  int most = 0;
  for (int t = 0; t < count; ++t) {
    most = std::max(most, curves[t].sweeps);
  }
  result.sweeps += most;
  const bool one = inputs_[row].rule->meets_mean();
  // Experts that all reach the targets tie up to rounding: take the first.
  const double tie = kTie * curves[0].search.scale();
  const int among = solved(row);
  int best = -1;
  for (int t = 0; t < count; ++t) {
    curves[t].selected = false;
    if (!curves[t].solved) {
      result.alpha[t] = curves[t].given;
      continue;
    }
    const double alone = curves[t].search.answer().alpha;
    result.alpha[t] = one ? 0.0 : alone / among;  // `joint` starts there too
    const double loss = curves[t].search.answer_loss();
    best = best < 0 || loss < curves[best].search.answer_loss() - tie ? t : best;
  }
  if (one && best >= 0) {
    result.alpha[best] = curves[best].search.answer().alpha;
    curves[best].selected = true;
  }
}

void FusionSolver::fuse() {
  active_rows_.clear();
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    if (alive(row)) {
      active_rows_.push_back(row);
    }
  }
  const auto kernel = DLF_CPU_DISPATCH(sweep_fuse);
  for_blocks(active_rows_.size(), [&](int item, int64_t block, int64_t begin, int64_t end) {
    const int row = active_rows_[item];
    const FusionInput& input = inputs_[row];
    kernel({large_[row], input.experts, input.bases, results_[row].alpha, &centres_[row * experts_], experts(row),
            begin, end, results_[row].logits, sums(row * experts_) + block});
  });
  for (int row : active_rows_) {
    FusionResult& result = results_[row];
    Curve* curves = &curves_[row * experts_];
    // δ = Σ α_tΔ_t under P is known from the first sweep.
    Moments zero = {curves[0].zero.log_sum, 0.0, 0.0};
    double offset = 0.0;  // of δ, which the sweep centred
    for (int t = 0; t < experts(row); ++t) {
      zero.mean += result.alpha[t] * curves[t].zero.mean;
      offset += result.alpha[t] * centres_[row * experts_ + t];
    }
    const Moments one = moments(merge(sums(row * experts_), blocks_, 1));
    curves[0].fused_log_sum = one.log_sum + offset;
    const Divergences fused = divergences(curve_point(1.0, one, zero));
    result.f = fused.f;
    result.g = fused.g;
    ++result.sweeps;
  }
}

}  // namespace dlf
