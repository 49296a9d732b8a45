#include "engine/cpu/gather_logits.h"

namespace dlf::cpu {
namespace {

constexpr int64_t kLeast = 4096;  // logits of a thread

}  // namespace

void gather_logits(const TokenMap& map, const float* from, int64_t model_vocab, float* to, int64_t rows,
                   ThreadTeam& team) {
  const auto vocab = static_cast<int64_t>(map.read.size());
  for (int64_t row = 0; row < rows; ++row) {
    team.parallel_for(vocab, kLeast, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int32_t id = map.read[i];
        to[row * vocab + i] = id < 0 ? kNoLogit : from[row * model_vocab + id];
      }
    });
  }
}

}  // namespace dlf::cpu
