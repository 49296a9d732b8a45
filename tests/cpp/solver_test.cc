// Runs the solver on vocabularies of many sizes, for the sanitizers; Python tests check its answers.
#include "fusion/cpu/solver.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"

namespace dlf {
namespace {

const Rule kSelect;

struct Batch {
  std::vector<std::vector<float>> logits;
  std::vector<const float*> experts;
  std::vector<const float*> bases;
  std::vector<FusionInput> inputs;
  std::vector<double> numbers;
  std::vector<std::vector<float>> fused;
  std::vector<FusionResult> results;

  Batch(int rows, int count, int64_t vocab, double excluded, std::mt19937& generator, const Rule& rule = kSelect) {
    const int models = 1 + 2 * count;
    std::normal_distribution<float> normal(0.0F, 3.0F);
    std::bernoulli_distribution exclude(excluded);
    for (int i = 0; i < rows * models; ++i) {
      std::vector<float>& row = logits.emplace_back(vocab);
      for (float& logit : row) {
        logit = exclude(generator) ? -std::numeric_limits<float>::infinity() : normal(generator);
      }
      row[0] = 0.0F;
    }
    for (int i = 0; i < rows * count; ++i) {
      experts.push_back(logits[i / count * models + 1 + 2 * (i % count)].data());
      bases.push_back(logits[i / count * models + 2 + 2 * (i % count)].data());
    }
    numbers.resize(3 * rows * count);
    for (int row = 0; row < rows; ++row) {
      inputs.push_back({logits[row * models].data(), &experts[row * count], &bases[row * count], &rule, count});
      fused.emplace_back(vocab);
      FusionResult& result = results.emplace_back();
      result.alpha = &numbers[3 * row * count];
      result.target_f = result.alpha + count;
      result.target_g = result.target_f + count;
      result.logits = fused.back().data();
    }
  }
};

void every_mode_solves_every_size() {
  std::mt19937 generator(1);
  ThreadTeam team(3);
  for (const int64_t vocab : {2, 3, 1023, 1024, 1025, 5000}) {
    for (const int count : {1, 2, 16}) {
      for (const CombineRow& row : kCombineTable) {
        Rule rule = {row.combine, Match::symmetric, {}};
        if (row.weights == CombineRow::Weights::given) {
          rule.weights.assign(count, {2.0, 0.5});
        }
        FusionSolver solver(count, vocab, 3, team);
        for (const double excluded : {0.0, 0.1}) {
          Batch batch(3, count, vocab, excluded, generator, rule);
          solver.solve(batch.inputs, batch.results);
          for (size_t row = 0; row < 3; ++row) {
            const FusionResult& result = batch.results[row];
            EXPECT(result.bad_model == kNoBadModel);
            EXPECT(result.sweeps >= 2 && std::isfinite(result.f) && std::isfinite(result.g));
            for (int t = 0; t < count; ++t) {
              EXPECT(result.alpha[t] >= 0.0 && result.alpha[t] <= 2.0);
            }
            for (int64_t i = 0; i < vocab; ++i) {
              EXPECT(!std::isnan(result.logits[i]));
            }
          }
        }
      }
    }
  }
}

constexpr Combine kCombines[] = {Combine::select, Combine::centroid, Combine::joint, Combine::grid,
                                 Combine::static_alpha};

// Returns a rule with its own bound for each of four experts, the third with a given weight; all given for `static`.
Rule mixed(Combine combine, Match match = Match::symmetric) {
  Rule rule = {combine, match, {{2.0, {}}, {0.3, {}}, {2.0, -0.75}, {5.0, {}}}};
  for (ExpertWeight& weight : rule.weights) {
    weight.given = combine == Combine::static_alpha ? weight.alpha_max / 4.0 : weight.given;
  }
  return rule;
}

// Results of a solver for a row that uses some of its experts, and of a solver made for these alone.
struct Pair {
  FusionResult one;
  FusionResult other;
  std::vector<double> numbers;
  std::vector<float> fused;
};

Pair solve_some(const Rule& rule, const std::vector<int>& chosen, const Batch& batch, int64_t vocab) {
  ThreadTeam team(2);
  Pair pair = {};
  const auto count = static_cast<int>(chosen.size());
  pair.numbers.resize(6 * chosen.size());
  pair.fused.resize(2 * vocab);
  Rule fewer = rule;
  fewer.weights.clear();
  std::vector<const float*> experts;
  std::vector<const float*> bases;
  for (const int t : chosen) {
    fewer.weights.push_back(rule.weights[t]);
    experts.push_back(batch.inputs[0].experts[t]);
    bases.push_back(batch.inputs[0].bases[t]);
  }
  int which = 0;
  for (FusionResult* result : {&pair.one, &pair.other}) {
    result->alpha = &pair.numbers[3 * chosen.size() * which];
    result->target_f = result->alpha + count;
    result->target_g = result->alpha + 2 * static_cast<std::ptrdiff_t>(count);
    result->logits = &pair.fused[vocab * which++];
  }
  FusionSolver all(static_cast<int>(rule.weights.size()), vocab, 1, team);
  const FusionInput some = {batch.inputs[0].large, experts.data(), bases.data(), &fewer, count, chosen.data()};
  all.solve({&some, 1}, {&pair.one, 1});
  FusionSolver few(count, vocab, 1, team);
  const FusionInput whole = {some.large, some.experts, some.bases, &fewer, count};
  few.solve({&whole, 1}, {&pair.other, 1});
  return pair;
}

void a_row_may_use_some_of_the_experts() {
  std::mt19937 generator(5);
  for (const double excluded : {0.0, 0.1}) {
    Batch batch(1, 4, 2500, excluded, generator);
    for (const Combine combine : kCombines) {
      for (const std::vector<int>& chosen :
           std::vector<std::vector<int>>{{0}, {2}, {1, 3}, {0, 2}, {1, 2, 3}, {0, 1, 2, 3}}) {
        const Pair pair = solve_some(mixed(combine), chosen, batch, 2500);
        const auto half = static_cast<std::ptrdiff_t>(pair.numbers.size() / 2);
        EXPECT(std::equal(pair.numbers.begin(), pair.numbers.begin() + half, pair.numbers.begin() + half));
        EXPECT(std::equal(pair.fused.begin(), pair.fused.begin() + 2500, pair.fused.begin() + 2500));
        EXPECT(pair.one.f == pair.other.f && pair.one.g == pair.other.g && pair.one.sweeps == pair.other.sweeps);
      }
    }
  }
}

void a_given_weight_leaves_the_others_what_they_are() {
  std::mt19937 generator(6);
  Batch batch(1, 4, 2500, 0.0, generator);
  for (const Combine combine : {Combine::select, Combine::centroid, Combine::joint, Combine::grid}) {
    const Pair with = solve_some(mixed(combine), {0, 1, 2, 3}, batch, 2500);
    const Pair without = solve_some(mixed(combine), {0, 1, 3}, batch, 2500);
    EXPECT(with.one.alpha[2] == -0.75);
    EXPECT(with.one.alpha[0] == without.one.alpha[0] && with.one.alpha[1] == without.one.alpha[1] &&
           with.one.alpha[3] == without.one.alpha[2]);
    EXPECT(with.one.alpha[1] <= 0.3);
    EXPECT(with.one.f != without.one.f);
  }
}

// Solves every pair of combine and match, with one to four experts, in one shuffled batch and each alone.
void rows_of_other_rules_change_no_bit() {
  std::mt19937 generator(7);
  ThreadTeam team(2);
  constexpr int64_t kVocab = 2500;
  std::vector<Rule> rules;
  for (const CombineRow& combine : kCombineTable) {
    for (const MatchRow& match : kMatchTable) {
      Rule rule = mixed(combine.combine, match.match);
      rule.weights.resize(1 + rules.size() % 4);
      rules.push_back(rule);
    }
  }
  const int rows = static_cast<int>(rules.size());
  for (const double excluded : {0.0, 0.1}) {
    Batch together(rows, 4, kVocab, excluded, generator);
    Batch alone = together;
    for (int row = 0; row < rows; ++row) {
      for (Batch* batch : {&together, &alone}) {
        batch->inputs[row].rule = &rules[row];
        batch->inputs[row].count = static_cast<int>(rules[row].weights.size());
      }
      alone.results[row].alpha = &alone.numbers[12 * row];
      alone.results[row].target_f = alone.results[row].alpha + 4;
      alone.results[row].target_g = alone.results[row].alpha + 8;
      alone.results[row].logits = alone.fused[row].data();
    }
    std::vector<int> order(rows);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), generator);
    std::vector<FusionInput> inputs;
    std::vector<FusionResult> results;
    for (const int row : order) {
      inputs.push_back(together.inputs[row]);
      results.push_back(together.results[row]);
    }
    FusionSolver solver(4, kVocab, rows, team);
    solver.solve(inputs, results);
    for (int i = 0; i < rows; ++i) {
      const int row = order[i];
      FusionSolver one(alone.inputs[row].count, kVocab, 1, team);
      one.solve({&alone.inputs[row], 1}, {&alone.results[row], 1});
      EXPECT(results[i].f == alone.results[row].f && results[i].g == alone.results[row].g);
      EXPECT(results[i].sweeps == alone.results[row].sweeps && results[i].bad_model == kNoBadModel);
    }
    EXPECT(together.numbers == alone.numbers);
    EXPECT(together.fused == alone.fused);
  }
}

