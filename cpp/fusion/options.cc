#include "fusion/options.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace dlf {

Combine parse_combine(std::string_view name) {
  if (name == "select") return Combine::select;
  if (name == "centroid") return Combine::centroid;
  if (name == "joint") return Combine::joint;
  if (name == "static") return Combine::static_alpha;
  if (name == "grid") return Combine::grid;
  TORCH_CHECK_VALUE(false, "combine is '", name, "'; it takes 'select', 'centroid', 'joint', 'static' or 'grid'");
}

Match parse_match(std::string_view name) {
  if (name == "symmetric") return Match::symmetric;
  if (name == "forward") return Match::forward;
  if (name == "reverse") return Match::reverse;
  TORCH_CHECK_VALUE(false, "match is '", name, "'; it takes 'symmetric', 'forward' or 'reverse'");
}

void validate(const FusionOptions& options, int experts) {
  TORCH_CHECK_VALUE(experts >= 1 && experts <= kMaxExperts, "got ", experts, " experts; give 1 to ", kMaxExperts);
  TORCH_CHECK_VALUE(std::isfinite(options.alpha_max) && options.alpha_max > 0.0, "alpha_max is ", options.alpha_max,
                    "; give a finite number above 0");
  if (options.combine != Combine::static_alpha) {
    TORCH_CHECK_VALUE(options.alpha.empty(), "alpha holds given weights, which only combine='static' takes; ",
                      "leave it out to have the weights solved");
    return;
  }
  TORCH_CHECK_VALUE(options.alpha.size() == static_cast<size_t>(experts), "alpha holds ", options.alpha.size(),
                    " weights for ", experts, " experts; combine='static' takes one an expert");
  for (size_t index = 0; index < options.alpha.size(); ++index) {
    TORCH_CHECK_VALUE(std::isfinite(options.alpha[index]), "alpha[", index, "] is ", options.alpha[index],
                      "; give finite numbers");
  }
}

}  // namespace dlf
