#include "engine/cuda/scorer.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/logsumexp.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>

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

Scorer::Scorer(const FusionPlan& plan, DeviceModels& models, ChunkReader& chunks, StepClock& clock)
    : plan_(plan),
      models_(models),
      chunks_(chunks),
      clock_(clock),
      begun_(std::make_unique<Event>(models.main().device())) {}

void Scorer::begin(const ScoreRequest& request, int64_t rows) {
  const int64_t most = std::min(rows, std::max<int64_t>(request.longest() - 1, 1));
  const auto make = [&](Queue& queue, int64_t vocab) {
    at::Tensor made;
    queue.run([&] { made = at::empty({most, vocab}, on_device(queue.device()).dtype(at::kFloat)); });
    return made;
  };
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    const bool used = request.prompts[i].size() > 0;
    const DeviceModel& model = this->model(i);
    written_.push_back(used ? make(*model.queue, model.decoder->vocab()) : at::Tensor());
    logits_.push_back(used && model.mapped() ? make(*model.queue, model.vocab()) : written_.back());
    shared_.push_back(used && model.remote ? make(main(), model.vocab()) : logits_.back());
  }
  if (!request.experts.empty()) {
    fused_ = make(main(), plan_.vocab);
  }
}

void Scorer::end() noexcept {
  try {
    for (DeviceModel& model : models_.all()) {
      model.queue->synchronize();  // queued work may still use what is freed now
    }
  } catch (const std::exception& error) {
    TORCH_WARN("the device failed while it scored: ", error.what());
  }
  written_.clear();
  logits_.clear();
  shared_.clear();
  rows_.clear();
  fused_ = at::Tensor();
}

// Keeps the host from running further ahead.
void Scorer::end_round() {
  main().synchronize();
  chunks_.free(clock_.launched() + 1);
}

// Uses the prompts' last logits, which are valid until the next step; a poll may step.
void Scorer::use_prompts(std::span<const Lane> lanes) {
  count_ = 1;
  rows_.clear();
  for (size_t i = 0; i < lanes.size(); ++i) {
    rows_.push_back(model(i).logits_of(lanes[i].cache_slot));
  }
}

// Tokens of the large model as ids of the lane's model.
std::vector<int64_t> Scorer::own_ids(size_t lane, std::span<const int64_t> tokens) const {
  const TokenMap& map = plan_.map_of(plan_.lane_model[lane]);
  std::vector<int64_t> ids(tokens.size());
  std::transform(tokens.begin(), tokens.end(), ids.begin(), [&](int64_t token) { return map.own_id(token); });
  return ids;
}

void Scorer::read(std::span<const Lane> lanes, std::span<const int64_t> tokens, int64_t position) {
  clock_.disturb();
  count_ = static_cast<int64_t>(tokens.size());
  const auto count = static_cast<int>(count_);
  std::vector<at::Tensor> there;  // kept until the work is done
  begun_->record(main());
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (!lanes[i].used()) {
      continue;
    }
    DeviceModel& model = this->model(i);
    model.queue->wait(*begun_);  // queued steps use the same buffers
    const at::Tensor here = on_host(own_ids(i, tokens), at::kInt);
    model.queue->run([&] { there.push_back(here.to(on_device(model.queue->device()).device())); });
    model.decoder->prefill(there.back().const_data_ptr<int32_t>(), count, static_cast<int>(lanes[i].cache_slot),
                           static_cast<int>(lanes[i].length + position), written_[i]);
    if (model.mapped()) {
      model.gather(written_[i].const_data_ptr<float>(), logits_[i].mutable_data_ptr<float>(), nullptr, count);
    }
    if (model.remote) {
      const int64_t bytes = count * model.vocab() * static_cast<int64_t>(sizeof(float));
      model.queue->copy(shared_[i].mutable_data_ptr(), logits_[i].const_data_ptr(), bytes);
    }
    model.ready->record(*model.queue);
    main().wait(*model.ready);
  }
  rows_ = shared_;
  main().synchronize();
}

