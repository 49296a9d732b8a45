// Compares routing with sorting in plain loops, and a mixture of experts with the products of each row and expert
// alone.
#include "ops/cpu/experts.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <numeric>

#include "check.h"
#include "ops/cpu/activation.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/quantize.h"
#include "ops/cpu/router.h"
#include "ops_testing.h"
#include "tiles_testing.h"

namespace dlf::ops {
namespace {

// Routes with the memory that they point to.
struct Routing {
  std::vector<int32_t> expert, place, row;
  std::vector<float> weight;
  std::vector<ExpertRun> runs;
  int32_t run_count = 0;
  int chosen;

  Routing(const Floats& logits, int experts, int chosen_count, bool normalise, ThreadTeam& team,
          int run_pairs = INT_MAX)
      : chosen(chosen_count) {
    const auto rows = static_cast<int>(logits.size()) / experts;
    const int pairs = rows * chosen;
    expert.resize(pairs);
    place.resize(pairs);
    row.resize(pairs);
    weight.resize(pairs);
    runs.resize(most_runs(rows, experts, chosen, run_pairs));
    router({logits.data(), nullptr, routes(), rows, experts, chosen, run_pairs, normalise}, team);
    EXPECT(run_count <= static_cast<int32_t>(runs.size()));
    runs.resize(run_count);
  }

  Routes routes() { return {expert.data(), weight.data(), place.data(), row.data(), runs.data(), &run_count}; }
};

void a_row_gets_the_experts_with_the_largest_logits() {
  ThreadTeam team(2);
  for (const auto& [experts, chosen] : {std::pair(1, 1), std::pair(8, 2), std::pair(65, 8), std::pair(1024, 32)}) {
    constexpr int kRows = 19;
    Floats logits = random_floats(int64_t{kRows} * experts, 1);
    for (float& logit : logits) {
      logit = std::round(logit * 4) / 4;  // so that some are equal
    }
    for (const bool normalise : {false, true}) {
      const Routing routing(logits, experts, chosen, normalise, team);
      for (int r = 0; r < kRows; ++r) {
        const float* of_row = logits.data() + int64_t{r} * experts;
        std::vector<int32_t> order(experts);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return of_row[a] > of_row[b]; });
        double total = 0.0;
        for (int e = 0; e < (normalise ? chosen : experts); ++e) {
          total += std::exp(static_cast<double>(of_row[order[e]]));
        }
        for (int k = 0; k < chosen; ++k) {
          EXPECT(routing.expert[r * chosen + k] == order[k]);
          const double expected = std::exp(static_cast<double>(of_row[order[k]])) / total;
          EXPECT(near(routing.weight[r * chosen + k], expected, 1e-6));
        }
      }
    }
  }
}

void pairs_are_sorted_by_expert_and_row() {
  ThreadTeam team(2);
  constexpr int kExperts = 7;
  constexpr int kChosen = 3;
  for (const int run_pairs : {1, 4, INT_MAX}) {
    const Routing routing(random_floats(23 * kExperts, 5), kExperts, kChosen, false, team, run_pairs);
    int32_t next = 0;
    for (size_t i = 0; i < routing.runs.size(); ++i) {
      const ExpertRun& run = routing.runs[i];
      EXPECT(run.first == next && run.pairs >= 1 && run.pairs <= run_pairs);
      EXPECT(i == 0 || run.expert > routing.runs[i - 1].expert ||
             (run.expert == routing.runs[i - 1].expert && routing.runs[i - 1].pairs == run_pairs));
      for (int32_t pair = next; pair < next + run.pairs; ++pair) {
        const int32_t row = routing.row[pair];
        const auto* places = routing.place.data() + int64_t{row} * kChosen;
        const auto k = std::find(places, places + kChosen, pair) - places;
        EXPECT(k < kChosen && routing.expert[row * kChosen + k] == run.expert);
        EXPECT(pair == run.first || row > routing.row[pair - 1]);
      }
      next += run.pairs;
    }
    EXPECT(next == 23 * kChosen);
  }
}

