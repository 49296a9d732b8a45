// Compares low-rank updates on the device with double precision.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/matmul.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda_testing.h"
#include "ops/cuda/lora.h"
#include "ops/cuda/own_logits.h"

namespace dlf::cuda {
namespace {

using namespace dlf::testing;
using ops::LoraUpdate;

constexpr int kRows = 7;
constexpr int kLanes = 3;
constexpr int kIn = 131;
constexpr std::array<int, kMostUpdates> kOut = {37, 300, 24};
constexpr std::array<int, kMostUpdates> kOffset = {0, 40, 344};
constexpr int kStride = 371;  // the last three of each row belong to no product
// Rank of each lane's update of each product: lane 0 has no adapter, lane 2's updates one product.
constexpr int kRank[kLanes][kMostUpdates] = {{0, 0, 0}, {5, 16, 1}, {0, 40, 0}};
constexpr int kMaxRank = 40;

// The updates of all lanes, on the device and on the host.
struct Updates {
  at::Tensor a[kLanes][kMostUpdates], b[kLanes][kMostUpdates];  // on the host
  float scale[kLanes][kMostUpdates] = {};
  std::vector<at::Tensor> matrices;  // on the device
  at::Tensor table;

  explicit Updates(at::ScalarType type) {
    std::vector<LoraUpdate> entries;
    uint32_t seed = 1;
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int product = 0; product < kMostUpdates; ++product) {
        const int rank = kRank[lane][product];
        LoraUpdate& entry = entries.emplace_back();
        if (rank == 0) {
          continue;
        }
        a[lane][product] = random({rank, kIn}, type, seed++);
        b[lane][product] = random({rank, kOut[product]}, type, seed++);
        scale[lane][product] = 0.1F / static_cast<float>(lane + product);
        matrices.push_back(to_device(a[lane][product]));
        matrices.push_back(to_device(b[lane][product]));
        entry = {matrices.rbegin()[1].const_data_ptr(), matrices.back().const_data_ptr(), scale[lane][product], rank,
                 kOut[product]};
      }
    }
    const auto bytes = static_cast<int64_t>(entries.size() * sizeof(LoraUpdate));
    const at::Tensor host = at::empty({bytes}, at::kByte);
    std::memcpy(host.mutable_data_ptr(), entries.data(), bytes);
    table = to_device(host);
  }

  // Returns one row of y after the updates, in double precision.
  at::Tensor applied(const at::Tensor& x, const at::Tensor& y, int lane) const {
    const at::Tensor expected = y.to(at::kDouble);
    for (int product = 0; product < kMostUpdates; ++product) {
      if (kRank[lane][product] > 0) {
        const at::Tensor inner = at::matmul(a[lane][product].to(at::kDouble), x.to(at::kDouble));
        expected.narrow(0, kOffset[product], kOut[product]) +=
            scale[lane][product] * at::matmul(inner, b[lane][product].to(at::kDouble));
      }
    }
    return expected;
  }
};

// Returns y [kRows, kStride] after the updates of a lane, or, for lane -1, of lane r % kLanes in row r.
at::Tensor update(const Updates& updates, const at::Tensor& x, const at::Tensor& y, int lane, DType dtype,
                  const std::vector<int32_t>& positions) {
  const at::Tensor device_x = to_device(x);
  const at::Tensor position = positions.empty() ? at::Tensor() : to_device(positions);
  return run_in_any_order([&](Stream stream) {
    const at::Tensor result = to_device(y.clone());
    LoraArgs args = {};
    args.updates = static_cast<const LoraUpdate*>(updates.table.const_data_ptr());
    args.products = kMostUpdates;
    args.x = device_x.const_data_ptr();
    args.in = kIn;
    args.x_stride = static_cast<int>(x.size(1));
    args.y = result.mutable_data_ptr();
    args.y_stride = kStride;
    std::copy(kOffset.begin(), kOffset.end(), args.offset);
    args.adapted = {kLanes, lane};
    args.multiplier = 1;
    args.position = positions.empty() ? nullptr : position.const_data_ptr<int32_t>();
    args.rows = static_cast<int>(x.size(0));
    args.max_rank = kMaxRank;
    args.dtype = dtype;
    lora(args, stream);
    return result;
  });
}

