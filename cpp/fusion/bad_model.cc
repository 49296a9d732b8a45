#include "fusion/bad_model.h"

namespace dlf {

std::string describe_bad_model(int bad_model) {
  if (bad_model == kEmptySupport) {
    return "no token has a finite logit in all models";
  }
  const std::string expert = "expert " + std::to_string((bad_model - 1) / 2);
  const std::string model = bad_model == 0 ? "the large model" : bad_model % 2 == 1 ? expert : "the base of " + expert;
  return "NaN or +inf in the logits of " + model;
}

}  // namespace dlf
