#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/tensor.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

#include "check.h"
#include "ops/block_table.h"
#include "support/cuda/runtime.h"
#include "support/dtype.h"
#if __has_include("emulator.h")
#include "emulator.h"
#endif

// Helpers for the tests of operations on CUDA.
namespace dlf::testing {

inline constexpr DType kDeviceTypes[] = {DType::float32, DType::bfloat16, DType::float16};

inline at::ScalarType scalar_type(DType dtype) {
  return dtype == DType::float32 ? at::kFloat : dtype == DType::bfloat16 ? at::kBFloat16 : at::kHalf;
}

// Tolerance for one rounding to a type and for float32 sums in another order.
inline double tolerance(DType dtype) {
  return dtype == DType::float32 ? 1e-5 : dtype == DType::bfloat16 ? 1.0 / 250 : 1.0 / 2000;
}

// Returns normal random numbers, rounded to a type.
inline at::Tensor random(at::IntArrayRef shape, at::ScalarType type, uint32_t seed) {
  at::Tensor values = at::empty(shape, at::kFloat);
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < values.numel(); ++i) {
    values.mutable_data_ptr<float>()[i] = normal(generator);
  }
  return values.to(type);
}

// Returns a tensor filled on the host: elements that a kernel must not write keep the value.
inline at::Tensor filled(at::IntArrayRef shape, at::ScalarType type, double value) {
  return at::full(shape, value, at::TensorOptions().dtype(type)).to(cuda::on_device(0).dtype(type));
}

inline at::Tensor to_device(const at::Tensor& host) { return host.to(cuda::on_device(0).dtype(host.scalar_type())); }
inline at::Tensor to_device(const std::vector<int32_t>& values) {
  return to_device(at::tensor(values, at::TensorOptions().dtype(at::kInt)));
}

// Blocks of a KV cache's slots, in an order without any.
class Blocks {
 public:
  Blocks(int64_t slots, int64_t positions)
      : of_slot_(ops::blocks_for(positions)), table_(at::randperm(slots * of_slot_).to(at::kInt)) {
    device_table_ = to_device(table_);
  }

  ops::BlockTable table() const { return {device_table_.const_data_ptr<int32_t>(), of_slot_}; }

  // [slots, kv_heads, positions, dim] to [blocks, kv_heads, kCacheBlock, dim], filled up with NaN; and back.
  at::Tensor cut(const at::Tensor& cache) const {
    const int64_t slots = cache.size(0), heads = cache.size(1), dim = cache.size(3);
    at::Tensor whole = at::full({slots, heads, of_slot_ * ops::kCacheBlock, dim}, NAN, cache.options());
    whole.narrow(2, 0, cache.size(2)).copy_(cache);
    at::Tensor blocks = at::empty({slots * of_slot_, heads, ops::kCacheBlock, dim}, cache.options());
    blocks.index_copy_(0, table_.to(at::kLong),
                       whole.view({slots, heads, of_slot_, ops::kCacheBlock, dim}).transpose(1, 2).flatten(0, 1));
    return blocks;
  }
  at::Tensor join(const at::Tensor& blocks, int64_t positions) const {
    const int64_t heads = blocks.size(1), dim = blocks.size(3);
    return blocks.index_select(0, table_.to(at::kLong))
        .view({-1, of_slot_, heads, ops::kCacheBlock, dim})
        .transpose(1, 2)
        .reshape({-1, heads, of_slot_ * ops::kCacheBlock, dim})
        .narrow(2, 0, positions);
  }

 private:
  int64_t of_slot_;
  at::Tensor table_, device_table_;
};
inline at::Tensor to_host(const at::Tensor& tensor) { return tensor.to(at::kCPU).to(at::kDouble); }

// Whether |y - expected| <= tolerance (1 + |expected|) everywhere; a NaN is not near.
inline bool near(const at::Tensor& y, const at::Tensor& expected, double tolerance) {
  const at::Tensor difference = (to_host(y) - expected).abs() / (expected.abs() + 1.0);
  return difference.numel() > 0 && (difference <= tolerance).all().item<bool>();
}

// Runs the body, which launches kernels on a stream, waits for them and returns its result on the host.
inline at::Tensor run_on_device(const std::function<at::Tensor(cuda::Stream)>& body) {
  cuda::Queue queue(0);
  at::Tensor y;
  queue.run([&] { y = body(queue.stream()); });
  queue.synchronize();
  return y.to(at::kCPU);
}

// As run_on_device(); checks also that the result is bit-identical in every order of threads and in a second run.
inline at::Tensor run_in_any_order(const std::function<at::Tensor(cuda::Stream)>& body) {
#if __has_include("emulator.h")
  using emulation::Order;
  emulation::set_order(Order::backward);
  const at::Tensor backward = run_on_device(body);
  emulation::set_order(Order::random, 1);
  const at::Tensor random = run_on_device(body);
  emulation::set_order(Order::forward);
  const at::Tensor forward = run_on_device(body);
  EXPECT(at::equal(random, forward));
#else
  const at::Tensor backward = run_on_device(body);
  const at::Tensor forward = run_on_device(body);
#endif
  EXPECT(at::equal(backward, forward));
  return forward;
}

inline void needs_two_devices() {
  if (cuda::devices().size() < 2) {
    throw Skip("needs two CUDA devices");
  }
}

// As run(), if there is a device; without one, fails if DLF_REQUIRE_CUDA is 1.
inline int run_cuda(const std::vector<Test>& tests) {
  if (cuda::devices().empty()) {
    const char* required = std::getenv("DLF_REQUIRE_CUDA");
    std::puts("skipped: no CUDA device");
    return required != nullptr && *required == '1' ? 1 : 0;
  }
  return run(tests);
}

// With --small, runs the small tests alone: some tools take seconds for each launch.
inline int run_cuda(int argc, char** argv, std::vector<Test> tests) {
  if (argc > 1 && std::string_view(argv[1]) == "--small") {
    std::erase_if(tests, [](const Test& test) { return !test.is_small; });
  }
  return run_cuda(tests);
}

}  // namespace dlf::testing