void logits_that_are_not_finite_route_somewhere() {
  ThreadTeam team(1);
  Floats logits(12, NAN);
  logits[1] = -INFINITY;
  logits[6] = -NAN;
  logits[8] = INFINITY;
  const Routing routing(logits, 6, 6, true, team);
  for (int r = 0; r < 2; ++r) {
    std::vector<int32_t> experts(routing.expert.begin() + 6L * r, routing.expert.begin() + 6L * (r + 1));
    std::sort(experts.begin(), experts.end());
    EXPECT((experts == std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  }
}

// How weights are stored: in a type that they are quantized to if need be, or as a packed kind.
struct Kind {
  MatrixType type;
  int64_t group;
  const testing::PackedKind* packed = nullptr;
};

std::vector<Kind> kinds() {
  std::vector<Kind> found = {{MatrixType::float32, 0},
                             {MatrixType::bfloat16, 0},
                             {MatrixType::int8, 0},
                             {MatrixType::int4, 32},
                             {MatrixType::int4, 64}};
  for (const testing::PackedKind& packed : testing::kPackedKinds) {
    found.push_back({MatrixType::int8, 0, &packed});
  }
  return found;
}

// A layer's random experts.
struct Layer {
  std::vector<Stored> stored;
  std::vector<Tiles> tiles;
  std::vector<Expert> experts;

  Layer(int count, int64_t inner, int64_t hidden, const Kind& kind) {
    stored.reserve(3L * count);
    for (int e = 0; e < count; ++e) {
      experts.push_back({matrix(inner, hidden, kind), matrix(inner, hidden, kind), matrix(hidden, inner, kind)});
    }
  }

  Matrix matrix(int64_t out, int64_t in, const Kind& kind) {
    const auto& [type, group, packed] = kind;
    if (packed != nullptr) {
      ThreadTeam team(2);
      return matrix_of(tiles.emplace_back(pack(testing::random_packed(*packed, out, in, seed_++), team)), out, in,
                       "weight");
    }
    const Floats random = random_floats(out * in, seed_++);
    if (is_quantized(type)) {
      ThreadTeam team(2);
      at::Tensor dense = at::empty({out, in}, at::kFloat);
      std::copy(random.begin(), random.end(), dense.mutable_data_ptr<float>());
      return matrix_of(tiles.emplace_back(quantize(dense, type, group, team)), out, in, "weight");
    }
    stored.emplace_back(random, type == MatrixType::float32 ? DType::float32 : DType::bfloat16);
    return {stored.back().bytes.data(), nullptr, out, in, type, 0};
  }

 private:
  uint32_t seed_ = 10;
};

// Returns y [rows, hidden], which was 0.5 before if `accumulate`.
Floats run_experts(const Layer& layer, const Floats& x, Routing& routing, bool is_prompt, bool accumulate,
                   ThreadTeam& team, Activation activation = Activation::silu) {
  const auto hidden = static_cast<int>(layer.experts[0].gate.in);
  const auto inner = static_cast<int>(layer.experts[0].gate.out);
  const auto rows = static_cast<int>(x.size()) / hidden;
  const auto pairs = static_cast<int64_t>(routing.row.size());
  Floats gated(pairs * inner);
  Floats up(pairs * inner);
  Floats products(pairs * hidden);
  Floats y(x.size(), 0.5F);
  LinearInput input(pairs, std::max(hidden, inner));
  experts({{layer.experts.data(), routing.routes(), x.data(), gated.data(), products.data(), y.data(), rows,
            routing.chosen, hidden, inner, DType::float32, activation},
           up.data(),
           &input,
           is_prompt,
           accumulate},
          team);
  return y;
}

// Returns the same by the products of one row and one expert at a time.
Floats run_alone(const Layer& layer, const Floats& x, const Routing& routing, bool accumulate, ThreadTeam& team,
                 Activation activation = Activation::silu) {
  const auto hidden = static_cast<int>(layer.experts[0].gate.in);
  const auto inner = static_cast<int>(layer.experts[0].gate.out);
  const int64_t rows = static_cast<int64_t>(x.size()) / hidden;
  LinearInput input(1, std::max(hidden, inner));
  Floats y(x.size());
  for (int64_t row = 0; row < rows; ++row) {
    Floats sum(hidden);
    for (int64_t k = row * routing.chosen; k < (row + 1) * routing.chosen; ++k) {
      const Expert& expert = layer.experts[routing.expert[k]];
      Floats gate(inner);
      Floats up(inner);
      Floats down(hidden);
      linear_gated(input.prepare(x.data() + row * hidden, 1, hidden, expert.gate.type, team),
                   {{expert.gate, nullptr, gate.data(), 1}, false}, {{expert.up, nullptr, up.data(), 1}, false},
                   activation, nullptr, team);
      linear(input.prepare(gate.data(), 1, inner, expert.down.type, team),
             {{expert.down, nullptr, down.data(), 1}, false}, team);
      for (int i = 0; i < hidden; ++i) {
        sum[i] += routing.weight[k] * down[i];
      }
    }
    for (int i = 0; i < hidden; ++i) {
      y[row * hidden + i] = accumulate ? 0.5F + sum[i] : sum[i];
    }
  }
  return y;
}

void a_mixture_is_the_products_of_its_experts() {
  for (const int threads : {1, 3}) {
    ThreadTeam team(threads);
    for (const Kind& kind : kinds()) {
      for (const auto& [inner, hidden] : {std::pair<int64_t, int64_t>(40, 72), std::pair<int64_t, int64_t>(96, 300)}) {
        const Layer layer(6, inner, hidden, kind);
        for (const int rows : {1, 3, 8, 40}) {
          const Floats x = random_floats(rows * hidden, 3);
          Routing routing(random_floats(rows * 6L, 4), 6, 2, true, team);
          for (const bool accumulate : {false, true}) {
            EXPECT(run_experts(layer, x, routing, false, accumulate, team) ==
                   run_alone(layer, x, routing, accumulate, team));
          }
        }
      }
    }
  }
}

void experts_have_the_activation_of_the_model() {
  ThreadTeam team(2);
  const Layer layer(6, 40, 72, {MatrixType::float32, 0});
  const Floats x = random_floats(3 * 72, 3);
  Routing routing(random_floats(3 * 6, 4), 6, 2, true, team);
  const Floats silu = run_alone(layer, x, routing, false, team);
  for (const Activation activation : {Activation::gelu, Activation::gelu_tanh}) {
    const Floats expected = run_alone(layer, x, routing, false, team, activation);
    EXPECT(expected != silu && run_experts(layer, x, routing, false, false, team, activation) == expected);
  }
}

void a_prompt_gives_the_same_up_to_rounding() {
  ThreadTeam team(2);
  for (const Kind& kind : kinds()) {
    const Layer layer(3, 64, 96, kind);
    const MatrixType type = layer.experts[0].gate.type;
    constexpr int kRows = 70;
    const Floats x = random_floats(kRows * 96, 3);
    Floats logits = random_floats(kRows * 3, 4);
    for (int r = 8; r < kRows; ++r) {
      logits[3 * r] = -9.0F;  // few rows choose the first expert, and more than 16 the others
    }
    Routing routing(logits, 3, 2, false, team);
    EXPECT(routing.runs[0].pairs < 16 && routing.runs[1].pairs > 16);
    const Floats expected = run_alone(layer, x, routing, true, team);
    const Floats found = run_experts(layer, x, routing, true, true, team);
    double error = 0.0;
    double size = 0.0;
    for (size_t i = 0; i < found.size(); ++i) {
      error += std::pow(found[i] - expected[i], 2);
      size += std::pow(expected[i], 2);
    }
    EXPECT(error < (type == MatrixType::bfloat16 ? 1e-4 : 1e-10) * size);  // the library rounds to bfloat16
    EXPECT(is_quantized(type) == (found == expected));
  }
}

}  // namespace
}  // namespace dlf::ops

int main() {
  using namespace dlf::ops;
  return dlf::testing::run(
      {{"a row gets the experts with the largest logits", a_row_gets_the_experts_with_the_largest_logits},
       {"pairs are sorted by expert and row", pairs_are_sorted_by_expert_and_row},
       {"logits that are not finite route somewhere", logits_that_are_not_finite_route_somewhere},
       {"a mixture is the products of its experts", a_mixture_is_the_products_of_its_experts},
       {"experts have the activation of the model", experts_have_the_activation_of_the_model},
       {"a prompt gives the same up to rounding", a_prompt_gives_the_same_up_to_rounding}});
}
