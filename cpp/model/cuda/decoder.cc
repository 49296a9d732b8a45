#include "model/cuda/decoder.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "model/block.h"
#include "model/cuda/pass.h"
#include "model/cuda/split_pass.h"
#include "ops/cuda/shards.h"

namespace dlf::cuda {
namespace {

static_assert(kMostShards <= kMostParts);

constexpr int64_t kId = sizeof(int32_t);

// Most elements of a sum, and of a part of the logits.
int64_t sum_size(const ModelSpec& spec, const DecoderShape& shape) { return shape.most_rows() * spec.hidden_size; }
int64_t gather_size(const ModelSpec& spec, const DecoderShape& shape, int64_t count) {
  int64_t most = 0;
  for (int64_t rank = 1; rank < count; ++rank) {
    most = std::max(most, shard_ranges(spec, {rank, count}).vocab.count);
  }
  return shape.rows_with_logits() * most;
}

int most_fed(const DecoderShape& shape) { return std::max(kChunkTokens, shape.max_tokens); }

}  // namespace

Decoder::Decoder(const Weights& weights, const DecoderShape& shape, Queue& home, const std::vector<int>& others,
                 const std::vector<std::shared_ptr<const Adapter>>& adapters, const std::vector<int64_t>& lane_adapter)
    : shape_(shape), home_(home) {
  const ModelSpec& spec = weights.spec();
  if (others.empty()) {
    home_.run(
        [&] { shards_.push_back(std::make_unique<DecoderShard>(weights, shape, home_, adapters, lane_adapter)); });
    logits_ = shards_[0]->logits();
    shards_[0]->ready_libraries(shards_[0]->branch());
    return;
  }
  std::vector<Queue*> queues = {&home_};
  for (const int device : others) {
    queues.push_back(others_.emplace_back(std::make_unique<Queue>(device)).get());
  }
  const auto count = static_cast<int64_t>(queues.size());
  for (int64_t rank = 0; rank < count; ++rank) {
    const Shard shard = {rank, count};
    std::vector<std::shared_ptr<const Adapter>> own;
    own.reserve(adapters.size());
    for (const std::shared_ptr<const Adapter>& adapter : adapters) {
      own.push_back(std::make_shared<Adapter>(shard_of(*adapter, spec, shard)));
    }
    vocab_.push_back(shard_ranges(spec, shard).vocab);
    Queue& queue = *queues[rank];
    queue.run([&] {
      shards_.push_back(std::make_unique<DecoderShard>(shard_of(weights, shard), shape, queue, own, lane_adapter));
      fed_.push_back(at::empty({most_fed(shape)}, on_device(queue.device()).dtype(at::kInt)));
    });
  }
  collectives_ =
      std::make_unique<Collectives>(queues, weights.dtype(), sum_size(spec, shape), gather_size(spec, shape, count));
  for (size_t rank = 0; rank < shards_.size(); ++rank) {
    at::Tensor output = collectives_->term(rank).view({-1, spec.hidden_size});
    shards_[rank]->ready_libraries(output);
    queues[rank]->synchronize();
  }
  home_.run([&] {
    logits_ = at::zeros({shape.rows_with_logits(), spec.vocab_size}, on_device(home_.device()).dtype(at::kFloat));
  });
}

DecoderBytes Decoder::bytes(const ModelSize& model, const DecoderShape& shape, const Shard& shard) {
  if (shard.count == 1) {
    return DecoderShard::bytes(model, shape);
  }
  ModelSize part = model;
  part.spec = shard_of(model.spec, shard);
  part.weights = shard_bytes(model.spec, shard, model.weights);
  DecoderBytes bytes = DecoderShard::bytes(part, shape);
  bytes.activations += most_fed(shape) * kId + Collectives::bytes(shard.rank, shard.count, sum_size(model.spec, shape),
                                                                  gather_size(model.spec, shape, shard.count));
  if (shard.rank == 0) {
    bytes.logits += shape.rows_with_logits() * model.spec.vocab_size * static_cast<int64_t>(sizeof(float));
  }
  return bytes;
}

// Has every shard read the rows, and brings their logits together.
void Decoder::read(const MakePass& pass_of, const Rows& rows, at::Tensor logits) {
  if (!split()) {
    home_.run([&] {
      DecoderShard::Pass pass = pass_of(*shards_[0]);
      pass.embed(rows.tokens, rows.lanes);
      run_layers(pass);
      if (rows.count > 0) {
        pass.head(rows.first, rows.count, std::move(logits));
      }
    });
    return;
  }
  collectives_->fork();
  const std::vector<const int32_t*> tokens = feed(rows);
  std::vector<DecoderShard::Pass> passes;
  passes.reserve(shards_.size());
  for (const std::unique_ptr<DecoderShard>& shard : shards_) {
    passes.push_back(pass_of(*shard));
  }
  SplitPass pass(std::move(passes), *collectives_);
  pass.embed(tokens, rows.lanes);
  run_layers(pass);
  if (rows.count > 0) {
    const int32_t* idle = rows.position_count > 0 ? positions().const_data_ptr<int32_t>() + rows.at : nullptr;
    pass.head(rows.first, rows.count, logits, idle);
  } else {
    collectives_->join();
  }
}

// Sends positions and tokens to all shards, the tokens by the numbers that they have there.
std::vector<const int32_t*> Decoder::feed(const Rows& rows) {
  if (rows.position_count > 0) {
    std::vector<void*> places;
    places.reserve(shards_.size());
    for (const std::unique_ptr<DecoderShard>& shard : shards_) {
      places.push_back(shard->positions().mutable_data_ptr<int32_t>() + rows.at);
    }
    collectives_->broadcast(places, rows.position_count * kId);
  }
  std::vector<const int32_t*> tokens;
  for (size_t rank = 0; rank < shards_.size(); ++rank) {
    Queue& queue = collectives_->queue(rank);
    auto* to = fed_[rank].mutable_data_ptr<int32_t>();
    if (rank > 0) {
      queue.copy(to, rows.tokens, rows.token_count * kId);
    }
    const auto [first, count] = vocab_[rank];
    const DeviceGuard guard(queue.device());
    own_tokens(
        {rank > 0 ? to : rows.tokens, to, rows.token_count, static_cast<int32_t>(first), static_cast<int32_t>(count)},
        queue.stream());
    tokens.push_back(to);
  }
  return tokens;
}

void Decoder::decode(int batch, int first, int count, bool first_logits) {
  const int slots = batch * shape_.lanes;
  TORCH_INTERNAL_ASSERT((first + count) * slots <= shape_.rows());
  const int rows = first_logits ? slots : count * slots;
  const auto pass = [=](DecoderShard& shard) {
    return DecoderShard::Pass::decode(shard, first * slots, count * slots, slots);
  };
  read(pass,
       {tokens().const_data_ptr<int32_t>() + first * batch, count * batch, shape_.lanes, 0, rows, first * slots,
        count * slots},
       logits_.narrow(0, first * slots, rows));
}

// Reads as many rows at a time as every kind of product computes bit-identical to one row.
void Decoder::read_again(const int32_t* tokens, int count, int row, int start, bool last) {
  change_blocks();
  for (int first = 0; first < count; first += kLinearRows) {
    const int rows = std::min(kLinearRows, count - first);
    const auto pass = [=](DecoderShard& shard) { return DecoderShard::Pass::again(shard, row, start + first, rows); };
    const bool ends = last && first + rows == count;
    read(pass, {tokens + first, rows, 1, rows - 1, ends ? 1 : 0}, logits_of(row));
  }
}

void Decoder::prefill(const int32_t* tokens, int count, int row, int start, bool last) {
  TORCH_INTERNAL_ASSERT(count >= 1 && count <= kChunkTokens && start + count <= shape_.max_context);
  change_blocks();
  const auto pass = [=](DecoderShard& shard) { return DecoderShard::Pass::prompt(shard, row, start, count); };
  read(pass, {tokens, count, 1, count - 1, last ? 1 : 0}, logits_of(row));
}

void Decoder::prefill(const int32_t* tokens, int count, int row, int start, at::Tensor& logits) {
  TORCH_INTERNAL_ASSERT(count >= 1 && count <= kChunkTokens && start + count <= shape_.max_context);
  change_blocks();
  const auto pass = [=](DecoderShard& shard) { return DecoderShard::Pass::prompt(shard, row, start, count); };
  read(pass, {tokens, count, 1, 0, count}, logits);
}

void Decoder::set_block(int64_t slot, int64_t index, int32_t block) {
  for (const std::unique_ptr<DecoderShard>& shard : shards_) {
    shard->set_block(slot, index, block);
  }
}

void Decoder::copy_block(int32_t from, int32_t to) {
  for (const std::unique_ptr<DecoderShard>& shard : shards_) {
    shard->copy_block(from, to);
  }
}

void Decoder::change_blocks() {
  for (const std::unique_ptr<DecoderShard>& shard : shards_) {
    shard->change_blocks();
  }
  if (split()) {
    collectives_->join();
  }
}

}  // namespace dlf::cuda
