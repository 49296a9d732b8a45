#pragma once

#include <cstdint>

namespace dlf::ops {

// One token on its way through a model: which cache slot it belongs to and where in it.
struct Row {
  int64_t token;
  int64_t slot;
  int64_t position;
  int64_t adapter = -1;  // among those of its model; -1: none
};

}  // namespace dlf::ops
