#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sampling/sampler.h"

namespace dlf {

struct Request {
  int64_t id = 0;
  std::vector<std::vector<int64_t>> prompts;  // one for each lane
  SamplingOptions sampling;
  int64_t max_new_tokens = 0;
};

// One context running on a model: where its keys and values are, and how far it has come.
struct Lane {
  std::vector<int64_t> prompt;
  int64_t slot = -1;
  int64_t length = 0;             // positions in the cache
  const float* logits = nullptr;  // [vocab] of the current step
};

enum class FinishReason { none, stop, length, error };

// What one step gave one sequence. Arrays belong to the sequence and hold until the next step.
struct StepOutput {
  int64_t request = 0;
  int64_t token = -1;
  float logprob = 0;
  std::vector<int64_t> top_tokens;
  std::vector<float> top_logprobs;
  std::vector<double> alpha;  // [experts]
  double f = 0;               // KL(fused || large), nats
  double g = 0;               // KL(large || fused)
  FinishReason finish = FinishReason::none;
  std::string error;
};

// One request while it runs.
struct Sequence {
  int64_t request = 0;
  std::vector<Lane> lanes;
  std::unique_ptr<Sampler> sampler;
  std::vector<int64_t> stop_token_ids;
  int64_t max_new_tokens = 0;
  int64_t new_tokens = 0;
  int64_t last_token = -1;
  bool prefilled = false;
  StepOutput output;
};

}  // namespace dlf
