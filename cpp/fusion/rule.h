#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dlf {

inline constexpr int kMaxExperts = 16;

// How the weights of several experts are combined.
enum class Combine { select, centroid, joint, static_alpha, grid, jsd, certainty };

// Which divergences are matched with the expert's: f = KL(P̃‖P) with a, g = KL(P‖P̃) with b.
enum class Match { symmetric, forward, reverse };

// A way to combine. The solvers ask for its properties, not for its name.
struct CombineRow {
  enum class Weights {
    given,     // by the request, for all experts
    searched,  // each expert's on its own curve α → P_α
    joint,     // likewise, and from there by the least change of P that reaches every expert's moment
    measured,  // the Jensen-Shannon divergence of expert and base, up to α_max (AdaCAD, arXiv 2409.07394)
  };
  enum class Targets {
    own,   // each expert is searched for its own a and b, and its weight divided by the number of experts
    mean,  // the expert whose curve passes nearest the means of all a and b gets the weight; the others get 0
  };
  enum class Points {
    refined,  // chosen by the search until α is known
    grid,     // the 21 values of the paper, a tenth apart, up to α_max
  };
  enum class Certainty {
    ignored,
    follows,  // a large model that is surer than an expert moves less, and a surer expert is mixed in
  };

  Combine combine;
  std::string_view name;
  Weights weights;
  Targets targets;
  Points points;
  Certainty certainty = Certainty::ignored;
};

inline constexpr std::array<CombineRow, 7> kCombineTable = {{
    {Combine::select, "select", CombineRow::Weights::searched, CombineRow::Targets::mean, CombineRow::Points::refined},
    {Combine::centroid, "centroid", CombineRow::Weights::searched, CombineRow::Targets::own,
     CombineRow::Points::refined},
    {Combine::joint, "joint", CombineRow::Weights::joint, CombineRow::Targets::own, CombineRow::Points::refined},
    {Combine::static_alpha, "static", CombineRow::Weights::given, CombineRow::Targets::own,
     CombineRow::Points::refined},
    {Combine::grid, "grid", CombineRow::Weights::searched, CombineRow::Targets::mean, CombineRow::Points::grid},
    {Combine::jsd, "jsd", CombineRow::Weights::measured, CombineRow::Targets::own, CombineRow::Points::refined},
    {Combine::certainty, "certainty", CombineRow::Weights::searched, CombineRow::Targets::mean,
     CombineRow::Points::refined, CombineRow::Certainty::follows},
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
  bool mixed = false;  // `given` is the share of the expert's own probabilities; nothing is added to the logits

  bool solved() const { return !given.has_value(); }
  double share() const { return mixed ? given.value_or(0.0) : 0.0; }
};

// Where the experts take part. Elsewhere the gate is closed, and the large model's logits stay as they are.
enum class GateKind { none, entropy, top_prob, disagree };

struct GateRow {
  GateKind kind;
  std::string_view name;
  bool needs_experts;  // whether it reads more than the large model's logits
};

inline constexpr std::array<GateRow, 4> kGateTable = {{
    {GateKind::none, "none", false},          // everywhere
    {GateKind::entropy, "entropy", false},    // where P has at least `threshold` nats
    {GateKind::top_prob, "top_prob", false},  // where the largest probability of P is at most `threshold`
    {GateKind::disagree, "disagree", true},   // where an expert's most probable token is not the large model's
}};

struct Gate {
  GateKind kind = GateKind::none;
  double threshold = 0.0;

  bool exists() const { return kind != GateKind::none; }
  bool needs_experts() const { return kGateTable[static_cast<size_t>(kind)].needs_experts; }
  bool reads_large_alone() const { return exists() && !needs_experts(); }
};

// How the logits of a request's experts move those of the large model. Every request has a rule of its own.
//
// P is the distribution of large_weight · z_L. The experts' logits are added to these, then the probabilities of mixed
// experts are mixed in, and at last the tokens that the large model itself finds implausible are removed.
struct Rule {
  Combine combine = Combine::select;
  Match match = Match::symmetric;
  std::vector<ExpertWeight> weights;  // one per expert of the request; empty: all solved, up to the default bound
  double large_weight = 1.0;
  double plausibility = 0.0;  // least probability of a token, as a share of the largest of softmax(z_L)
  Gate gate = {};

  const CombineRow& combining() const { return kCombineTable[static_cast<size_t>(combine)]; }
  const MatchRow& matching() const { return kMatchTable[static_cast<size_t>(match)]; }
  bool takes_given() const { return combining().weights == CombineRow::Weights::given; }
  bool is_joint() const { return combining().weights == CombineRow::Weights::joint; }
  bool is_measured() const { return combining().weights == CombineRow::Weights::measured; }
  bool meets_mean() const { return combining().targets == CombineRow::Targets::mean; }
  bool follows_certainty() const { return combining().certainty == CombineRow::Certainty::follows; }
  bool on_grid() const { return combining().points == CombineRow::Points::grid; }
  ExpertWeight weight(size_t expert) const { return weights.empty() ? ExpertWeight() : weights[expert]; }
  double mixed_share() const;                        // Σ of the shares of mixed experts
  std::optional<double> bound(size_t expert) const;  // the largest weight that it can get; none if it is given
};

// A rule by its options. Lists are empty, or have an entry for each expert; `alpha_max` may have one for all.
struct RuleOptions {
  std::string combine = "select";
  std::string match = "symmetric";
  std::vector<std::optional<double>> alpha;
  std::vector<double> alpha_max = {2.0};
  std::vector<std::optional<double>> mix;
  double large_weight = 1.0;
  double plausibility = 0.0;
  std::string gate = "none";
  double gate_threshold = 0.0;
};

// Makes the rule for this number of experts. Throws a ValueError where validate() does, and one with the choices for
// unknown names.
Rule parse_rule(const RuleOptions& options, int experts);

// Throws a ValueError if the rule doesn't fit this number of experts.
void validate(const Rule& rule, int experts);

// Throws a ValueError unless `experts` is 1 to kMaxExperts.
void check_expert_count(int experts);

}  // namespace dlf
