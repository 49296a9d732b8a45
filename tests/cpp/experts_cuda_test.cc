// Compares routing on the device with the CPU's, and a mixture of experts with products of each row and expert alone.
#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_testing.h"
#include "ops/cpu/quantize.h"
#include "ops/cpu/router.h"
#include "ops/cuda/experts.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/router.h"
#include "tiles_testing.h"

namespace dlf::cuda {
namespace {

using namespace dlf::testing;
using ops::ExpertRun;
using ops::Matrix;
using ops::MatrixType;

// Routes in memory of the device.
struct Routing {
  int chosen;
  int64_t most_runs;
  at::Tensor all;  // one tensor, so that tests can return it

  Routing(int rows, int experts, int chosen_count, int run_pairs)
      : chosen(chosen_count),
        most_runs(ops::most_runs(rows, experts, chosen, run_pairs)),
        all(filled({4 * int64_t{rows} * chosen + 3 * most_runs + 1}, at::kInt, -7)),
        pairs_(int64_t{rows} * chosen) {}

  ops::Routes routes() const {
    auto* const data = all.mutable_data_ptr<int32_t>();
    return {data,
            reinterpret_cast<float*>(data + pairs_),
            data + 2 * pairs_,
            data + 3 * pairs_,
            reinterpret_cast<ExpertRun*>(data + 4 * pairs_),
            data + 4 * pairs_ + 3 * most_runs};
  }

 private:
  int64_t pairs_;
};

// Returns logits some of which are equal.
at::Tensor coarse_logits(int rows, int experts, uint32_t seed) {
  return (random({rows, experts}, at::kFloat, seed) * 4).round() / 4;
}

void routes_are_those_of_the_cpu() {
  ThreadTeam team(1);
  for (const auto& [experts, chosen] : {std::pair(1, 1), std::pair(7, 3), std::pair(64, 8), std::pair(1000, 32)}) {
    for (const int rows : {1, 5, 37}) {
      for (const bool normalise : {false, true}) {
        const int run_pairs = rows == 5 ? 2 : 8;
        const at::Tensor logits = coarse_logits(rows, experts, 1);
        const at::Tensor device_logits = to_device(logits);
        const auto args = [&](const float* from, const Routing& routing) {
          return ops::RouterArgs{from, nullptr, routing.routes(), rows, experts, chosen, run_pairs, normalise};
        };
        const at::Tensor found = run_in_any_order([&](Stream stream) {
          const Routing routing(rows, experts, chosen, run_pairs);
          router(args(device_logits.const_data_ptr<float>(), routing), stream);
          return routing.all;
        });
        Routing expected(rows, experts, chosen, run_pairs);
        expected.all = expected.all.to(at::kCPU);
        ops::router(args(logits.const_data_ptr<float>(), expected), team);
        const int64_t pairs = int64_t{rows} * chosen;
        const auto weights = [&](const at::Tensor& all) { return all.narrow(0, pairs, pairs).view(at::kFloat); };
        EXPECT(near(weights(found), weights(expected.all).to(at::kDouble), 1e-6));
        weights(expected.all).copy_(weights(found));
        EXPECT(at::equal(found, expected.all));
      }
    }
  }
}

void idle_rows_have_no_pairs() {
  const at::Tensor logits = to_device(coarse_logits(5, 6, 2));
  const at::Tensor position = to_device({3, -1, 0, -1, 9});
  at::Tensor found = run_on_device([&](Stream stream) {
    const Routing routing(5, 6, 2, 8);
    router({logits.const_data_ptr<float>(), position.const_data_ptr<int32_t>(), routing.routes(), 5, 6, 2, 8, true},
           stream);
    return routing.all;
  });
  Routing routing(5, 6, 2, 8);
  routing.all = found;
  const ops::Routes routes = routing.routes();
  std::vector<int32_t> rows(routes.row, routes.row + 6);
  std::sort(rows.begin(), rows.end());
  EXPECT((rows == std::vector<int32_t>{0, 0, 2, 2, 4, 4}));
  int32_t pairs = 0;
  for (int32_t i = 0; i < *routes.run_count; ++i) {
    pairs += routes.runs[i].pairs;
  }
  EXPECT(pairs == 6);
}

struct Kind {
  MatrixType type;
  int64_t group;
  DType dtype;
  const testing::PackedKind* packed = nullptr;
};

std::vector<Kind> all_kinds() {
  std::vector<Kind> kinds = {
      {MatrixType::float32, 0, DType::float32}, {MatrixType::bfloat16, 0, DType::bfloat16},
      {MatrixType::float16, 0, DType::float16}, {MatrixType::int8, 0, DType::float32},
      {MatrixType::int8, 0, DType::bfloat16},   {MatrixType::int4, 32, DType::float16},
      {MatrixType::int4, 64, DType::bfloat16},
  };
  constexpr DType kDTypes[] = {DType::bfloat16, DType::float16, DType::float32};
  for (const testing::PackedKind& packed : testing::kPackedKinds) {
    if (packed.block > 0) {
      for (const DType dtype : kDTypes) {
        kinds.push_back({MatrixType::int8, 0, dtype, &packed});
      }
    } else {
      kinds.push_back({MatrixType::int8, 0, kDTypes[kinds.size() % 3], &packed});
    }
  }
  return kinds;
}
const std::vector<Kind> kKinds = all_kinds();

// A layer's random experts on the device.
struct Layer {
  std::vector<at::Tensor> tensors;
  std::vector<ops::Expert> experts;
  at::Tensor table;

