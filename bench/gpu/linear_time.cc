#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "graph_time.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/linear_ring.h"
#include "ops/cuda/norm.h"

// Prints the time of a product with the norm before it, and its bandwidth, for each type of weights, as lines of JSON
// on stdout. Each launch in the graph has its own weights, so that none are in a cache.
//
//   dlf_linear_time [--tiny]
namespace dlf::cuda {
namespace {

using ops::Matrix;
using ops::MatrixType;

struct Case {
  const char* model;
  const char* name;
  int64_t out;
  int64_t in;
};

struct Kind {
  const char* name;
  MatrixType type;
  int64_t group;
};

constexpr Case kCases[] = {
    {"13B", "qkv", 15360, 5120},  {"13B", "o", 5120, 5120},         {"13B", "gate_up", 27648, 5120},
    {"13B", "down", 5120, 13824}, {"13B", "head", 32000, 5120},     {"1.1B", "qkv", 2560, 2048},
    {"1.1B", "o", 2048, 2048},    {"1.1B", "gate_up", 11264, 2048}, {"1.1B", "down", 2048, 5632}};
constexpr Kind kKinds[] = {{"bf16", MatrixType::bfloat16, 0},
                           {"int8", MatrixType::int8, 0},
                           {"int4", MatrixType::int4, 32},
                           {"int4-g64", MatrixType::int4, 64}};

struct Size {
  int64_t weights;
  int64_t scales;
};

Size bytes_of(const Case& of, const Kind& kind) {
  const int64_t padded = ops::padded_inputs(of.in, kind.group);
  const int64_t outputs = ops::round_up(of.out, ops::kTileOutputs);
  switch (kind.type) {
    case MatrixType::int8:
      return {outputs * padded, outputs * 4};
    case MatrixType::int4:
      return {outputs * padded / 2, outputs * padded / kind.group * 2};
    default:
      return {of.out * of.in * 2, 0};
  }
}

using Product = void (*)(const LinearArgs&, Stream);

void time_product(const Case& of, const Kind& kind, const char* way, Product product, int rows, bool tiny) {
  const int64_t most_bytes = tiny ? int64_t{1} << 20 : int64_t{2} << 30;
  const auto [bytes, scale_bytes] = bytes_of(of, kind);
  const int count = static_cast<int>(std::clamp<int64_t>(most_bytes / (bytes + scale_bytes), 1, 24));
  Queue queue(0);
  at::Tensor data;
  at::Tensor scales;
  at::Tensor x;
  at::Tensor y;
  at::Tensor hidden;
  at::Tensor weight;
  queue.run([&] {
    const auto floats = on_device(0).dtype(at::kFloat);
    data = kind.type == MatrixType::bfloat16 ? at::empty({count * bytes / 2}, floats.dtype(at::kBFloat16)).normal_()
                                             : at::randint(0, 256, {count * bytes}, floats.dtype(at::kByte));
    scales = at::ones({count * std::max<int64_t>(scale_bytes, 16) / 2}, floats.dtype(at::kBFloat16));
    x = at::randn({8, of.in}, floats).to(at::kBFloat16);
    y = at::empty({8, of.out}, floats.dtype(at::kBFloat16));
    hidden = at::randn({8, of.in}, floats);
    weight = at::ones({of.in}, floats);
  });
  queue.synchronize();
  Graph graph;
  graph.capture(queue, [&] {
    for (int i = 0; i < count; ++i) {
      norm({hidden.mutable_data_ptr<float>(),
            nullptr,
            x.mutable_data_ptr(),
            rows,
            static_cast<int>(of.in),
            {weight.const_data_ptr<float>(), 1e-5F},
            DType::bfloat16},
           queue.stream());
      const Matrix matrix = {static_cast<const char*>(data.const_data_ptr()) + i * bytes,
                             static_cast<const char*>(scales.const_data_ptr()) + i * scale_bytes,
                             of.out,
                             of.in,
                             kind.type,
                             kind.group};
      product({x.const_data_ptr(), matrix, nullptr, y.mutable_data_ptr(), static_cast<int>(of.out), false, rows,
               nullptr, DType::bfloat16},
              queue.stream());
    }
  });
  const Microseconds time = time_graph(graph, queue, count, 0.002);
  std::printf(
      "{\"model\": \"%s\", \"product\": \"%s\", \"weights\": \"%s\", \"way\": \"%s\", \"rows\": %d, "
      "\"median_us\": %.2f, \"gb_s\": %.0f}\n",
      of.model, of.name, kind.name, way, rows, time.median,
      1e-3 * static_cast<double>(bytes + scale_bytes) / time.median);
  std::fflush(stdout);
}

void measure(bool tiny) {
  for (const Kind& kind : kKinds) {
    for (const int rows : {1, 8}) {
      for (const Case& of : kCases) {
        const Case scaled = tiny ? Case{of.model, of.name, of.out / 256, of.in / 64} : of;
        time_product(scaled, kind, "direct", linear_direct, rows, tiny);
        if (kind.type == MatrixType::bfloat16 && linear_has_ring()) {
          time_product(scaled, kind, "ring", linear_ring, rows, tiny);
        }
      }
    }
  }
}

}  // namespace
}  // namespace dlf::cuda

int main(int argc, char** argv) {
  const bool tiny = argc == 2 && std::strcmp(argv[1], "--tiny") == 0;
  if (argc > 1 && !tiny) {
    std::fputs("usage: dlf_linear_time [--tiny]\n", stderr);
    return 2;
  }
  try {
    if (dlf::cuda::devices().empty()) {
      std::fputs("no CUDA device\n", stderr);
      return 1;
    }
    dlf::cuda::measure(tiny);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