void rows_have_the_updates_of_their_lanes() {
  for (const DType dtype : kDeviceTypes) {
    const at::ScalarType type = scalar_type(dtype);
    const Updates updates(type);
    const at::Tensor x = random({kRows, kIn + 5}, type, 50);
    const at::Tensor y = random({kRows, kStride}, type, 51);
    const at::Tensor found = update(updates, x, y, -1, dtype, {});
    for (int row = 0; row < kRows; ++row) {
      const int lane = row % kLanes;
      const at::Tensor expected = updates.applied(x[row].narrow(0, 0, kIn), y[row], lane);
      EXPECT(near(found[row], expected, tolerance(dtype)));
      EXPECT(at::equal(found[row], y[row]) == (lane == 0));
      EXPECT(at::equal(found[row].narrow(0, kStride - 3, 3), y[row].narrow(0, kStride - 3, 3)));
    }
  }
}

// All rows of one lane, as in a prompt: each is bit-identical to its result among rows of other lanes.
void rows_may_be_of_one_lane() {
  for (const DType dtype : kDeviceTypes) {
    const at::ScalarType type = scalar_type(dtype);
    const Updates updates(type);
    const at::Tensor x = random({kRows, kIn}, type, 52);
    const at::Tensor y = random({kRows, kStride}, type, 53);
    const at::Tensor mixed = update(updates, x, y, -1, dtype, {});
    for (int lane = 0; lane < kLanes; ++lane) {
      const at::Tensor found = update(updates, x, y, lane, dtype, {});
      for (int row = 0; row < kRows; ++row) {
        EXPECT(near(found[row], updates.applied(x[row], y[row], lane), tolerance(dtype)));
        EXPECT(row % kLanes != lane || at::equal(found[row], mixed[row]));
      }
    }
  }
}

void idle_rows_stay_as_they_are() {
  const std::vector<int32_t> positions = {0, -1, 9, 4, 3, -1, -1};
  for (const DType dtype : kDeviceTypes) {
    const at::ScalarType type = scalar_type(dtype);
    const Updates updates(type);
    at::Tensor x = random({kRows, kIn}, type, 54);
    const at::Tensor y = random({kRows, kStride}, type, 55);
    const at::Tensor all = update(updates, x, y, -1, dtype, {});
    for (int row = 0; row < kRows; ++row) {
      if (positions[row] < 0) {
        x[row].fill_(NAN);
      }
    }
    const at::Tensor found = update(updates, x, y, -1, dtype, positions);
    for (int row = 0; row < kRows; ++row) {
      EXPECT(at::equal(found[row], positions[row] < 0 ? y[row] : all[row]));
    }
  }
}

// An embedding has one-hot rows, each with the update of its token.
void tokens_are_one_hot_rows() {
  const int vocab = 11;
  const int out = kStride;
  const std::vector<int32_t> tokens = {3, -1, 10, 0};  // of two rows each
  for (const DType dtype : kDeviceTypes) {
    const at::ScalarType type = scalar_type(dtype);
    const at::Tensor a = random({vocab, 5}, type, 60);
    const at::Tensor b = random({5, out}, type, 61);
    const at::Tensor y = random({8, out}, at::kFloat, 62);
    const at::Tensor device_a = to_device(a), device_b = to_device(b), token = to_device(tokens);
    std::vector<LoraUpdate> entries(size_t{2} * kMostUpdates);  // lane 0 has none
    entries[kMostUpdates] = {device_a.const_data_ptr(), device_b.const_data_ptr(), 0.5F, 5, out};
    const auto bytes = static_cast<int64_t>(entries.size() * sizeof(LoraUpdate));
    const at::Tensor host = at::empty({bytes}, at::kByte);
    std::memcpy(host.mutable_data_ptr(), entries.data(), bytes);
    const at::Tensor table = to_device(host);
    const at::Tensor found = run_in_any_order([&](Stream stream) {
      const at::Tensor result = to_device(y.clone());
      LoraArgs args = {};
      args.updates = static_cast<const LoraUpdate*>(table.const_data_ptr());
      args.products = 1;
      args.token = token.const_data_ptr<int32_t>();
      args.token_lanes = 2;
      args.y = result.mutable_data_ptr();
      args.y_stride = out;
      args.y_float = true;
      args.adapted = {2, -1};
      args.rows = 8;
      args.max_rank = 5;
      args.multiplier = 3;
      args.dtype = dtype;
      lora(args, stream);
      return result;
    });
    for (int row = 0; row < 8; ++row) {
      const int32_t one = tokens[row / 2];
      at::Tensor expected = y[row].to(at::kDouble);
      if (row % 2 == 1 && one >= 0) {
        expected += 1.5 * at::matmul(a[one].to(at::kDouble), b.to(at::kDouble));
        EXPECT(near(found[row], expected, 1e-5));
      } else {
        EXPECT(at::equal(found[row], y[row]));
      }
    }
  }
}