  Layer(int count, int64_t inner, int64_t hidden, const Kind& kind) {
    for (int e = 0; e < count; ++e) {
      experts.push_back({matrix(inner, hidden, kind), matrix(inner, hidden, kind), matrix(hidden, inner, kind)});
    }
    const auto bytes = static_cast<int64_t>(sizeof(ops::Expert) * experts.size());
    table = to_device(at::from_blob(experts.data(), {bytes}, at::kByte));
  }

  Matrix matrix(int64_t out, int64_t in, const Kind& kind) {
    ThreadTeam team(1);
    if (kind.packed != nullptr) {
      ops::PackedMatrix packed = testing::random_packed(*kind.packed, out, in, seed_++);
      for (const at::Tensor& scale : {packed.scale, packed.minimum, packed.block_scale, packed.block_minimum}) {
        if (scale.defined() && scale.is_floating_point()) {
          scale.mul_(packed.bits < 8 ? 0.02 : 0.002);  // so that float16 holds the products
        }
      }
      return keep(ops::pack(packed, team), out, in);
    }
    const at::Tensor values = random({out, in}, at::kFloat, seed_++);
    if (ops::is_quantized(kind.type)) {
      return keep(ops::quantize(values, kind.type, kind.group, team), out, in);
    }
    return {keep(values.to(scalar_type(kind.dtype))), nullptr, out, in, kind.type, 0};
  }

  Matrix keep(const ops::Tiles& host, int64_t out, int64_t in) {
    ops::Tiles there;
    for (const ops::TilePart& part : ops::kTileParts) {
      if ((host.*part.tensor).defined()) {
        there.*part.tensor = tensors.emplace_back(to_device(host.*part.tensor));
      }
    }
    return ops::matrix_of(there, out, in, "weight");
  }

  const void* keep(const at::Tensor& tensor) { return tensors.emplace_back(to_device(tensor)).const_data_ptr(); }

