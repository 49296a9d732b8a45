#include "model/cpu/pass.h"

#include <algorithm>
#include <array>
#include <limits>

#include "ops/cpu/activation.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/embedding.h"
#include "ops/cpu/experts.h"
#include "ops/cpu/logits.h"
#include "ops/cpu/norm.h"
#include "ops/cpu/own_logits.h"
#include "ops/cpu/rope.h"
#include "ops/cpu/router.h"

namespace dlf {
namespace {

float* data(at::Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }
const float* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

}  // namespace

void Decoder::Pass::embed() {
  const Weights& weights = *d_.weights_;
  ops::CpuEmbeddingArgs args = {embedding_args(spec(), weights.embedding.matrix, weights.positions, weights.dtype())};
  args.token = d_.tokens_.data();
  args.y = data(d_.hidden_);
  args.rows = rows_;
  args.lanes = 1;
  args.places = places_;
  ops::embedding(args);
  d_.updates_.clear();  // what a pass left that ended with an exception
  adapt_embedding(args);
}

void Decoder::Pass::head(int64_t first, int rows, float* logits) {
  rows_ = rows;
  norm(data(d_.hidden_) + first * spec().hidden_size, d_.weights_->norm);
  const bool replaced = is_prompt_ && !d_.runs_.empty() && d_.runs_[0].adapter->head.own.whole();
  if (!replaced) {
    const std::array products = {product(d_.weights_->head, logits)};
    multiply(data(d_.normed_), products);
  }
  adapt_head(logits);
  if (!are_final(spec())) {
    ops::finish_logits(logit_args(spec(), logits, rows), d_.team_);
  }
}

AttentionBuffers Decoder::Pass::buffers(int64_t index) {
  const AttentionSpec& attention = spec().attention;
  const RopeTable& rope = d_.ropes_[spec().layers[index].rope];
  return {data(d_.q_),
          data(d_.k_),
          data(d_.v_),
          static_cast<int>(attention.q_size()),
          static_cast<int>(attention.kv_size()),
          data(d_.attended_),
          d_.cache_.keys(index),
          d_.cache_.values(index),
          d_.cache_.table(),
          places_,
          data(rope.cos),
          data(rope.sin),
          data(rope.query_scale),
          rope.rotated,
          norm_of(spec(), layer(index).q_norm),
          norm_of(spec(), layer(index).k_norm),
          d_.weights_->dtype()};
}

void Decoder::Pass::norm(const NormWeights& weights) { norm(data(d_.hidden_), weights); }

void Decoder::Pass::project_heads(int64_t index) {
  const LayerWeights& w = layer(index);
  const std::array products = {product(w.q, data(d_.q_)), product(w.k, data(d_.k_)), product(w.v, data(d_.v_))};
  multiply(data(d_.normed_), products);
  adapt(index, data(d_.normed_),
        {{&LayerAdapter::q, data(d_.q_)}, {&LayerAdapter::k, data(d_.k_)}, {&LayerAdapter::v, data(d_.v_)}});
}

void Decoder::Pass::rope_and_cache(int64_t index) { ops::rope_and_cache(rope_args(spec(), buffers(index)), d_.team_); }

void Decoder::Pass::attend(int64_t index) {
  const ops::AttentionArgs args = attention_args(spec(), index, buffers(index));
  is_prompt_ ? ops::prefill_attention(args, d_.team_) : ops::attention(args, d_.team_);
}

void Decoder::Pass::add_attention(int64_t index) {
  add(index, &LayerWeights::o, &LayerAdapter::o, data(d_.attended_), layer(index).attention_post_norm);
}

// Runs as one loop in a decode step without adapters, if there are gates.
void Decoder::Pass::gate(int64_t index) {
  const LayerWeights& w = layer(index);
  const FeedForwardSpec& feed_forward = spec().feed_forward;
  if (feed_forward.gated) {
    const std::array products = {product(w.gate, data(d_.gate_)), product(w.up, data(d_.up_))};
    if (!is_prompt_ && d_.runs_.empty() && ops::read_alike(w.gate.matrix.type, w.up.matrix.type)) {
      const ops::LinearInputRows input = input_of(data(d_.normed_), products[0]);
      return ops::linear_gated(input, products[0], products[1], feed_forward.activation, row_gate(index), d_.team_);
    }
    multiply(data(d_.normed_), products);
    adapt(index, data(d_.normed_), {{&LayerAdapter::gate, data(d_.gate_)}, {&LayerAdapter::up, data(d_.up_)}});
  } else {
    const std::array products = {product(w.up, data(d_.up_))};
    multiply(data(d_.normed_), products);
    adapt(index, data(d_.normed_), {{&LayerAdapter::up, data(d_.up_)}});
  }
  const auto size = static_cast<int>(spec().dense_size());
  ops::activate({feed_forward.gated ? data(d_.gate_) : nullptr, data(d_.up_), size, activated(), rows_, size,
                 DType::float32, feed_forward.activation, row_gate(index)},
                d_.team_);
}

// What route() found for the shared expert; null if nothing weighs it.
const float* Decoder::Pass::row_gate(int64_t index) {
  return layer(index).shared_router.tensors.data.defined() ? data(d_.experts_.shared) : nullptr;
}

float* Decoder::Pass::activated() { return spec().feed_forward.gated ? data(d_.gate_) : data(d_.up_); }

void Decoder::Pass::add_feed_forward(int64_t index) {
  add(index, &LayerWeights::down, &LayerAdapter::down, activated(), layer(index).feed_forward_post_norm);
}

void Decoder::Pass::route(int64_t index) {
  const ExpertsSpec& experts = spec().experts;
  const LayerWeights& w = layer(index);
  const std::array products = {product(w.router, data(d_.experts_.logits)),
                               product(w.shared_router, experts.shared_router ? data(d_.experts_.shared) : nullptr)};
  multiply(data(d_.normed_), std::span(products).first(experts.shared_router ? 2 : 1));
  adapt(index, data(d_.normed_), {{&LayerAdapter::router, data(d_.experts_.logits)}});
  ops::router({data(d_.experts_.logits), nullptr, d_.experts_.routes(), rows_, static_cast<int>(experts.count),
               static_cast<int>(experts.chosen), std::numeric_limits<int>::max(), experts.normalise},
              d_.team_);
}

void Decoder::Pass::add_experts(int64_t index) {
  collect_experts(index);
  ops::experts({{layer(index).expert_matrices.data(), d_.experts_.routes(), data(d_.normed_), data(d_.experts_.gated),
                 data(d_.experts_.products), output(), rows_, static_cast<int>(spec().experts.chosen),
                 static_cast<int>(spec().hidden_size), static_cast<int>(spec().experts.size), DType::float32,
                 spec().feed_forward.activation},
                data(d_.expert_up_),
                &d_.input_,
                is_prompt_,
                /*accumulate=*/adds_at_once(),
                d_.updates_,
                d_.down_updates_,
                float_type(d_.weights_->dtype())},
               d_.team_);
  d_.updates_.clear();
  add_output(layer(index).feed_forward_post_norm);
}

ops::LinearArgs Decoder::Pass::product(const LinearWeights& linear, float* y, bool accumulate) const {
  return {{linear.matrix, data(linear.bias), y, rows_}, accumulate};
}

ops::LinearInputRows Decoder::Pass::input_of(const float* x, const ops::LinearArgs& product) {
  return d_.input_.prepare(x, rows_, product.weight.in, product.weight.type, d_.team_);
}

void Decoder::Pass::norm(float* x, const NormWeights& weights) {
  ops::norm({x, nullptr, data(d_.normed_), rows_, static_cast<int>(spec().hidden_size), norm_of(spec(), weights),
             DType::float32},
            d_.team_);
}

// Prepares x once for neighbouring products that read it alike.
void Decoder::Pass::multiply(const float* x, std::span<const ops::LinearArgs> products) {
  while (!products.empty()) {
    const ops::LinearArgs& first = products.front();
    size_t count = 1;
    while (count < products.size() && ops::read_alike(first.weight.type, products[count].weight.type)) {
      ++count;
    }
    const ops::LinearInputRows input = input_of(x, first);
    if (is_prompt_) {
      ops::linear_prefill(input, products.first(count), d_.team_);
    } else {
      ops::linear(input, products.first(count), d_.team_);
    }
    products = products.subspan(count);
  }
}

// stream += linear(x), normed and multiplied if need be
void Decoder::Pass::add(int64_t index, LinearWeights LayerWeights::* weights, LowRank LayerAdapter::* update,
                        const float* x, const NormWeights& post_norm) {
  const LinearWeights& linear = layer(index).*weights;
  float* y = output();
  const std::array products = {product(linear, y, /*accumulate=*/adds_at_once())};
  multiply(x, products);
  adapt(index, x, {{update, y}});
  add_output(post_norm);
}

// Where a block's output goes: to the stream itself, if nothing is done to it before.
float* Decoder::Pass::output() { return adds_at_once() ? data(d_.hidden_) : data(d_.branch_); }

void Decoder::Pass::add_output(const NormWeights& post_norm) {
  if (!adds_at_once()) {
    ops::add_norm({data(d_.hidden_), data(d_.branch_), rows_, static_cast<int>(spec().hidden_size),
                   norm_of(spec(), post_norm), static_cast<float>(spec().residual_multiplier), DType::float32},
                  d_.team_);
  }
}

// Adds the updates of the rows' adapters to products of x.
void Decoder::Pass::adapt(int64_t index, const float* x, std::initializer_list<Adapted> products) {
  int64_t in = 0;
  for (const Run& run : d_.runs_) {
    for (const Adapted& product : products) {
      const LowRank& update = run.adapter->layers[index].*product.update;
      collect(d_.updates_, run, update, product.y);
      in = update.defined() ? update.a.size(1) : in;
    }
  }
  add_updates(x, in);
}

// Collects the update of a product of the pass's rows for one call of ops::lora().
void Decoder::Pass::collect(std::vector<ops::LoraRun>& updates, const Run& run, const LowRank& update, float* y) {
  if (update.defined()) {
    const ops::LoraUpdate one = update.update();
    float* inner = data(d_.inner_);
    if (!updates.empty()) {
      const ops::LoraRun& last = updates.back();
      inner = last.inner + static_cast<int64_t>(last.rows) * last.update.rank;
    }
    updates.push_back({one, y + static_cast<int64_t>(run.row) * one.out, run.row, run.rows, inner});
  }
}

// Collects the updates of a layer's experts. Pairs of an expert are sorted by row, so those of an adapter are
// neighbours.
void Decoder::Pass::collect_experts(int64_t index) {
  d_.down_updates_.clear();
  const ops::Routes routes = d_.experts_.routes();
  for (int32_t i = 0; !d_.runs_.empty() && i < *routes.run_count; ++i) {
    const ops::ExpertRun& pairs = routes.runs[i];
    const int32_t* rows = routes.row + pairs.first;
    for (const Run& run : d_.runs_) {
      const std::vector<ExpertAdapter>& experts = run.adapter->layers[index].experts;
      const int32_t* begin = std::lower_bound(rows, rows + pairs.pairs, run.row);
      const int32_t* end = std::lower_bound(begin, rows + pairs.pairs, run.row + run.rows);
      if (experts.empty() || begin == end) {
        continue;
      }
      const ExpertAdapter& updates = experts[pairs.expert];
      const Run own = {run.adapter, pairs.first + static_cast<int>(begin - rows), static_cast<int>(end - begin)};
      collect(d_.updates_, own, updates.gate, data(d_.experts_.gated));
      collect(d_.updates_, own, updates.up, data(d_.expert_up_));
      collect(d_.down_updates_, own, updates.down, data(d_.experts_.products));
    }
  }
}

// Adds what is collected to products of x.
void Decoder::Pass::add_updates(const float* x, int64_t in) {
  if (!d_.updates_.empty()) {
    const ops::MatrixType type = float_type(d_.weights_->dtype());
    ops::lora(d_.input_.prepare(x, rows_, in, type, d_.team_), d_.updates_, type, d_.team_);
    d_.updates_.clear();
  }
}

void Decoder::Pass::adapt_embedding(const ops::EmbeddingArgs& args) {
  for (const Run& run : d_.runs_) {
    const TableAdapter& table = run.adapter->embedding;
    if (table.own.defined()) {
      ops::CpuEmbeddingArgs own = {args, table.own.embedding(), run.row};
      own.rows = run.row + run.rows;
      ops::embedding(own);
    }
    collect(d_.updates_, run, table.update, args.y);
  }
  for (ops::LoraRun& run : d_.updates_) {
    run.update.scale *= args.multiplier;
  }
  ops::lora(args.token, d_.updates_, float_type(d_.weights_->dtype()), d_.team_);
  d_.updates_.clear();
}

void Decoder::Pass::adapt_head(float* logits) {
  const float* x = data(d_.normed_);
  const int64_t hidden = spec().hidden_size;
  for (Run& run : d_.runs_) {
    run.rows = is_prompt_ ? rows_ : run.rows;
    collect(d_.updates_, run, run.adapter->head.update, logits);
  }
  add_updates(x, hidden);
  const ops::MatrixType type = float_type(d_.weights_->dtype());
  for (const Run& run : d_.runs_) {
    const OwnRows& own = run.adapter->head.own;
    if (is_prompt_ && own.whole()) {
      const ops::Matrix weight = {own.rows.const_data_ptr(), nullptr, spec().vocab_size, hidden, type, 0};
      const std::array products = {ops::LinearArgs{{weight, nullptr, logits, rows_}, /*accumulate=*/false}};
      multiply(x, products);
    } else if (own.defined()) {
      ops::own_logits(d_.input_.prepare(x, rows_, hidden, type, d_.team_).from(run.row), run.rows, own.logits(), type,
                      logits + run.row * spec().vocab_size, spec().vocab_size, d_.team_);
    }
  }
}

}  // namespace dlf