void Scorer::solve(const ScoreRequest& request, int64_t step, std::span<Target> targets) {
  clock_.disturb();
  std::vector<int64_t> tokens;
  tokens.reserve(targets.size());
  for (const Target& target : targets) {
    tokens.push_back(target.token);
  }
  main().run([&] {
    at::Tensor logits = rows_[0].narrow(0, 0, count_).narrow(1, 0, plan_.vocab);
    std::vector<FusionRecord> fused;
    bool failed = false;
    if (!request.experts.empty()) {
      fused = fuse(request, step, failed);
      logits = fused_.narrow(0, 0, count_);
    }
    if (request.hook && request.experts.empty()) {
      failed = !show(request, step, {});
    }
    const at::Tensor there = on_host(tokens, at::kLong).to(on_device(main().device()).device());
    const auto found = to_vector<float>(at::gather(logits, 1, there.view({count_, -1})));
    const auto log_totals = to_vector<double>(at::logsumexp(logits.to(at::kDouble), {1}));
    const auto best = to_vector<int64_t>(at::argmax(logits, 1));
    for (size_t i = 0; i < targets.size(); ++i) {
      const size_t row = count_ == 1 ? 0 : i;
      Target& target = targets[i];
      target.logprob = found[i] - log_totals[row];
      target.greedy = best[row] == target.token;
      if (!fused.empty()) {
        target.bad_model = fused[row].bad_model;
        target.f = fused[row].f;
        target.g = fused[row].g;
        std::transform(request.experts.begin(), request.experts.end(), target.alpha,
                       [&](int expert) { return fused[row].alpha[expert]; });
      }
      target.bad_model = failed ? kHookFailed : target.bad_model;
      if (target.bad_model == kNoBadModel && !std::isfinite(log_totals[row])) {
        target.bad_model = log_totals[row] < 0 ? kEmptySupport : 0;
      }
    }
  });
}

// Shows the rows to the request's hook; returns whether the request goes on.
bool Scorer::show(const ScoreRequest& request, int64_t step, const FusedRows& fused) {
  HookRows rows;
  rows.step = step;
  return show_rows(request.hook, rows, {plan_, request.experts, main().device(), fused, 0, count_},
                   [&](int64_t lane) { return Logits{rows_[lane].const_data_ptr<float>(), rows_[lane].stride(0)}; });
}

std::vector<FusionRecord> Scorer::fuse(const ScoreRequest& request, int64_t step, bool& failed) {
  const auto all = static_cast<int>(plan_.experts.size());
  const RowRule rule = row_rule(request.rule, request.experts, all);
  const at::Tensor rule_here = at::empty({static_cast<int64_t>(sizeof(rule))}, at::kByte);
  std::memcpy(rule_here.mutable_data_ptr(), &rule, sizeof(rule));
  const at::Tensor rule_there = rule_here.to(on_device(main().device()).device());
  FusionArgs args = {};
  const auto logits = [&](int64_t lane) {
    return lane == kNoLane ? models_.logits(lane) : Logits{rows_[lane].const_data_ptr<float>(), rows_[lane].stride(0)};
  };
  args.large = logits(0);
  for (const int t : request.experts) {
    args.experts[t] = logits(plan_.experts[t].expert);
    args.bases[t] = logits(plan_.experts[t].base);
  }
  const auto bytes = static_cast<int64_t>(count_ * sizeof(FusionRecord));
  const at::Tensor records = at::empty({bytes}, on_device(main().device()).dtype(at::kByte));
  args.fused = fused_.mutable_data_ptr<float>();
  args.fused_stride = plan_.vocab;
  args.records = static_cast<FusionRecord*>(records.mutable_data_ptr());
  args.rules = static_cast<const RowRule*>(rule_there.const_data_ptr());
  args.rule_count = 1;
  args.kernels = rule.kernels;
  args.expert_count = all;
  args.rows = static_cast<int>(count_);
  args.vocab = plan_.vocab;
  cuda::solve(args, main().stream());
  failed = request.hook && !show(request, step, {args.fused, args.fused_stride, args.records});
  main().synchronize();
  const at::Tensor here = records.cpu();
  const auto* found = static_cast<const FusionRecord*>(here.const_data_ptr());
  return {found, found + count_};
}

}  // namespace dlf::cuda
