#include "ops/cpu/linear.h"

#include <algorithm>

#include "ops/cpu/activation.h"

namespace dlf::ops {
namespace {

constexpr int64_t kBlocksFrom = 64;      // rows from which unpacking tiles is at least as fast
constexpr int64_t kFineBlocksFrom = 16;  // likewise, with scales that take more work
constexpr int64_t kBlockTiles = 2;       // most tiles of a block of linear_blocks_kernel
constexpr int64_t kUnitTiles = 3;        // likewise, of linear_units_kernel

bool uses_blocks(const LinearArgs& args) {
  const Matrix& weight = args.weight;
  const bool fine = weight.origin != Origin::middle || weight.block > 0 || weight.group == kHalfGroup ||
                    weight.scale_type == DType::float16;
  return is_quantized(weight.type) && args.rows >= (fine ? kFineBlocksFrom : kBlocksFrom);
}

// Tiles that a thread takes at a time.
int64_t grain(const LinearArgs& args) { return uses_blocks(args) ? kBlockTiles : 1; }
int64_t prompt_grain(const LinearArgs& args) { return is_quantized(args.weight.type) ? grain(args) : kUnitTiles; }

// Calls multiply(x, product, begin, end) on stretches that cover the tiles of all products.
template <typename Multiply>
void multiply_all(const LinearInputRows& x, std::span<const LinearArgs> products, int64_t grain, Multiply&& multiply,
                  ThreadTeam& team) {
  int64_t total = 0;
  for (const LinearArgs& args : products) {
    total += tiles(args.weight.out);
  }
  team.parallel_for(total, grain, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const LinearArgs& args : products) {
      const int64_t count = tiles(args.weight.out);
      const int64_t low = std::max(begin - first, int64_t{0});
      const int64_t high = std::min(end - first, count);
      if (low < high) {
        multiply(x, args, low, high);
      }
      first += count;
    }
  });
}

}  // namespace

void multiply_tiles(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  const auto kernel = uses_blocks(args)                ? DLF_CPU_DISPATCH_BF16(linear_blocks_kernel)
                      : is_quantized(args.weight.type) ? DLF_CPU_DISPATCH_BF16(linear_tiles_kernel)
                                                       : DLF_CPU_DISPATCH_BF16(linear_kernel);
  kernel(x, args, begin, end);
}

void multiply_prompt_tiles(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  if (is_quantized(args.weight.type)) {
    multiply_tiles(x, args, begin, end);
  } else {
    DLF_CPU_DISPATCH_BF16(linear_units_kernel)(x, args, begin, end);
  }
}

void linear(const LinearInputRows& x, const LinearArgs& args, ThreadTeam& team) {
  linear(x, std::span(&args, 1), team);
}

void linear(const LinearInputRows& x, std::span<const LinearArgs> products, ThreadTeam& team) {
  multiply_all(x, products, grain(products.front()), multiply_tiles, team);
}

void linear_prefill(const LinearInputRows& x, std::span<const LinearArgs> products, ThreadTeam& team) {
  multiply_all(x, products, prompt_grain(products.front()), multiply_prompt_tiles, team);
}

void linear_gated(const LinearInputRows& x, const LinearArgs& gate, const LinearArgs& up, Activation activation,
                  const float* row_gate, ThreadTeam& team) {
  const auto activate = DLF_CPU_DISPATCH(activation_kernel);
  const int64_t out = gate.weight.out;
  const auto size = static_cast<int>(out);
  const ActivationArgs args = {gate.y, up.y, size, gate.y, gate.rows, size, DType::float32, activation, row_gate};
  team.parallel_for(tiles(out), grain(gate), [&](int64_t begin, int64_t end) {
    multiply_tiles(x, gate, begin, end);
    multiply_tiles(x, up, begin, end);
    for (int64_t row = 0; row < gate.rows; ++row) {
      activate(args, row * out + begin * kTileOutputs, row * out + std::min(end * kTileOutputs, out));
    }
  });
}

}  // namespace dlf::ops
