#include "model/cuda/split_pass.h"

#include <algorithm>

namespace dlf::cuda {

template <typename Step>
void SplitPass::run(Step&& step) {
  for (size_t rank = 0; rank < shards_.size(); ++rank) {
    collectives_.queue(rank).run([&] { step(shards_[rank], rank); });
  }
}

void SplitPass::each(void (Pass::*step)(int64_t), int64_t layer) {
  run([&](Pass& pass, size_t) { (pass.*step)(layer); });
}

void SplitPass::embed(const std::vector<const int32_t*>& tokens, int lanes) {
  run([&](Pass& pass, size_t rank) {
    at::Tensor y = term(rank);
    pass.embed(tokens[rank], lanes, y);
  });
  sum(&Pass::hidden);
}

void SplitPass::add(void (Pass::*project)(int64_t, at::Tensor&), void (Pass::*end)(int64_t), int64_t layer) {
  run([&](Pass& pass, size_t rank) {
    at::Tensor y = term(rank);
    (pass.*project)(layer, y);
  });
  sum(&Pass::branch);
  each(end, layer);
}

// The shards' buffers hold as many rows at a time as can have logits in a step; a prompt that is scored has more.
void SplitPass::head(int first, int rows, at::Tensor& logits, const int32_t* positions) {
  run([&](Pass& pass, size_t) { pass.norm_for_head(first, rows); });
  const auto most = static_cast<int>(shards_[0].shard().logits().size(0));
  for (int begin = 0; begin < rows; begin += most) {
    const int some = std::min(most, rows - begin);
    std::vector<const float*> parts;
    std::vector<int64_t> columns;
    if (begin > 0) {
      collectives_.fork();  // the first rank has read what the shards overwrite now
    }
    run([&](Pass& pass, size_t) {
      at::Tensor part = pass.shard().logits().narrow(0, 0, some);
      pass.project_logits(first + begin, some, part);
      parts.push_back(part.const_data_ptr<float>());
      columns.push_back(part.size(1));
    });
    collectives_.gather(parts, columns, some, logits.mutable_data_ptr<float>() + begin * logits.stride(0),
                        positions == nullptr ? nullptr : positions + begin);
  }
}

void SplitPass::sum(at::Tensor& (Pass::*y)()) {
  std::vector<at::Tensor*> sums;
  sums.reserve(shards_.size());
  for (Pass& pass : shards_) {
    sums.push_back(&(pass.*y)());
  }
  collectives_.sum(sums, shards_[0].rows() * spec().hidden_size);
}

at::Tensor SplitPass::term(size_t rank) { return collectives_.term(rank).view({-1, spec().hidden_size}); }

}  // namespace dlf::cuda