 private:
  uint32_t seed_ = 10;
};

// Returns y [rows, hidden]; rows that are not active are NaN in x, and 7 in y.
at::Tensor run_experts(const Layer& layer, const at::Tensor& x, const at::Tensor& logits, int chosen,
                       const std::vector<int32_t>& positions, const Kind& kind, bool in_any_order,
                       ops::Activation activation = ops::Activation::silu) {
  const ops::Expert& like = layer.experts[0];
  const auto rows = static_cast<int>(x.size(0));
  const auto count = static_cast<int>(layer.experts.size());
  const int run_pairs = expert_run_pairs(rows);
  at::Tensor input = x.clone();
  for (size_t r = 0; r < positions.size(); ++r) {
    if (positions[r] < 0) {
      input[static_cast<int64_t>(r)].fill_(NAN);
    }
  }
  const at::Tensor device_x = to_device(input);
  const at::Tensor device_logits = to_device(logits);
  const at::Tensor position = positions.empty() ? at::Tensor() : to_device(positions);
  const int32_t* position_data = positions.empty() ? nullptr : position.const_data_ptr<int32_t>();
  const int64_t pairs = int64_t{rows} * chosen;
  Routing routing(rows, count, chosen, run_pairs);
  at::Tensor gated;
  at::Tensor products;
  const auto body = [&](Stream stream) {
    routing = Routing(rows, count, chosen, run_pairs);
    gated = filled({pairs, like.gate.out}, scalar_type(kind.dtype), NAN);
    products = filled({pairs, like.down.out}, at::kFloat, NAN);
    const at::Tensor y = filled(x.sizes(), scalar_type(kind.dtype), 7.0);
    router(
        {device_logits.const_data_ptr<float>(), position_data, routing.routes(), rows, count, chosen, run_pairs, true},
        stream);
    ExpertsArgs args = {};
    args.experts = static_cast<const ops::Expert*>(layer.table.const_data_ptr());
    args.routes = routing.routes();
    args.x = device_x.const_data_ptr();
    args.gated = gated.mutable_data_ptr();
    args.products = products.mutable_data_ptr<float>();
    args.y = y.mutable_data_ptr();
    args.rows = rows;
    args.chosen = chosen;
    args.hidden = static_cast<int>(like.gate.in);
    args.inner = static_cast<int>(like.gate.out);
    args.dtype = kind.dtype;
    args.activation = activation;
    args.like = like;
    args.position = position_data;
    args.most_runs = static_cast<int>(routing.most_runs);
    experts(args, stream);
    return y;
  };
  return in_any_order ? run_in_any_order(body) : run_on_device(body);
}

// Returns x W^T in float32, of one row.
at::Tensor product(const at::Tensor& x, const Matrix& weight, DType dtype) {
  const at::Tensor device_x = to_device(x);
  return run_on_device([&](Stream stream) {
           const at::Tensor y = filled({1, weight.out}, at::kFloat, 7.0);
           linear({{weight, nullptr, y.mutable_data_ptr(), 1},
                   device_x.const_data_ptr(),
                   static_cast<int>(weight.out),
                   true,
                   nullptr,
                   dtype},
                  stream);
           return y;
         })
      .to(at::kDouble);
}

// Returns some rows of the same in float64, by the products of one row and one expert at a time.
at::Tensor run_alone(const Layer& layer, const at::Tensor& x, const at::Tensor& logits, int chosen, const Kind& kind,
                     const std::vector<int64_t>& some, ops::Activation activation = ops::Activation::silu) {
  const auto [weight, expert] = at::softmax(logits.to(at::kDouble), 1).sort(true, 1, true);
  std::vector<at::Tensor> rows;
  for (const int64_t r : some) {
    at::Tensor sum = at::zeros({1, x.size(1)}, at::kDouble);
    for (int64_t k = 0; k < chosen; ++k) {
      const ops::Expert& one = layer.experts[expert[r][k].item<int64_t>()];
      const at::Tensor row = x.narrow(0, r, 1);
      const at::Tensor gate = product(row, one.gate, kind.dtype);
      const at::Tensor activated = activation == ops::Activation::silu   ? at::silu(gate)
                                   : activation == ops::Activation::gelu ? at::gelu(gate)
                                                                         : at::gelu(gate, "tanh");
      const at::Tensor gated = activated * product(row, one.up, kind.dtype);
      sum += weight[r][k] / weight[r].narrow(0, 0, chosen).sum() *
             product(gated.to(scalar_type(kind.dtype)), one.down, kind.dtype);
    }
    rows.push_back(sum);
  }
  return at::cat(rows);
}

void a_mixture_is_the_products_of_its_experts() {
  constexpr int kExperts = 5;
  constexpr int kChosen = 2;
  for (const Kind& kind : kKinds) {
    for (const auto& [inner, hidden, rows] : {std::tuple(33, 70, 3), std::tuple(40, 264, 70)}) {  // a step, a prompt
      const Layer layer(kExperts, inner, hidden, kind);
      const at::Tensor x = random({rows, hidden}, scalar_type(kind.dtype), 3);
      const at::Tensor logits = coarse_logits(rows, kExperts, 4);
      const std::vector<int64_t> some = {0, 1, rows - 1};
      const at::Tensor found = run_experts(layer, x, logits, kChosen, {}, kind, rows == 3);
      const at::Tensor expected = run_alone(layer, x, logits, kChosen, kind, some);
      const at::Tensor error = to_host(found).index_select(0, at::tensor(some)) - expected;
      EXPECT(error.abs().max().item<double>() < tolerance(kind.dtype) * expected.abs().max().item<double>());
    }
  }
}

void experts_have_the_activation_of_the_model() {
  const std::vector<int64_t> all = {0, 1, 2};
  for (const Kind& kind : {kKinds[0], kKinds[1]}) {
    const Layer layer(4, 33, 72, kind);
    const at::Tensor x = random({3, 72}, scalar_type(kind.dtype), 3);
    const at::Tensor logits = coarse_logits(3, 4, 4);
    for (const auto activation : {ops::Activation::gelu, ops::Activation::gelu_tanh}) {
      const at::Tensor found = to_host(run_experts(layer, x, logits, 2, {}, kind, false, activation));
      const at::Tensor expected = run_alone(layer, x, logits, 2, kind, all, activation);
      EXPECT((found - expected).abs().max().item<double>() <
             tolerance(kind.dtype) * expected.abs().max().item<double>());
      EXPECT(!at::allclose(expected, run_alone(layer, x, logits, 2, kind, all), 1e-2, 1e-2));
    }
  }
}

void a_row_does_not_depend_on_the_others() {
  constexpr int kExperts = 6;
  constexpr int kChosen = 3;
  for (const Kind& kind : kKinds) {
    const Layer layer(kExperts, 24, 72, kind);
    const at::Tensor x = random({70, 72}, scalar_type(kind.dtype), 3);
    const at::Tensor logits = coarse_logits(70, kExperts, 4);
    const at::Tensor together = run_experts(layer, x, logits, kChosen, {}, kind, false);
    std::vector<int32_t> positions(20, -1);
    for (const int64_t row : {0, 19}) {
      const at::Tensor alone =
          run_experts(layer, x.narrow(0, row, 1), logits.narrow(0, row, 1), kChosen, {}, kind, false);
      EXPECT(at::equal(alone[0], together[row]));
      positions[row] = 5;
    }
    const at::Tensor some =
        run_experts(layer, x.narrow(0, 0, 20), logits.narrow(0, 0, 20), kChosen, positions, kind, true);
    for (int64_t row = 0; row < 20; ++row) {
      EXPECT(at::equal(some[row], positions[row] < 0 ? at::full_like(some[row], 7.0) : together[row]));
    }
  }
}

}  // namespace
}  // namespace dlf::cuda

int main(int argc, char** argv) {
  using namespace dlf::cuda;
  return dlf::testing::run_cuda(
      argc, argv,
      {
          {"routes are those of the CPU", routes_are_those_of_the_cpu, true},
          {"idle rows have no pairs", idle_rows_have_no_pairs, true},
          {"a mixture is the products of its experts", a_mixture_is_the_products_of_its_experts},
          {"experts have the activation of the model", experts_have_the_activation_of_the_model, true},
          {"a row does not depend on the others", a_row_does_not_depend_on_the_others, true},
      });
}
