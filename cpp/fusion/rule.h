#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

namespace dlf {

inline constexpr int kMaxExperts = 16;

// How the weights of several experts are combined.
enum class Combine { select, centroid, joint, static_alpha, grid };

// Which divergences are matched with the expert's: f = KL(P̃‖P) with a, g = KL(P‖P̃) with b.
enum class Match { symmetric, forward, reverse };

// A way to combine. The solvers ask for its properties, not for its name.
struct CombineRow {
  enum class Weights {
    given,     // by the request, for all experts
    searched,  // each expert's on its own curve α → P_α
    joint,     // likewise, and from there by the least change of P that reaches every expert's moment
  };
  enum class Targets {
    own,   // each expert is searched for its own a and b, and its weight divided by the number of experts
    mean,  // the expert whose curve passes nearest the means of all a and b gets the weight; the others get 0
  };
  enum class Points {
    refined,  // chosen by the search until α is known
    grid,     // the 21 values of the paper, a tenth apart, up to α_max
  };

  Combine combine;
  std::string_view name;
  Weights weights;
  Targets targets;
  Points points;
};

inline constexpr std::array<CombineRow, 5> kCombineTable = {{
    {Combine::select, "select", CombineRow::Weights::searched, CombineRow::Targets::mean, CombineRow::Points::refined},
    {Combine::centroid, "centroid", CombineRow::Weights::searched, CombineRow::Targets::own,
     CombineRow::Points::refined},
    {Combine::joint, "joint", CombineRow::Weights::joint, CombineRow::Targets::own, CombineRow::Points::refined},
    {Combine::static_alpha, "static", CombineRow::Weights::given, CombineRow::Targets::own,
     CombineRow::Points::refined},
    {Combine::grid, "grid", CombineRow::Weights::searched, CombineRow::Targets::mean, CombineRow::Points::grid},
}};

// Weights of the squares of f − a and g − b in the loss.
struct MatchRow {
  Match match;
  std::string_view name;
  double f_weight;
  double g_weight;
};

inline constexpr std::array<MatchRow, 3> kMatchTable = {{
    {Match::symmetric, "symmetric", 1.0, 1.0},
    {Match::forward, "forward", 1.0, 0.0},
    {Match::reverse, "reverse", 0.0, 1.0},
}};

// How an expert gets its weight. The others are solved as if the experts with given weights were not there.
struct ExpertWeight {
  double alpha_max = 2.0;       // solved in [0, alpha_max]
  std::optional<double> given;  // or this, which may be negative

  bool solved() const { return !given.has_value(); }
};

// How the logits of a request's experts move those of the large model. Every request has a rule of its own.
struct Rule {
  Combine combine = Combine::select;
  Match match = Match::symmetric;
  std::vector<ExpertWeight> weights;  // one per expert of the request; empty: all solved, up to the default bound

  const CombineRow& combining() const { return kCombineTable[static_cast<size_t>(combine)]; }
  const MatchRow& matching() const { return kMatchTable[static_cast<size_t>(match)]; }
  bool takes_given() const { return combining().weights == CombineRow::Weights::given; }
  bool is_joint() const { return combining().weights == CombineRow::Weights::joint; }
  bool meets_mean() const { return combining().targets == CombineRow::Targets::mean; }
  bool on_grid() const { return combining().points == CombineRow::Points::grid; }
  ExpertWeight weight(size_t expert) const { return weights.empty() ? ExpertWeight() : weights[expert]; }
};

// Makes the rule for this number of experts. `alpha` is empty or has a number, or none, for each; `alpha_max` has one
// bound for all or one for each. Throws a ValueError where validate() does, and one with the choices for unknown names.
Rule parse_rule(std::string_view combine, std::string_view match, const std::vector<std::optional<double>>& alpha,
                const std::vector<double>& alpha_max, int experts);

// Throws a ValueError if the rule doesn't fit this number of experts.
void validate(const Rule& rule, int experts);

// Throws a ValueError unless `experts` is 1 to kMaxExperts.
void check_expert_count(int experts);

}  // namespace dlf
