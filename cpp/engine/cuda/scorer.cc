#include "engine/cuda/scorer.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/logsumexp.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "engine/step_loop.h"

namespace dlf::cuda {
namespace {

at::Tensor on_host(std::span<const int64_t> values, at::ScalarType type) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<int64_t>());
  return tensor.to(type);
}

template <typename T>
std::vector<T> to_vector(const at::Tensor& tensor) {
  const at::Tensor here = tensor.cpu().contiguous();
  const T* data = here.const_data_ptr<T>();
  return {data, data + here.numel()};
}

}  // namespace

Scorer::Scorer(const FusionPlan& plan, std::vector<DeviceModel>& models, PromptReader& prompts, int row, int64_t step,
               int64_t chunk)
    : plan_(plan), models_(models), prompts_(prompts), row_(row), step_(step), chunk_(chunk) {
  begun_ = std::make_unique<Event>(main().device());
  for (DeviceModel& model : models_) {
    model.decoder->add_spare();
  }
}

Scorer::~Scorer() {
  try {
    for (DeviceModel& model : models_) {
      model.queue->synchronize();  // nothing on its way may still need what goes now
      model.decoder->drop_spare();
    }
  } catch (const std::exception& error) {
    TORCH_WARN("the device failed while it scored: ", error.what());
  }
}

int Scorer::row_of(size_t lane) const {
  const DeviceModel& model = models_[plan_.lane_model[lane]];
  return static_cast<int>(row_ * model.decoder->lanes() + plan_.index_of(static_cast<int64_t>(lane)));
}

std::vector<Score> Scorer::score(const ScoreRequest& request, const Poll& poll) {
  read_prompts(request, poll);

  // What follows the prompt is one distribution for all.
  std::vector<Score> scores(request.continuations.size());
  std::vector<int64_t> first;
  first.reserve(scores.size());
  for (const std::vector<int64_t>& tokens : request.continuations) {
    first.push_back(tokens[0]);
  }
  for (size_t i = 0; i < lanes_.size(); ++i) {
    const DeviceModel& model = models_[plan_.lane_model[i]];
    rows_.push_back(model.remote ? model.logits.narrow(0, row_of(i), 1) : model.decoder->logits_of(row_of(i)));
  }
  const int64_t rows = std::min(chunk_, std::max<int64_t>(request.longest() - 1, 1));
  allocate(rows, !request.experts.empty());
  const Solved begin_of_all = solve(1, request, first);
  for (size_t i = 0; i < scores.size(); ++i) {
    take(begin_of_all, 0, i, first[i], request.experts, scores[i]);
  }
  // A continuation overwrites the one before it in the caches. Its last token need not be read.
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::span tokens(request.continuations[i]);
    const auto size = static_cast<int64_t>(tokens.size());
    for (int64_t begin = 1; begin < size && scores[i].error.empty(); begin += rows) {
      const int64_t count = std::min(rows, size - begin);
      poll();
      read(tokens.subspan(begin - 1, count), begin - 1);
      const Solved solved = solve(count, request, tokens.subspan(begin, count));
      for (int64_t row = 0; row < count; ++row) {
        take(solved, row, row, tokens[begin + row], request.experts, scores[i]);
      }
    }
  }
  return scores;
}

void Scorer::read_prompts(const ScoreRequest& request, const Poll& poll) {
  for (const Prompt& prompt : request.prompts) {
    lanes_.emplace_back().prompt = prompt;
  }
  int64_t cached_tokens = 0;
  while (true) {
    const bool done = prompts_.read(lanes_, row_, step_, cached_tokens);
    main().synchronize();
    prompts_.release(step_ + 1);
    if (done) {  // the logits hold until the next step, which a poll may be
      return;
    }
    poll();
  }
}

// Memory for the logits of so many positions.
void Scorer::allocate(int64_t rows, bool fused) {
  for (size_t i = 0; i < lanes_.size(); ++i) {
    DeviceModel& model = models_[plan_.lane_model[i]];
    const auto make = [&](Queue& queue) {
      at::Tensor made;
      queue.run([&] { made = at::empty({rows, model.decoder->vocab()}, on_device(queue.device()).dtype(at::kFloat)); });
      return made;
    };
    logits_.push_back(lanes_[i].used() ? make(*model.queue) : at::Tensor());
    shared_.push_back(lanes_[i].used() && model.remote ? make(main()) : logits_.back());
  }
  if (fused) {
    main().run([&] { fused_ = at::empty({rows, plan_.vocab}, on_device(main().device()).dtype(at::kFloat)); });
  }
}