void a_bad_logit_is_the_fault_of_its_row_and_model() {
  std::mt19937 generator(2);
  ThreadTeam team(2);
  FusionSolver solver(2, 3000, 3, team);
  Batch batch(3, 2, 3000, 0.0, generator);
  batch.logits[5 + 3][2999] = std::numeric_limits<float>::quiet_NaN();  // row 1, expert 1
  batch.logits[10][0] = std::numeric_limits<float>::infinity();         // row 2, the large model
  solver.solve(batch.inputs, batch.results);
  EXPECT(batch.results[0].bad_model == kNoBadModel);
  EXPECT(batch.results[1].bad_model == 3);
  EXPECT(batch.results[2].bad_model == 0);
}

void impossible_solvers_are_refused() {
  ThreadTeam team(1);
  EXPECT_THROWS(FusionSolver(0, 10, 1, team));
  EXPECT_THROWS(FusionSolver(17, 10, 1, team));
  EXPECT_THROWS(FusionSolver(1, 1, 1, team));
  FusionSolver solver(1, 10, 1, team);
  std::mt19937 generator(3);
  Batch batch(2, 1, 10, 0.0, generator);
  EXPECT_THROWS(solver.solve(batch.inputs, batch.results));
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"every mode solves every size", dlf::every_mode_solves_every_size},
      {"a row may use some of the experts", dlf::a_row_may_use_some_of_the_experts},
      {"a given weight leaves the others what they are", dlf::a_given_weight_leaves_the_others_what_they_are},
      {"rows of other rules change no bit", dlf::rows_of_other_rules_change_no_bit},
      {"a bad logit is the fault of its row and model", dlf::a_bad_logit_is_the_fault_of_its_row_and_model},
      {"impossible solvers are refused", dlf::impossible_solvers_are_refused},
  });
}
