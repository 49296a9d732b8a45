// Compares matrix products on the device with double precision, for every type of weights.
#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include <cstdint>
#include <vector>

#include "cuda_testing.h"
#include "ops/cpu/quantize.h"
#include "ops/cuda/activation.h"
#include "ops/cuda/embedding.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/linear_plain.h"
#include "ops/cuda/linear_ring.h"
#include "tiles_testing.h"

namespace dlf::cuda {
namespace {

using namespace dlf::testing;
using ops::Matrix;
using ops::MatrixType;

struct Kind {
  MatrixType type;
  int64_t group;
  DType dtype;  // of activations
  const PackedKind* packed = nullptr;
};

std::vector<Kind> all_kinds() {
  std::vector<Kind> kinds = {
      {MatrixType::float32, 0, DType::float32}, {MatrixType::bfloat16, 0, DType::bfloat16},
      {MatrixType::float16, 0, DType::float16}, {MatrixType::int8, 0, DType::float32},
      {MatrixType::int8, 0, DType::bfloat16},   {MatrixType::int8, 0, DType::float16},
      {MatrixType::int4, 32, DType::float32},   {MatrixType::int4, 32, DType::bfloat16},
      {MatrixType::int4, 64, DType::bfloat16},  {MatrixType::int4, 64, DType::float16},
  };
  constexpr DType kDTypes[] = {DType::bfloat16, DType::float16, DType::float32};
  for (const PackedKind& packed : kPackedKinds) {
    kinds.push_back({MatrixType::int8, 0, kDTypes[kinds.size() % 3], &packed});
  }
  return kinds;
}
const std::vector<Kind> kKinds = all_kinds();

// A random matrix on the device, and its values.
struct Weights {
  at::Tensor values;  // float64 [out, in]
  ops::Tiles tensors;
  Matrix matrix;

  Weights(int64_t out, int64_t in, const Kind& kind, uint32_t seed) {
    ThreadTeam team(1);
    if (kind.packed != nullptr) {
      const ops::PackedMatrix packed = random_packed(*kind.packed, out, in, seed);
      values = testing::values_of(packed);
      keep(ops::pack(packed, team), out, in);
    } else if (ops::is_quantized(kind.type)) {
      const ops::Tiles tiles = ops::quantize(random({out, in}, at::kFloat, seed), kind.type, kind.group, team);
      values = testing::values_of(ops::matrix_of(tiles, out, in, "weight"));
      keep(tiles, out, in);
    } else {
      const at::Tensor host = random({out, in}, scalar_type(kind.dtype), seed);
      values = host.to(at::kDouble);
      tensors.data = to_device(host);
      matrix = {tensors.data.const_data_ptr(), nullptr, out, in, kind.type, 0};
    }
  }

