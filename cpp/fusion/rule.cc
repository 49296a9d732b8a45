#include "fusion/rule.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <string>

#include "support/option_error.h"

namespace dlf {
namespace {

constexpr double kMostAlpha = 1e6;  // so that float32 holds its product with any logit

constexpr bool in_order() {
  for (size_t i = 0; i < kCombineTable.size(); ++i) {
    if (static_cast<size_t>(kCombineTable[i].combine) != i) return false;
  }
  for (size_t i = 0; i < kMatchTable.size(); ++i) {
    if (static_cast<size_t>(kMatchTable[i].match) != i) return false;
  }
  return true;
}
static_assert(in_order(), "a row is found by its number");

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

std::vector<ExpertWeight> expert_weights(const std::vector<std::optional<double>>& alpha,
                                         const std::vector<double>& alpha_max, int experts) {
  const auto count = static_cast<size_t>(experts);
  check_option(alpha.empty() || alpha.size() == count, "alpha", " holds ", alpha.size(), " weights for ", experts,
               " experts; give one per expert, None to solve it");
  check_option(alpha_max.size() == 1 || alpha_max.size() == count, "alpha_max", " holds ", alpha_max.size(),
               " bounds for ", experts, " experts; give one for all or one per expert");
  std::vector<ExpertWeight> weights(count);
  for (size_t t = 0; t < count; ++t) {
    weights[t].alpha_max = alpha_max[alpha_max.size() == 1 ? 0 : t];
    weights[t].given = alpha.empty() ? std::nullopt : alpha[t];
  }
  return weights;
}

}  // namespace

Rule parse_rule(std::string_view combine, std::string_view match, const std::vector<std::optional<double>>& alpha,
                const std::vector<double>& alpha_max, int experts) {
  Rule rule = {find(kCombineTable, "combine", combine).combine, find(kMatchTable, "match", match).match, {}};
  rule.weights = expert_weights(alpha, alpha_max, experts);
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
    const double given = weight.given.value_or(0.0);
    check_option(std::abs(given) <= kMostAlpha, "alpha", "[", t, "] is ", given, "; give finite numbers of at most ",
                 kMostAlpha);
    check_option(!rule.takes_given() || !weight.solved(), "combine", "='", rule.combining().name,
                 "' takes the weights as given, but expert ", t, " has none; give alpha, one number per expert");
  }
}

void check_expert_count(int experts) {
  TORCH_CHECK_VALUE(experts >= 1 && experts <= kMaxExperts, "got ", experts, " experts; give 1 to ", kMaxExperts);
}

}  // namespace dlf
