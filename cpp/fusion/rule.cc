#include "fusion/rule.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "support/option_error.h"

namespace dlf {
namespace {

constexpr double kMostAlpha = 1e6;  // so that float32 holds its product with any logit

constexpr double kMostLargeWeight = 100.0;
constexpr double kRounding = 1e-9;  // of a sum of shares

template <typename Table, typename Kind>
constexpr bool in_order(const Table& table, Kind kind) {
  for (size_t i = 0; i < table.size(); ++i) {
    if (static_cast<size_t>(table[i].*kind) != i) return false;
  }
  return true;
}
static_assert(in_order(kCombineTable, &CombineRow::combine) && in_order(kMatchTable, &MatchRow::match) &&
                  in_order(kGateTable, &GateRow::kind),
              "a row is found by its number");

// Finds the row with this name.
template <typename Row, size_t count>
const Row& find(const std::array<Row, count>& table, const char* option, std::string_view name) {
  std::string choices;
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i].name == name) {
      return table[i];
    }
    choices += i == 0 ? "'" : i + 1 == table.size() ? " or '" : ", '";
    choices += table[i].name;
    choices += '\'';
  }
  throw OptionError(option, c10::str(option, " is '", name, "'; it takes ", choices));
}

std::vector<ExpertWeight> expert_weights(const RuleOptions& options, int experts) {
  const auto& [alpha, alpha_max, mix] = std::tie(options.alpha, options.alpha_max, options.mix);
  const auto count = static_cast<size_t>(experts);
  check_option(alpha.empty() || alpha.size() == count, "alpha", " holds ", alpha.size(), " weights for ", experts,
               " experts; give one per expert, None to solve it");
  check_option(alpha_max.size() == 1 || alpha_max.size() == count, "alpha_max", " holds ", alpha_max.size(),
               " bounds for ", experts, " experts; give one for all or one per expert");
  check_option(mix.empty() || mix.size() == count, "mix", " holds ", mix.size(), " shares for ", experts,
               " experts; give one per expert, None for an expert that is not mixed in");
  std::vector<ExpertWeight> weights(count);
  for (size_t t = 0; t < count; ++t) {
    weights[t].alpha_max = alpha_max[alpha_max.size() == 1 ? 0 : t];
    weights[t].given = alpha.empty() ? std::nullopt : alpha[t];
    if (const std::optional<double> share = mix.empty() ? std::nullopt : mix[t]) {
      check_option(!weights[t].given, "mix", "[", t, "] is ", *share, ", but alpha[", t,
                   "] is given, too; an expert is either mixed in or added");
      weights[t].given = share;
      weights[t].mixed = true;
    }
  }
  return weights;
}

}  // namespace

double Rule::mixed_share() const {
  double share = 0.0;
  for (const ExpertWeight& weight : weights) {
    share += weight.share();
  }
  return share;
}

std::optional<double> Rule::bound(size_t expert) const {
  const ExpertWeight weight = this->weight(expert);
  if (!weight.solved()) {
    return std::nullopt;
  }
  const bool divides = combining().weights == CombineRow::Weights::searched && !meets_mean();
  const auto solved =
      std::count_if(weights.begin(), weights.end(), [](const ExpertWeight& one) { return one.solved(); });
  return divides ? weight.alpha_max / static_cast<double>(solved) : weight.alpha_max;
}

Rule parse_rule(const RuleOptions& options, int experts) {
  Rule rule = {find(kCombineTable, "combine", options.combine).combine,
               find(kMatchTable, "match", options.match).match,
               expert_weights(options, experts),
               options.large_weight,
               options.plausibility,
               {find(kGateTable, "gate", options.gate).kind, options.gate_threshold}};
  validate(rule, experts);
  return rule;
}

void validate(const Rule& rule, int experts) {
  TORCH_CHECK_VALUE(rule.weights.empty() || rule.weights.size() == static_cast<size_t>(experts), "got ",
                    rule.weights.size(), " weights for ", experts, " experts");
  check_option(!rule.takes_given() || !rule.weights.empty() || experts == 0, "combine", "='", rule.combining().name,
               "' takes the weights: give alpha, one number per expert");
  for (size_t t = 0; t < rule.weights.size(); ++t) {
    const ExpertWeight& weight = rule.weights[t];
    check_option(weight.alpha_max > 0.0 && weight.alpha_max <= kMostAlpha, "alpha_max", " is ", weight.alpha_max,
                 " for expert ", t, "; give a finite number above 0, at most ", kMostAlpha);
    if (weight.mixed) {
      check_option(weight.share() >= 0.0 && weight.share() <= 1.0, "mix", "[", t, "] is ", weight.share(),
                   "; give a share from 0 to 1");
      continue;
    }
    const double given = weight.given.value_or(0.0);
    check_option(std::abs(given) <= kMostAlpha, "alpha", "[", t, "] is ", given, "; give finite numbers of at most ",
                 kMostAlpha);
    check_option(!rule.takes_given() || !weight.solved(), "combine", "='", rule.combining().name,
                 "' takes the weights as given, but expert ", t, " has none; give alpha, one number per expert");
  }
  check_option(rule.mixed_share() <= 1.0 + kRounding, "mix", " has shares with a sum of ", rule.mixed_share(),
               "; the rest is the large model's, so give at most 1 in all");
  check_option(rule.large_weight >= 0.0 && rule.large_weight <= kMostLargeWeight, "large_weight", " is ",
               rule.large_weight, "; give a number from 0 to ", kMostLargeWeight);
  check_option(rule.plausibility >= 0.0 && rule.plausibility < 1.0, "plausibility", " is ", rule.plausibility,
               "; give a number from 0 up to 1, without 1 itself");
  check_option(std::isfinite(rule.gate.threshold) && rule.gate.threshold >= 0.0, "gate_threshold", " is ",
               rule.gate.threshold, "; give a finite number of at least 0");
}

void check_expert_count(int experts) {
  TORCH_CHECK_VALUE(experts >= 1 && experts <= kMaxExperts, "got ", experts, " experts; give 1 to ", kMaxExperts);
}

}  // namespace dlf
