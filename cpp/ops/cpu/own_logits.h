#pragma once

#include "ops/cpu/linear_input.h"
#include "ops/own_logits.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Writes them for rows of x that have one adapter to y, rows of `vocab` logits. A row's result does not depend on the
// other rows.
void own_logits(const LinearInputRows& x, int rows, const OwnLogits& own, MatrixType type, float* y, int64_t vocab,
                ThreadTeam& team);

}  // namespace dlf::ops
