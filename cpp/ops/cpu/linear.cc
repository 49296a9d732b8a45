#include "ops/cpu/linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "ops/cpu/activation.h"

namespace dlf::ops {
namespace {

constexpr int64_t kFewRows = 16;         // up to this, reading the weights costs more than multiplying
constexpr int64_t kBlocksFrom = 64;      // rows from which unpacking tiles is at least as fast
constexpr int64_t kFineBlocksFrom = 16;  // likewise, with scales that take more work
constexpr int64_t kBlockTiles = 2;       // most tiles of a block of linear_blocks_kernel
constexpr int64_t kLibraryOutputs = 32;  // a product of the library has a multiple of these outputs

// Limits torch to one thread: its own threads spin for milliseconds after a product and would keep ours from their
// cores. Each thread has a limit of its own; the destructor restores the one that new threads start with.
class TorchThreads {
 public:
  TorchThreads() : before_(at::get_num_threads()) { at::set_num_threads(1); }
  ~TorchThreads() { at::set_num_threads(before_); }
  TorchThreads(const TorchThreads&) = delete;
  TorchThreads& operator=(const TorchThreads&) = delete;

 private:
  int before_;
};

at::Tensor view(const void* data, int64_t rows, int64_t columns, at::ScalarType type) {
  return at::from_blob(const_cast<void*>(data), {rows, columns}, at::TensorOptions().dtype(type));
}

// Rounds the number of rows up, by at most 15, or 31 beyond 128: the library compiles and keeps a kernel of 0.6 MB for
// every number that it is asked for.
int64_t library_rows(int64_t rows) { return round_up(rows, rows <= 128 ? 16 : 32); }

// Copies the rows of a product, with rows of zeros behind them.
at::Tensor with_library_rows(const uint16_t* data, int64_t rows, int64_t columns) {
  at::Tensor input = at::empty({library_rows(rows), columns}, at::kBFloat16);
  auto* const to = static_cast<uint16_t*>(input.mutable_data_ptr());
  std::fill(std::copy_n(data, rows * columns, to), to + input.numel(), uint16_t{0});
  return input;
}

void multiply_with_library(const LinearInputRows& x, const LinearArgs& args, ThreadTeam& team) {
  const Matrix& matrix = args.weight;
  const TorchThreads caller;
  const at::ScalarType type = matrix.type == MatrixType::float32 ? at::kFloat : at::kBFloat16;
  const at::Tensor input = type == at::kFloat                     ? view(x.x, args.rows, x.in, type)
                           : library_rows(args.rows) == args.rows ? view(x.bfloat16, args.rows, x.in, type)
                                                                  : with_library_rows(x.bfloat16, args.rows, x.in);
  const at::Tensor weight = view(matrix.data, matrix.out, matrix.in, type);
  // Each product reads x again. Two per thread keep a thread without a core from holding up the others.
  const int64_t share = round_up(matrix.out / (2 * team.size()) + 1, kLibraryOutputs);
  team.parallel_for(matrix.out, share, [&](int64_t begin, int64_t end) {
    at::set_num_threads(1);
    const at::Tensor product = at::mm(input, weight.slice(0, begin, end).t()).to(at::kFloat);
    const float* from = product.const_data_ptr<float>();
    for (int64_t row = 0; row < args.rows; ++row) {
      float* y = static_cast<float*>(args.y) + row * matrix.out;
      for (int64_t o = begin; o < end; ++o) {
        const float value = *from++ + (args.bias ? args.bias[o] : 0.0F);
        y[o] = args.accumulate ? y[o] + value : value;
      }
    }
  });
}

bool uses_blocks(const LinearArgs& args) {
  const Matrix& weight = args.weight;
  const bool fine = weight.origin != Origin::middle || weight.block > 0 || weight.group == kHalfGroup ||
                    weight.scale_type == DType::float16;
  return is_quantized(weight.type) && args.rows >= (fine ? kFineBlocksFrom : kBlocksFrom);
}

// Tiles that a thread takes at a time.
int64_t grain(const LinearArgs& args) { return uses_blocks(args) ? kBlockTiles : 1; }

}  // namespace

void multiply_tiles(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  const auto kernel = uses_blocks(args)                ? DLF_CPU_DISPATCH_BF16(linear_blocks_kernel)
                      : is_quantized(args.weight.type) ? DLF_CPU_DISPATCH_BF16(linear_tiles_kernel)
                                                       : DLF_CPU_DISPATCH_BF16(linear_kernel);
  kernel(x, args, begin, end);
}

bool linear_uses_library(const Matrix& weight, int64_t rows) { return rows > kFewRows && !is_quantized(weight.type); }

void linear(const LinearInputRows& x, const LinearArgs& args, ThreadTeam& team) {
  linear(x, std::span(&args, 1), team);
}

void linear(const LinearInputRows& x, std::span<const LinearArgs> products, ThreadTeam& team) {
  int64_t total = 0;
  for (const LinearArgs& args : products) {
    total += tiles(args.weight.out);
  }
  team.parallel_for(total, grain(products.front()), [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const LinearArgs& args : products) {
      const int64_t count = tiles(args.weight.out);
      const int64_t low = std::max(begin - first, int64_t{0});
      const int64_t high = std::min(end - first, count);
      if (low < high) {
        multiply_tiles(x, args, low, high);
      }
      first += count;
    }
  });
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

void linear_prefill(const LinearInputRows& x, std::span<const LinearArgs> products, ThreadTeam& team) {
  const LinearArgs& first = products.front();
  if (!linear_uses_library(first.weight, first.rows)) {
    return linear(x, products, team);
  }
  for (const LinearArgs& args : products) {
    multiply_with_library(x, args, team);
  }
}

}  // namespace dlf::ops