// Tokens of a continuation, from its `position` on.
void Scorer::read(std::span<const int64_t> tokens, int64_t position) {
  const auto count = static_cast<int>(tokens.size());
  const at::Tensor here = on_host(tokens, at::kInt);
  std::vector<at::Tensor> there;  // until all of it is done
  begun_->record(main());
  for (size_t i = 0; i < lanes_.size(); ++i) {
    if (!lanes_[i].used()) {
      continue;
    }
    DeviceModel& model = models_[plan_.lane_model[i]];
    model.queue->wait(*begun_);  // steps on their way use the same buffers
    model.queue->run([&] { there.push_back(here.to(on_device(model.queue->device()).device())); });
    model.decoder->prefill(there.back().const_data_ptr<int32_t>(), count, row_of(i),
                           static_cast<int>(lanes_[i].length + position), logits_[i]);
    if (model.remote) {
      const int64_t bytes = count * model.decoder->vocab() * static_cast<int64_t>(sizeof(float));
      model.queue->copy(shared_[i].mutable_data_ptr(), logits_[i].const_data_ptr(), bytes);
    }
    model.ready->record(*model.queue);
    main().wait(*model.ready);
  }
  rows_ = shared_;
  main().synchronize();
}

// Of `rows` distributions what the targets need: one for each row, or all for the only one.
Scorer::Solved Scorer::solve(int64_t rows, const ScoreRequest& request, std::span<const int64_t> targets) {
  Solved solved;
  main().run([&] {
    at::Tensor logits = rows_[0].narrow(0, 0, rows).narrow(1, 0, plan_.vocab);
    if (!request.experts.empty()) {
      fuse(rows, request, solved);
      logits = fused_.narrow(0, 0, rows);
    }
    const at::Tensor tokens = on_host(targets, at::kLong).to(on_device(main().device()).device());
    const at::Tensor found = at::gather(logits, 1, tokens.view({rows, -1}));
    solved.log_totals = to_vector<double>(at::logsumexp(logits.to(at::kDouble), {1}));
    solved.best = to_vector<int64_t>(at::argmax(logits, 1));
    solved.logits = to_vector<float>(found);
  });
  return solved;
}

void Scorer::fuse(int64_t rows, const ScoreRequest& request, Solved& solved) {
  const auto all = static_cast<int>(plan_.experts.size());
  const RowRule rule = row_rule(request.rule, request.experts, all);
  const at::Tensor rule_here = at::empty({static_cast<int64_t>(sizeof(rule))}, at::kByte);
  std::memcpy(rule_here.mutable_data_ptr(), &rule, sizeof(rule));
  const at::Tensor rule_there = rule_here.to(on_device(main().device()).device());
  FusionArgs args = {};
  const auto logits = [&](int64_t lane) { return Logits{rows_[lane].const_data_ptr<float>(), rows_[lane].stride(0)}; };
  args.large = logits(0);
  for (const int t : request.experts) {
    args.experts[t] = logits(plan_.experts[t].expert);
    args.bases[t] = logits(plan_.experts[t].base);
  }
  const auto bytes = static_cast<int64_t>(rows * sizeof(FusionRecord));
  const at::Tensor records = at::empty({bytes}, on_device(main().device()).dtype(at::kByte));
  args.fused = fused_.mutable_data_ptr<float>();
  args.fused_stride = plan_.vocab;
  args.records = static_cast<FusionRecord*>(records.mutable_data_ptr());
  args.rules = static_cast<const RowRule*>(rule_there.const_data_ptr());
  args.rule_count = 1;
  args.kernels = rule.kernel;
  args.expert_count = all;
  args.rows = static_cast<int>(rows);
  args.vocab = plan_.vocab;
  cuda::solve(args, main().stream());
  main().synchronize();
  const at::Tensor here = records.cpu();
  const auto* found = static_cast<const FusionRecord*>(here.const_data_ptr());
  solved.records.assign(found, found + rows);
}

void Scorer::take(const Solved& solved, size_t row, size_t target, int64_t token, std::span<const int> experts,
                  Score& score) {
  const bool fused = !solved.records.empty();
  int bad_model = fused ? solved.records[row].bad_model : kNoBadModel;
  if (bad_model == kNoBadModel && !std::isfinite(solved.log_totals[row])) {
    bad_model = solved.log_totals[row] < 0 ? kEmptySupport : 0;
  }
  if (add_failure(score, bad_model)) {
    return;
  }
  score.logprobs.push_back(solved.logits[target] - solved.log_totals[row]);
  score.greedy.push_back(solved.best[row] == token);
  score.f.push_back(fused ? solved.records[row].f : 0.0);
  score.g.push_back(fused ? solved.records[row].g : 0.0);
  for (const int t : experts) {
    score.alpha.push_back(solved.records[row].alpha[t]);
  }
}

}  // namespace dlf::cuda