// Rows of the head that a lane has of its own replace its logits; idle rows and other lanes keep theirs.
void own_rows_of_the_head_replace_logits() {
  const int vocab = 45;
  const int rows = 31;
  const std::vector<int32_t> numbers = {40, 2, 7};
  std::vector<int32_t> positions(rows, 5);
  positions[8] = positions[9] = -1;
  for (const DType dtype : kDeviceTypes) {
    const at::ScalarType type = scalar_type(dtype);
    const at::Tensor whole = random({vocab, kIn}, type, 70);
    const at::Tensor some = random({3, kIn}, type, 71);
    const at::Tensor x = random({rows, kIn}, type, 72);
    const at::Tensor y = random({rows, vocab}, at::kFloat, 73);
    const at::Tensor device_whole = to_device(whole), device_some = to_device(some), device_x = to_device(x);
    const at::Tensor token = to_device(numbers), position = to_device(positions);
    const ops::OwnLogits entries[kLanes] = {{},
                                            {device_whole.const_data_ptr(), nullptr, vocab},
                                            {device_some.const_data_ptr(), token.const_data_ptr<int32_t>(), 3}};
    const at::Tensor host = at::empty({static_cast<int64_t>(sizeof(entries))}, at::kByte);
    std::memcpy(host.mutable_data_ptr(), entries, sizeof(entries));
    const at::Tensor table = to_device(host);
    const auto replaced = [&](int lane, int count) {
      return run_in_any_order([&](Stream stream) {
        const at::Tensor result = to_device(y.clone());
        own_logits({static_cast<const ops::OwnLogits*>(table.const_data_ptr()),
                    vocab,
                    device_x.const_data_ptr(),
                    kIn,
                    result.mutable_data_ptr<float>(),
                    vocab,
                    {kLanes, lane},
                    position.const_data_ptr<int32_t>(),
                    count,
                    dtype},
                   stream);
        return result;
      });
    };
    for (const int of : {-1, 0, 1, 2}) {
      const at::Tensor found = replaced(of, rows);
      for (int row = 0; row < rows; ++row) {
        const int lane = of < 0 ? row % kLanes : of;
        at::Tensor expected = y[row].to(at::kDouble);
        if (positions[row] >= 0 && lane == 1) {
          expected = at::matmul(whole.to(at::kDouble), x[row].to(at::kDouble));
        } else if (positions[row] >= 0 && lane == 2) {
          const at::Tensor logits = at::matmul(some.to(at::kDouble), x[row].to(at::kDouble));
          for (int i = 0; i < 3; ++i) {
            expected[numbers[i]] = logits[i];
          }
        }
        EXPECT(near(found[row], expected, 1e-4));
      }
      EXPECT(at::equal(replaced(of, 10).narrow(0, 0, 8), found.narrow(0, 0, 8)));  // in any company
    }
  }
}

}  // namespace
}  // namespace dlf::cuda

int main() {
  using namespace dlf::cuda;
  return dlf::testing::run_cuda({
      {"rows have the updates of their lanes", rows_have_the_updates_of_their_lanes},
      {"rows may be of one lane", rows_may_be_of_one_lane},
      {"idle rows stay as they are", idle_rows_stay_as_they_are},
      {"tokens are one-hot rows", tokens_are_one_hot_rows},
      {"own rows of the head replace logits", own_rows_of_the_head_replace_logits},
  });
}
