#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace dlf {

inline constexpr int kMaxExperts = 16;

// bad_model of a result where no model is at fault.
inline constexpr int kNoBadModel = -1;
// Or where every token is −inf in one model or another, so that there is nothing to choose from.
inline constexpr int kEmptySupport = -2;

// How the weights of several experts come together.
enum class Combine {
  select,        // the one expert whose curve passes nearest the mean targets
  centroid,      // every expert solved alone, each weight divided by their number
  joint,         // the least change of the large model that reaches every expert's own moment
  static_alpha,  // given weights for all
  grid,          // select by 21 values of α a tenth apart, instead of a solve
};

// Which divergences are matched with the expert's.
enum class Match {
  symmetric,  // f = KL(P̃‖P) with a and g = KL(P‖P̃) with b, by least squares
  forward,    // f alone
  reverse,    // g alone
};

// How an expert's weight comes about. Given ones are added to what is solved as if those experts were not there.
struct ExpertWeight {
  double alpha_max = 2.0;       // solved in [0, alpha_max]
  std::optional<double> given;  // or this, which may be negative

  bool solved() const { return !given.has_value(); }
};

struct FusionOptions {
  Combine combine = Combine::select;
  Match match = Match::symmetric;
  std::vector<ExpertWeight> weights;  // one an expert; empty: all solved, up to the default bound
};

// The weights of so many experts: `alpha` is empty or has a number, or none, for each; `alpha_max` has one bound for
// all or one for each. Throws a ValueError where the sizes don't fit.
std::vector<ExpertWeight> expert_weights(const std::vector<std::optional<double>>& alpha,
                                         const std::vector<double>& alpha_max, int experts);

// Throw a ValueError that lists the choices.
Combine parse_combine(std::string_view name);
Match parse_match(std::string_view name);

// Throws a ValueError where the options don't suit so many experts.
void validate(const FusionOptions& options, int experts);

}  // namespace dlf
