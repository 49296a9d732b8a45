#pragma once

#include "support/host_device.h"

namespace dlf::cuda {

// Which lane's adapter the rows of a pass have.
struct AdaptedLanes {
  int lanes;  // row r belongs to lane r % lanes,
  int lane;   // or, if this is not −1, all rows to this one

  DLF_HOST_DEVICE int of(int row) const { return lane >= 0 ? lane : row % lanes; }
};

}  // namespace dlf::cuda
