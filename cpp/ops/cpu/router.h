#pragma once

#include "ops/router.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Routes all rows; none may be idle.
void router(const RouterArgs& args, ThreadTeam& team);

}  // namespace dlf::ops
