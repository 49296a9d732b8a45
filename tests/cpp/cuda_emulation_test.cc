#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "emulator.h"
#include "support/cuda/runtime.h"
#include "test_kernels.h"

// Tests the emulator: correct kernels give correct results, and wrong ones are noticed.
namespace dlf::cuda {
namespace {

using emulation::Order;
using emulation::set_order;

// Keeps the queue's stream busy until `go_on` is set.
void hold(Queue& queue, std::atomic<bool>& go_on) {
  emulation::submit(queue.stream(), [&go_on] {
    while (!go_on) {
      std::this_thread::yield();
    }
  });
}

// Runs the body in every order, with several seeds for the random one.
void for_each_order(const std::function<void()>& body) {
  set_order(Order::forward);
  body();
  set_order(Order::backward);
  body();
  for (int seed = 1; seed <= 3; ++seed) {
    set_order(Order::random, seed);
    body();
  }
  set_order(Order::forward);
}

// Returns the message of the error that the body's work on a queue raises, or "".
std::string problem_of(const std::function<void(Queue&)>& body) {
  Queue queue(0);
  try {
    body(queue);
    queue.synchronize();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

at::Tensor floats(at::IntArrayRef shape) { return at::empty(shape, on_device(0).dtype(at::kFloat)); }
at::Tensor ints(at::IntArrayRef shape) { return at::empty(shape, on_device(0).dtype(at::kInt)); }
at::Tensor count_to(int count) { return at::arange(count, on_device(0).dtype(at::kInt)); }

void test_sums() {
  const at::Tensor x = at::arange(8 * 300, on_device(0).dtype(at::kFloat)).view({8, 300});
  const at::Tensor expected = x.sum(1);
  for_each_order([&] {
    Queue queue(0);
    const at::Tensor sums = floats({8});
    testing::block_sum({x.data_ptr<float>(), sums.data_ptr<float>(), 8, 300}, queue.stream());
    queue.synchronize();
    EXPECT(at::equal(sums, expected));
    for (const int cluster : {2, 4, 8}) {
      const at::Tensor totals = floats({8 / cluster});
      testing::cluster_sum({x.data_ptr<float>(), totals.data_ptr<float>(), 8, 300}, cluster, true, queue.stream());
      queue.synchronize();
      EXPECT(at::equal(totals, expected.view({-1, cluster}).sum(1)));
    }
  });
}

void test_warp_collectives() {
  for_each_order([] {
    Queue queue(0);
    const at::Tensor y = ints({32, 8});
    testing::warp_collectives(y.data_ptr<int>(), queue.stream());
    const at::Tensor votes = ints({64, 3});
    testing::block_votes(votes.data_ptr<int>(), queue.stream());
    const at::Tensor divergent = ints({32});
    testing::divergent(divergent.data_ptr<int>(), queue.stream());
    queue.synchronize();
    for (int lane = 0; lane < 32; ++lane) {
      const int* row = y.data_ptr<int>() + 8 * lane;
      EXPECT(row[0] == 3);
      EXPECT(row[1] == lane / 8 * 8 + (lane + 1) % 8);
      EXPECT(row[2] == (lane < 2 ? lane : lane - 2));
      EXPECT(row[3] == (lane % 16 < 14 ? lane + 2 : lane));
      EXPECT(row[4] == 31);
      EXPECT(row[5] == 5);
      EXPECT(row[6] == (lane < 30 ? 5 : 2));
      EXPECT(row[7] == (lane ^ 1));
      const int few = 0 + 1 + 2;
      const int many = 31 * 32 / 2 - 7 * 8 / 2;
      EXPECT(divergent.data_ptr<int>()[lane] == (lane < 16 ? few + many : 2 * many));
    }
    EXPECT(at::equal(votes, at::tensor({61, 1, 0}, at::kInt).expand({64, 3})));
  });
}

void test_early_end() {
  for_each_order([] {
    Queue queue(0);
    for (const int alive : {96, 70, 32, 1}) {
      const at::Tensor y = at::full({96}, -1, on_device(0).dtype(at::kInt));
      testing::early_end(y.data_ptr<int>(), alive, queue.stream());
      queue.synchronize();
      for (int thread = 0; thread < 96; ++thread) {
        const int lanes = std::min(alive - thread / 32 * 32, 32);
        EXPECT(y.data_ptr<int>()[thread] == (thread < alive ? 1000 * lanes + (thread + 1) % alive : -1));
      }
    }
  });
}

// Whether the kernel's result is correct in every order.
bool always_right(int count, void (*kernel)(const int*, int*, bool, Stream), bool barrier) {
  bool right = true;
  const at::Tensor x = count_to(count);
  for_each_order([&] {
    Queue queue(0);
    const at::Tensor y = ints({count});
    kernel(x.data_ptr<int>(), y.data_ptr<int>(), barrier, queue.stream());
    queue.synchronize();
    right = right && at::equal(y, x.roll(-1));
  });
  return right;
}

void test_missing_barrier() {
  EXPECT(always_right(128, testing::rotate, true));
  EXPECT(!always_right(128, testing::rotate, false));
  EXPECT(always_right(32, testing::rotate_warp, true));
  EXPECT(!always_right(32, testing::rotate_warp, false));

  // A block's shared memory is gone when the block has ended.
  bool right = true;
  const at::Tensor x = at::ones({4, 64}, on_device(0).dtype(at::kFloat));
  for_each_order([&] {
    Queue queue(0);
    const at::Tensor sum = floats({1});
    testing::cluster_sum({x.data_ptr<float>(), sum.data_ptr<float>(), 4, 64}, 4, false, queue.stream());
    queue.synchronize();
    right = right && sum.item<float>() == 256.0F;
  });
  EXPECT(!right);
}

void test_errors() {
  const std::string deadlock = problem_of([](Queue& queue) { testing::half_waits_for_block(queue.stream()); });
  EXPECT(contains(deadlock, "deadlock"));
  EXPECT(contains(deadlock, "half_waits_for_block_kernel"));
  EXPECT(contains(deadlock, "block (0, 0, 0)"));
  EXPECT(contains(problem_of([](Queue& queue) { testing::half_waits_for_warp(queue.stream()); }), "deadlock"));
  EXPECT(contains(problem_of([](Queue& queue) { testing::lane_outside_its_mask(queue.stream()); }), "mask"));
  const auto launch_shape = [](unsigned grid, unsigned threads, unsigned shared_bytes, unsigned cluster) {
    return problem_of(
        [&](Queue& queue) { testing::launch_shape(grid, threads, shared_bytes, cluster, queue.stream()); });
  };
  EXPECT(launch_shape(16, 1024, 227 * 1024, 1).empty());
  EXPECT(launch_shape(16, 128, 0, 16).empty());
  EXPECT(!launch_shape(1, 1025, 0, 1).empty());
  EXPECT(!launch_shape(1, 32, 227 * 1024 + 1, 1).empty());
  EXPECT(!launch_shape(9, 32, 0, 2).empty());
  EXPECT(!launch_shape(32, 32, 0, 32).empty());
  EXPECT(!launch_shape(0, 32, 0, 1).empty());
  // The emulator works on after an error.
  EXPECT(problem_of([](Queue& queue) {
           const at::Tensor y = ints({64, 3});
           testing::block_votes(y.data_ptr<int>(), queue.stream());
           queue.synchronize();
         }).empty());
}

void test_shared_memory() {
#if !defined(__SANITIZE_ADDRESS__)  // the sanitizer notices it first
  EXPECT(contains(problem_of([](Queue& queue) { testing::write_beyond_shared_memory(queue.stream()); }),
                  "beyond the 128 bytes"));
#endif
  std::vector<float> seen;
  for_each_order([&] {
    Queue queue(0);
    const at::Tensor y = at::zeros({1}, on_device(0).dtype(at::kFloat));
    testing::read_unwritten(y.data_ptr<float>(), queue.stream());
    queue.synchronize();
    seen.push_back(y.item<float>());
  });
  EXPECT(seen[0] < -1e8F);
  EXPECT(seen[1] > 1e8F);
  EXPECT(std::isnan(seen[2]));
}

void test_16_bits() {
  std::vector<float> values = {0.0F,  -0.0F,   1.0F,        -2.5F,       65504.0F, 65519.0F,  65520.0F, 1e-8F,  6e-8F,
                               3e-5F, 6.1e-5F, 1.00390625F, 1.01171875F, INFINITY, -INFINITY, NAN,      3.4e38F};
  for (int i = 0; i < 400; ++i) {
    values.push_back(std::ldexp(1.0F + static_cast<float>(i) / 401.0F, i % 45 - 28));
  }
  const int count = static_cast<int>(values.size());
  const at::Tensor x = at::tensor(values, on_device(0).dtype(at::kFloat));
  const at::Tensor y = floats({2, count});
  Queue queue(0);
  testing::round_trip(x.data_ptr<float>(), y.data_ptr<float>(), count, queue.stream());
  queue.synchronize();
  EXPECT(at::allclose(y[0], x.to(at::kBFloat16).to(at::kFloat), 0.0, 0.0, true));
  EXPECT(at::allclose(y[1], x.to(at::kHalf).to(at::kFloat), 0.0, 0.0, true));
}

void test_graph() {
  Queue queue(0);
  Queue other(0);
  const at::Tensor x = at::zeros({100}, on_device(0).dtype(at::kFloat));
  const at::Tensor y = floats({100});
  Event begun(0);
  Event done(0);
  Graph graph;
  graph.capture(queue, [&] {
    float value = 2.0F;  // copied into the graph
    testing::add(x.data_ptr<float>(), value, y.data_ptr<float>(), 100, queue.stream());
    value = 50.0F;
    begun.record(queue);
    other.wait(begun);
    other.copy(x.data_ptr(), y.data_ptr(), 400);
    done.record(other);
    queue.wait(done);
  });
  queue.synchronize();
  EXPECT(at::equal(x, at::zeros({100})));
  graph.replay(queue);
  graph.replay(queue);
  queue.synchronize();
  EXPECT(at::equal(x, at::full({100}, 4.0F)));

  Graph unjoined;
  EXPECT_THROWS(unjoined.capture(queue, [&] {
    begun.record(queue);
    other.wait(begun);
    other.clear(x.data_ptr(), 400);
  }));
  EXPECT_THROWS(unjoined.replay(queue));
  EXPECT_THROWS(unjoined.capture(queue, [&] { queue.synchronize(); }));
  queue.synchronize();
}

// A graph's streams run in another order than the host's, unless one waits for the other.
void test_streams_of_a_graph() {
  const auto right = [](bool wait) {
    bool all = true;
    for_each_order([&] {
      Queue first(0);
      Queue second(0);
      Event begun(0);
      Event done(0);
      const at::Tensor x = floats({1000});
      const at::Tensor y = floats({1000});
      x.fill_(1.0F);
      Graph graph;
      graph.capture(first, [&] {
        begun.record(first);
        second.wait(begun);
        first.clear(x.data_ptr(), 4000);
        if (wait) {
          begun.record(first);
          second.wait(begun);
        }
        second.copy(y.data_ptr(), x.data_ptr(), 4000);
        done.record(second);
        first.wait(done);
      });
      graph.replay(first);
      first.synchronize();
      all = all && at::equal(y, at::zeros({1000}));
    });
    return all;
  };
  EXPECT(right(true));
  EXPECT(!right(false));
}

// A kernel that starts early sees the results of the kernel before it only if it waits.
void test_early_kernels() {
  unsetenv("DLF_CUDA_EARLY");
  const at::Tensor ones = at::ones({100}, on_device(0).dtype(at::kFloat));
  const auto right = [&](bool graph, testing::Waits waits) {
    bool all = true;
    for_each_order([&] {
      Queue queue(0);
      const at::Tensor x = floats({100});
      const at::Tensor y = floats({100});
      const auto body = [&] {
        testing::add(ones.data_ptr<float>(), 1.0F, x.data_ptr<float>(), 100, queue.stream());
        testing::copy_early(x.data_ptr<float>(), y.data_ptr<float>(), 100, waits, queue.stream());
      };
      Graph captured;
      std::atomic<bool> begin{false};
      hold(queue, begin);
      if (graph) {
        captured.capture(queue, body);
        captured.replay(queue);
      } else {
        body();
      }
      begin = true;
      queue.synchronize();
      all = all && at::equal(y, ones + 1.0F);
    });
    return all;
  };
  for (const bool graph : {false, true}) {
    EXPECT(right(graph, testing::Waits::before_reading));
    EXPECT(!right(graph, testing::Waits::after_reading));
  }
  EXPECT(contains(problem_of([&](Queue& queue) {
                    const at::Tensor y = floats({100});
                    testing::copy_early(ones.data_ptr<float>(), y.data_ptr<float>(), 100, testing::Waits::never,
                                        queue.stream());
                    queue.synchronize();
                  }),
                  "await_inputs"));
  setenv("DLF_CUDA_EARLY", "0", 1);
  EXPECT(right(true, testing::Waits::never));
  unsetenv("DLF_CUDA_EARLY");
}

void test_asynchronous_copy() {
  Queue queue(0);
  std::atomic<bool> written{false};
  const at::Tensor host = pinned({4}, at::kFloat);
  const at::Tensor device = floats({4});
  host.fill_(1.0F);
  // The device is busy until the host has overwritten the source of the copy.
  hold(queue, written);
  queue.copy(device.data_ptr(), host.data_ptr(), 16);
  host.fill_(2.0F);
  written = true;
  queue.synchronize();
  EXPECT(at::equal(device, at::full({4}, 2.0F)));
}

// Two queues run in another order than the host's, unless one waits for the other.
void test_queues() {
  const auto right = [](bool wait) {
    bool all = true;
    for_each_order([&] {
      Queue first(0);
      Queue second(0);
      Event done(0);
      std::atomic<bool> begin{false};
      const at::Tensor x = floats({1000});
      const at::Tensor y = floats({1000});
      x.fill_(1.0F);
      hold(first, begin);
      first.clear(x.data_ptr(), 4000);
      done.record(first);
      if (wait) {
        second.wait(done);
      }
      second.copy(y.data_ptr(), x.data_ptr(), 4000);
      begin = true;
      second.synchronize();
      first.synchronize();
      all = all && at::equal(y, at::zeros({1000}));
    });
    return all;
  };
  EXPECT(right(true));
  EXPECT(!right(false));
}

void test_run() {
  Queue queue(0);
  const at::Tensor x = at::randn({5, 32}, on_device(0).dtype(at::kFloat)).to(at::kBFloat16);
  const at::Tensor weight = at::randn({7, 32}, on_device(0).dtype(at::kFloat)).to(at::kBFloat16);
  at::Tensor wide = at::zeros({5, 10}, on_device(0).dtype(at::kFloat));
  at::Tensor y = wide.narrow(1, 0, 7);
  EXPECT_THROWS(matmul(x, weight, y));
  queue.run([&] {
    matmul(x, weight, y);
    y.add_(1.0F);
  });
  queue.synchronize();
  EXPECT(at::allclose(y, at::mm(x.to(at::kFloat), weight.to(at::kFloat).t()) + 1.0F));
  EXPECT(at::equal(wide.narrow(1, 7, 3), at::zeros({5, 3})));
  Graph graph;
  graph.capture(queue, [&] { queue.run([&] { matmul(x, weight, y); }); });
  wide.zero_();
  graph.replay(queue);
  queue.synchronize();
  EXPECT(at::allclose(y, at::mm(x.to(at::kFloat), weight.to(at::kFloat).t())));
}

void test_devices() {
  EXPECT(devices().size() == 2);
  EXPECT(devices()[1].name == "emulated 1");
  EXPECT_THROWS(Queue(2));
}

}  // namespace
}  // namespace dlf::cuda

int main() {
  using namespace dlf::cuda;
  return dlf::testing::run({{"sums", test_sums},
                            {"warp collectives", test_warp_collectives},
                            {"early end", test_early_end},
                            {"missing barrier", test_missing_barrier},
                            {"errors", test_errors},
                            {"shared memory", test_shared_memory},
                            {"16 bits", test_16_bits},
                            {"graph", test_graph},
                            {"streams of a graph", test_streams_of_a_graph},
                            {"early kernels", test_early_kernels},
                            {"asynchronous copy", test_asynchronous_copy},
                            {"queues", test_queues},
                            {"run", test_run},
                            {"devices", test_devices}});
}
