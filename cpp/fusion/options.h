#pragma once

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
  static_alpha,  // given weights
  grid,          // select by 21 values of α a tenth apart, instead of a solve
};

// Which divergences are matched with the expert's.
enum class Match {
  symmetric,  // f = KL(P̃‖P) with a and g = KL(P‖P̃) with b, by least squares
  forward,    // f alone
  reverse,    // g alone
};

struct FusionOptions {
  Combine combine = Combine::select;
  Match match = Match::symmetric;
  double alpha_max = 2.0;
  std::vector<double> alpha;  // one weight an expert, for static_alpha only
};

// Throw a ValueError that lists the choices.
Combine parse_combine(std::string_view name);
Match parse_match(std::string_view name);

// Throws a ValueError where the options don't suit so many experts.
void validate(const FusionOptions& options, int experts);

}  // namespace dlf
