#pragma once

#include <string>

namespace dlf {

// `bad_model` of a row names the model whose logits hold a NaN or +inf: 0 the large model, 1 + 2t expert t, 2 + 2t the
// base of expert t. Three more values:
inline constexpr int kNoBadModel = -1;
inline constexpr int kEmptySupport = -2;  // every token is −inf in some model
inline constexpr int kHookFailed = -3;    // the caller's hook failed

// Describes `bad_model` in words.
std::string describe_bad_model(int bad_model);

}  // namespace dlf