  void keep(const ops::Tiles& host, int64_t out, int64_t in) {
    for (const ops::TilePart& part : ops::kTileParts) {
      if ((host.*part.tensor).defined()) {
        tensors.*part.tensor = to_device(host.*part.tensor);
      }
    }
    matrix = ops::matrix_of(tensors, out, in, "weight");
  }
};

using Product = void (*)(const LinearArgs&, Stream);

bool is_half(const Kind& kind) {
  return kind.packed == nullptr && !ops::is_quantized(kind.type) && kind.dtype != DType::float32;
}

// The kernels among which linear() chooses, for any size.
void direct(const LinearArgs& args, Stream stream) {
  args.dtype == DType::float32 || args.weight.in % 8 != 0 ? linear_plain(args, stream) : linear_direct(args, stream);
}
void ring(const LinearArgs& args, Stream stream) {
  args.weight.in % 8 != 0 ? linear_plain(args, stream) : linear_ring(args, stream);
}
std::vector<Product> products(const Kind& kind) {
  return is_half(kind) && linear_has_ring() ? std::vector<Product>{linear, direct, ring}
                                            : std::vector<Product>{linear, direct};
}

constexpr int kPadding = 3;  // of y's rows

// Returns y [rows, out + kPadding], filled with 7 before the product. Inactive rows of x are NaN.
at::Tensor multiply(Product product, const Weights& weights, const at::Tensor& x, const at::Tensor& bias,
                    const std::vector<int32_t>& positions, bool y_float, DType dtype, bool in_any_order) {
  const int rows = static_cast<int>(x.size(0));
  at::Tensor input = x.clone();
  for (size_t r = 0; r < positions.size(); ++r) {
    if (positions[r] < 0) {
      input[static_cast<int64_t>(r)].fill_(NAN);
    }
  }
  const at::Tensor device_x = to_device(input);
  const at::Tensor device_bias = bias.defined() ? to_device(bias) : at::Tensor();
  const at::Tensor position = positions.empty() ? at::Tensor() : to_device(positions);
  const int stride = static_cast<int>(weights.matrix.out) + kPadding;
  const auto body = [&](Stream stream) {
    const at::Tensor y = filled({rows, stride}, y_float ? at::kFloat : scalar_type(dtype), 7.0);
    product(
        {{weights.matrix, bias.defined() ? device_bias.const_data_ptr<float>() : nullptr, y.mutable_data_ptr(), rows},
         device_x.const_data_ptr(),
         stride,
         y_float,
         positions.empty() ? nullptr : position.const_data_ptr<int32_t>(),
         dtype},
        stream);
    return y;
  };
  return in_any_order ? run_in_any_order(body) : run_on_device(body);
}

// Whether y is x W^T + bias, up to y's rounding and the error of float32 sums (relative to their terms, not the sum).
bool is_product(const at::Tensor& y, const at::Tensor& x, const Weights& weights, const at::Tensor& bias,
                double rounding) {
  const int64_t out = weights.matrix.out;
  const at::Tensor exact = x.to(at::kDouble);
  at::Tensor expected = at::matmul(exact, weights.values.t());
  if (bias.defined()) {
    expected = expected + bias.to(at::kDouble);
  }
  const at::Tensor size = at::matmul(exact.abs(), weights.values.abs().t());
  const at::Tensor error = (y.narrow(1, 0, out).to(at::kDouble) - expected).abs();
  return (error <= 1e-6 * (size + 2.0) + rounding * expected.abs()).all().item<bool>() &&
         (y.narrow(1, out, kPadding) == 7.0).all().item<bool>();
}

double rounding_of(bool y_float, DType dtype) { return y_float ? 1e-6 : tolerance(dtype); }

void linear_is_a_matrix_product() {
  for (const Kind& kind : kKinds) {
    for (const int in : {8, 72, 131, 200, 1096}) {
      for (const int rows : {1, 3, 8, 11}) {
        const int out = rows == 3 ? 16 : 37;
        const bool y_float = rows != 3;
        const Weights weights(out, in, kind, 1);
        const at::Tensor x = random({rows, in}, scalar_type(kind.dtype), 2);
        const at::Tensor bias = rows == 8 ? at::Tensor() : random({out}, at::kFloat, 3);
        for (const Product product : products(kind)) {
          const at::Tensor y = multiply(product, weights, x, bias, {}, y_float, kind.dtype, in == 200);
          EXPECT(is_product(y, x, weights, bias, rounding_of(y_float, kind.dtype)));
        }
      }
    }
  }
}

// A matrix with more chunks than the ring has places, and one with more tiles than blocks.
void a_large_one_is_one_too() {
  for (const Kind& kind : kKinds) {
    for (const auto& [out, in] : {std::pair(37, 11336), std::pair(1072, 72)}) {
      const Weights weights(out, in, kind, 11);
      const at::Tensor x = random({2, in}, scalar_type(kind.dtype), 12);
      for (const Product product : products(kind)) {
        const at::Tensor y = multiply(product, weights, x, {}, {}, true, kind.dtype, false);
        EXPECT(is_product(y, x, weights, {}, rounding_of(true, kind.dtype)));
      }
    }
  }
}

void the_plain_kernel_is_one_too() {
  for (const Kind& kind : kKinds) {
    for (const int in : {5, 72, 130}) {
      const Weights weights(21, in, kind, 4);
      const at::Tensor x = random({9, in}, scalar_type(kind.dtype), 5);
      const at::Tensor bias = random({21}, at::kFloat, 6);
      const at::Tensor y = multiply(linear_plain, weights, x, bias, {}, false, kind.dtype, in == 72);
      EXPECT(is_product(y, x, weights, bias, rounding_of(false, kind.dtype)));
    }
  }
}

void a_row_does_not_depend_on_the_others() {
  for (const Kind& kind : kKinds) {
    const Weights weights(48, 264, kind, 7);
    const at::Tensor x = random({8, 264}, scalar_type(kind.dtype), 8);
    for (const Product product : products(kind)) {
      const at::Tensor together = multiply(product, weights, x, {}, {}, true, kind.dtype, false);
      for (const int row : {0, 5, 7}) {
        const at::Tensor alone = multiply(product, weights, x.narrow(0, row, 1), {}, {}, true, kind.dtype, false);
        EXPECT(at::equal(alone[0], together[row]));
      }
    }
  }
}

void the_activation_may_come_with_it() {
  if (!linear_has_ring()) {
    return;
  }
  constexpr int kGated = 27;
  constexpr int kUp = 32;  // first row of the second half
  for (const Kind& kind : kKinds) {
    if (!is_half(kind)) {
      continue;
    }
    const Weights weights(kUp + kGated, 200, kind, 13);
    const at::Tensor x = random({3, 200}, scalar_type(kind.dtype), 14);
    const at::Tensor bias = random({kUp + kGated}, at::kFloat, 15);
    const at::Tensor both = multiply(ring, weights, x, bias, {}, false, kind.dtype, false);
    const at::Tensor device_x = to_device(x);
    const at::Tensor device_bias = to_device(bias);
    const at::Tensor gate_up = to_device(both);
    const auto of = [&](const auto& body) { return run_on_device(body); };
    for (const auto activation : {ops::Activation::silu, ops::Activation::gelu, ops::Activation::gelu_tanh}) {
      const at::Tensor expected = of([&](Stream stream) {
        const at::Tensor y = filled({3, kGated}, scalar_type(kind.dtype), 7.0);
        const at::Tensor gate = gate_up.narrow(1, 0, kGated);
        const at::Tensor up = gate_up.narrow(1, kUp, kGated);
        activate({gate.const_data_ptr(), up.const_data_ptr(), static_cast<int>(gate_up.size(1)), y.mutable_data_ptr(),
                  3, kGated, kind.dtype, activation},
                 stream);
        return y;
      });
      const at::Tensor y = of([&](Stream stream) {
        const at::Tensor y = filled({3, kGated}, scalar_type(kind.dtype), 7.0);
        linear_ring({{weights.matrix, device_bias.const_data_ptr<float>(), y.mutable_data_ptr(), 3},
                     device_x.const_data_ptr(),
                     kGated,
                     false,
                     nullptr,
                     kind.dtype,
                     kGated,
                     kUp,
                     activation},
                    stream);
        return y;
      });
      EXPECT(at::equal(y, expected));
    }
  }
}

void inactive_rows_stay_as_they_are() {
  const std::vector<int32_t> positions = {-1, 0, 12, -1, -1};
  for (const Kind& kind : kKinds) {
    for (const int in : {72, 131}) {
      const Weights weights(37, in, kind, 9);
      const at::Tensor x = random({5, in}, scalar_type(kind.dtype), 10);
      const at::Tensor all = multiply(linear, weights, x, {}, {}, true, kind.dtype, false);
      const at::Tensor y = multiply(linear, weights, x, {}, positions, true, kind.dtype, true);
      for (int row = 0; row < 5; ++row) {
        EXPECT(at::equal(y[row], positions[row] < 0 ? at::full_like(y[row], 7.0) : all[row]));
      }
      const at::Tensor none = multiply(linear, weights, x, {}, {-1, -1, -1, -1, -1}, true, kind.dtype, false);
      EXPECT((none == 7.0).all().item<bool>());
    }
  }
}

// Values that are not finite must reach the logits, where a check names the model.
void input_that_is_not_finite_shows() {
  for (const Kind& kind : kKinds) {
    const Weights weights(20, 64, kind, 11);
    at::Tensor x = random({1, 64}, scalar_type(kind.dtype), 12);
    x[0][40] = NAN;
    const at::Tensor y = multiply(linear, weights, x, {}, {}, true, kind.dtype, false);
    EXPECT(!y[0].narrow(0, 0, 20).isfinite().any().item<bool>());
  }
}

void dequantize_writes_the_matrix() {
  for (const Kind& kind : kKinds) {
    if (kind.packed == nullptr && !ops::is_quantized(kind.type)) {
      continue;
    }
    for (const int in : {5, 72, 200, 1100}) {
      const Weights weights(37, in, kind, 13);
      const at::Tensor y = run_in_any_order([&](Stream stream) {
        const at::Tensor matrix = filled({37, in}, scalar_type(kind.dtype), 7.0);
        dequantize(weights.matrix, matrix.mutable_data_ptr(), kind.dtype, stream);
        return matrix;
      });
      const at::Tensor expected = weights.values.to(at::kFloat).to(scalar_type(kind.dtype));
      if (weights.matrix.origin != ops::Origin::minimum) {
        EXPECT(at::equal(y, expected));
      } else {  // rounded before and after the minimum is added
        EXPECT(at::allclose(y.to(at::kDouble), weights.values, tolerance(kind.dtype), 1e-6));
      }
    }
  }
}

void embedding_reads_every_type() {
  const at::Tensor token = to_device({36, -1, 17});
  for (const Kind& kind : kKinds) {
    for (const int in : {5, 72, 1100}) {
      const Weights weights(37, in, kind, 13);
      const at::Tensor y = run_in_any_order([&](Stream stream) {
        const at::Tensor hidden = filled({3, in}, at::kFloat, 7.0);
        embedding(
            {weights.matrix, token.const_data_ptr<int32_t>(), hidden.mutable_data_ptr<float>(), 3, 1, kind.dtype, 2.0F},
            stream);
        return hidden;
      });
      const at::Tensor expected =
          2.0 * at::stack({weights.values[36], at::zeros_like(weights.values[0]), weights.values[17]});
      EXPECT(at::allclose(y.to(at::kDouble), expected, 1e-5, 1e-6));
    }
  }
}

}  // namespace
}  // namespace dlf::cuda

int main(int argc, char** argv) {
  using namespace dlf::cuda;
  return dlf::testing::run_cuda(argc, argv,
                                {
                                    {"linear is a matrix product", linear_is_a_matrix_product},
                                    {"a large one is one too", a_large_one_is_one_too},
                                    {"the plain kernel is one too", the_plain_kernel_is_one_too, true},
                                    {"a row does not depend on the others", a_row_does_not_depend_on_the_others, true},
                                    {"the activation may come with it", the_activation_may_come_with_it, true},
                                    {"inactive rows stay as they are", inactive_rows_stay_as_they_are, true},
                                    {"input that is not finite shows", input_that_is_not_finite_shows, true},
                                    {"dequantize writes the matrix", dequantize_writes_the_matrix, true},
                                    {"embedding reads every type", embedding_reads_every_type, true},
                                });
}
