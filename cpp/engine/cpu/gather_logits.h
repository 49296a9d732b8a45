#pragma once

#include <cstdint>

#include "engine/token_map.h"
#include "support/thread_team.h"

namespace dlf::cpu {

// Brings a model's logits [rows, model_vocab] into the order of the large model's ids: `to` is [rows, map.read.size()].
void gather_logits(const TokenMap& map, const float* from, int64_t model_vocab, float* to, int64_t rows,
                   ThreadTeam& team);

}  // namespace dlf::cpu
