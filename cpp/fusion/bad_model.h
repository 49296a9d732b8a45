#pragma once

#include <string>

namespace dlf {

// `bad_model` of a row that could not be solved says which logits hold a NaN or +inf: 0 the large model's, 1 + 2t those
// of expert t, 2 + 2t those of its base. Or it is one of these.
inline constexpr int kNoBadModel = -1;
inline constexpr int kEmptySupport = -2;  // no token is left: each is −inf in one model or another

// The same in words.
std::string describe_bad_model(int bad_model);

}  // namespace dlf
