#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "support/cuda/runtime.h"
#include "support/dtype.h"

namespace dlf::cuda {

// What the devices of a split model tell each other, in order on their queues, so that a graph can hold it. The devices
// are ranks; the first one runs the rest of the step. Sums and gathers copy between devices and then add on each of
// them, in the order of ranks.
class Collectives {
 public:
  // A sum has up to `sum_size` elements, a gather up to `gather_size` from each rank.
  Collectives(std::vector<Queue*> queues, DType dtype, int64_t sum_size, int64_t gather_size);

  // Bytes that one rank of `count` needs.
  static int64_t bytes(int64_t rank, int64_t count, int64_t sum_size, int64_t gather_size);

  Queue& queue(size_t rank) { return *queues_[rank]; }

  void fork();  // later work of all ranks waits for what the first has queued
  void join();  // later work of the first waits for what all have queued

  // Copies from the first rank to the same place of every other one.
  void broadcast(std::span<void* const> places, int64_t bytes);

  // Float32 [sum_size]: where a rank leaves its term of the next sum.
  at::Tensor& term(size_t rank) { return terms_[turn_][rank]; }
  // Adds up the first `size` elements of all terms: y[rank] of each rank gets the same bits. It is of dtype or float32.
  void sum(std::span<at::Tensor* const> y, int64_t size);

  // Puts matrices of all ranks, [rows, columns[rank]], side by side into y [rows, all columns] on the first one. Rows
  // with a position of −1 stay as they are. Joins the ranks.
  void gather(std::span<const float* const> parts, std::span<const int64_t> columns, int rows, float* y,
              const int32_t* positions);

 private:
  size_t count() const { return queues_.size(); }

  std::vector<Queue*> queues_;
  DType dtype_;
  std::vector<std::unique_ptr<Event>> events_;  // of each rank
  // Two of each, in turn: a rank that writes its next term knows that all have read the one before the last.
  std::vector<at::Tensor> terms_[2];
  size_t turn_ = 0;
  std::vector<at::Tensor> received_;  // terms of the others, [count - 1, sum_size]
  at::Tensor gathered_;               // on the first rank, [count - 1, gather_size]
};

}  // namespace dlf::cuda
