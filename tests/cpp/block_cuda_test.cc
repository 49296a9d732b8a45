// Compares the layers of a model on a GPU with those on the CPU, for every field of a specification.
#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_testing.h"
#include "model/cpu/decoder.h"
#include "model/cuda/decoder.h"
#include "model/slots.h"
#include "tiny_family.h"

namespace dlf {
namespace {

using namespace dlf::testing;

constexpr int64_t kVocab = 70;
constexpr int64_t kContext = 64;
const std::vector<int64_t> kPrompt = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32};
constexpr int64_t kSteps = 5;

ModelSpec plain() { return tiny_spec(kVocab, 24, 40, {1.0F, 0.3F, 0.05F}, 3); }

std::shared_ptr<const Weights> random_weights(const ModelSpec& spec) {
  TensorMap tensors;
  uint32_t seed = 1;
  for (const TensorSlot& slot : tensor_slots(spec)) {
    const bool is_matrix = slot.shape.size() == 2;
    const at::Tensor drawn = random(slot.shape, at::kFloat, seed++);
    tensors[slot.name] = is_matrix ? drawn * 0.3 : drawn * 0.2 + (slot.name.ends_with("norm") ? 1.0 : 0.0);
  }
  return std::make_shared<const Weights>(spec, tensors);
}

// Returns the logits of the prompt's last token and of the kSteps tokens after it.
at::Tensor on_cpu(const std::shared_ptr<const Weights>& weights, const std::vector<int64_t>& after) {
  ThreadTeam team(2);
  Decoder decoder(weights, 1, kContext, team);
  at::Tensor logits = at::empty({kSteps + 1, kVocab}, at::kFloat);
  auto* const to = logits.mutable_data_ptr<float>();
  decoder.prefill(kPrompt, 0, 0, to);
  for (int64_t i = 0; i < kSteps; ++i) {
    const Row row = {after[i], 0, static_cast<int64_t>(kPrompt.size()) + i};
    decoder.decode({&row, 1}, to + (i + 1) * kVocab);
  }
  return logits;
}

// Split if there are `others`: further devices.
at::Tensor on_device(const Weights& weights, const std::vector<int64_t>& after, const std::vector<int>& others = {}) {
  cuda::Queue queue(0);
  cuda::Decoder decoder(weights, {1, 1, kContext, 1}, queue, others);
  const at::Tensor prompt = to_device(std::vector<int32_t>(kPrompt.begin(), kPrompt.end()));
  decoder.prefill(prompt.const_data_ptr<int32_t>(), static_cast<int>(kPrompt.size()), 0, 0, /*last=*/true);
  std::vector<at::Tensor> logits;
  const auto read = [&] {
    queue.synchronize();
    queue.run([&] { logits.push_back(decoder.logits_of(0).to(at::kCPU, /*non_blocking=*/false, /*copy=*/true)); });
  };
  read();
  for (int64_t i = 0; i < kSteps; ++i) {
    queue.run([&] {
      decoder.tokens().fill_(after[i]);
      decoder.positions().fill_(static_cast<int64_t>(kPrompt.size()) + i);
    });
    decoder.decode(1);
    read();
  }
  return at::cat(logits);
}

at::Tensor check_backends(const ModelSpec& spec) {
  const std::shared_ptr<const Weights> weights = random_weights(spec);
  const std::vector<int64_t> after = {1, 39, 17, 17, 4};
  const at::Tensor expected = on_cpu(weights, after);
  const auto expect_near = [&](const at::Tensor& found) {
    EXPECT((found - expected).abs().max().item<float>() < 1e-4F * expected.abs().max().item<float>());
  };
  expect_near(on_device(*weights, after));
  const int second = cuda::devices().size() > 1 ? 1 : 0;
  if (spec.experts.count == 0 && spec.attention.head_norm != ops::HeadNorm::whole) {
    expect_near(on_device(*weights, after, {second}));
    expect_near(on_device(*weights, after, {second, 0, second}));
  } else {
    EXPECT_THROWS(on_device(*weights, after, {second}));
  }
  return expected;
}

// One device, two, and four, of which two each have the same keys and values.
// Checks also that each field has an effect: the logits differ from those without it.
void backends_agree_on_every_field() {
  const at::Tensor base = check_backends(plain());
  const auto changes = [&](const auto& change) {
    ModelSpec spec = plain();
    change(spec);
    EXPECT(!at::allclose(check_backends(spec), base, 1e-3, 1e-3));
  };
  changes([](ModelSpec& spec) { spec.norm.epsilon = 0.5; });
  changes([](ModelSpec& spec) { spec.norm.kind = ops::NormKind::layer; });
  changes([](ModelSpec& spec) {
    spec.norm.kind = ops::NormKind::layer;
    spec.norm.bias = true;
  });
  changes([](ModelSpec& spec) { spec.norm.offset = true; });
  changes([](ModelSpec& spec) { spec.norm.after = true; });
  changes([](ModelSpec& spec) {
    spec.norm.before = false;
    spec.norm.after = true;
  });
  changes([](ModelSpec& spec) { spec.parallel = true; });
  changes([](ModelSpec& spec) {
    spec.parallel = true;
    spec.norm.shared = true;
  });
  changes([](ModelSpec& spec) { spec.head_bias = true; });
  changes([](ModelSpec& spec) { spec.learned_positions = kContext; });
  changes([](ModelSpec& spec) { spec.embedding_multiplier = 3; });
  changes([](ModelSpec& spec) { spec.residual_multiplier = 0.3; });
  changes([](ModelSpec& spec) { spec.logit_multiplier = 0.3; });
  changes([](ModelSpec& spec) { spec.logit_softcap = 0.3; });
  changes([](ModelSpec& spec) { spec.attention.query_scalar = 1; });
  changes([](ModelSpec& spec) { spec.attention.softcap = 0.1; });
  for (const ops::HeadNorm norm : {ops::HeadNorm::shared, ops::HeadNorm::own, ops::HeadNorm::whole}) {
    changes([&](ModelSpec& spec) { spec.attention.head_norm = norm; });
    changes([&](ModelSpec& spec) {
      spec.norm.kind = ops::NormKind::layer;
      spec.attention.head_norm = norm;
      spec.attention.head_norm_bias = true;
    });
  }
  changes([](ModelSpec& spec) { spec.attention.clip = 0.2; });
  changes([](ModelSpec& spec) { spec.attention.bias = true; });
  changes([](ModelSpec& spec) { spec.attention.output_bias = true; });
  changes([](ModelSpec& spec) { spec.feed_forward.bias = true; });
  changes([](ModelSpec& spec) { spec.feed_forward.activation = ops::Activation::gelu; });
  changes([](ModelSpec& spec) { spec.feed_forward.activation = ops::Activation::gelu_tanh; });
  changes([](ModelSpec& spec) { spec.feed_forward.gated = false; });
  changes([](ModelSpec& spec) {
    spec.feed_forward.gated = false;
    spec.feed_forward.bias = true;
  });
  changes([](ModelSpec& spec) { spec.ropes[0].scaling = 1.5; });
  changes([](ModelSpec& spec) { spec.ropes[0].inv_freq.pop_back(); });
  changes([](ModelSpec& spec) {
    spec.ropes[0].query_beta = 2.0;
    spec.ropes[0].query_positions = 3;
  });
  changes([](ModelSpec& spec) {
    spec.ropes[0].long_inv_freq = {0.5F, 0.2F, 0.01F};
    spec.ropes[0].short_context = kContext - 1;
  });
  changes([](ModelSpec& spec) { spec.layers[1].window = 4; });
  for (const bool normalise : {false, true}) {
    changes([&](ModelSpec& spec) {
      spec.experts = {5, 2, 28, normalise};
      spec.layers[1].experts = true;
    });
  }
  changes([](ModelSpec& spec) {
    spec.experts = {4, 3, 36, true};
    for (LayerSpec& layer : spec.layers) {
      layer.experts = true;
    }
  });
  for (const bool router : {false, true}) {
    changes([&](ModelSpec& spec) {
      spec.experts = {4, 2, 28, true, spec.feed_forward.size, router};
      spec.layers[1].experts = true;
    });
  }
  changes([](ModelSpec& spec) {
    spec.experts = {4, 2, 28, true, 36, true};
    spec.feed_forward.activation = ops::Activation::gelu_tanh;
    for (LayerSpec& layer : spec.layers) {
      layer.experts = true;
    }
  });
  changes([](ModelSpec& spec) {
    spec.ropes.push_back({});
    spec.layers[1].rope = 1;
  });
}

void decoders_of_a_device_share_weights() {
  const std::shared_ptr<const Weights> weights = random_weights(plain());
  cuda::Queue one(0);
  cuda::Queue two(0);
  std::shared_ptr<const cuda::DeviceWeights> first = cuda::DeviceWeights::of(*weights, one);
  std::shared_ptr<const cuda::DeviceWeights> second = cuda::DeviceWeights::of(*weights, two);
  EXPECT(first == second);
  first.reset();
  EXPECT(weights->device_copies().has(0) && !weights->device_copies().has(1));
  second.reset();
  EXPECT(!weights->device_copies().has(0));
  const cuda::Decoder decoder(*weights, {1, 1, kContext, 1}, one);
  one.synchronize();  // it reads its memory, which is freed next
  EXPECT(weights->device_copies().has(0));
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run_cuda({{"backends agree on every field", dlf::backends_agree_on_every_field},
                                 {"decoders of a device share weights", dlf::decoders_of_a_device_share_weights}});
}
