#include "model/cuda/collectives.h"

#include <ATen/ops/empty.h>

#include <utility>

#include "ops/cuda/shards.h"

namespace dlf::cuda {
namespace {

constexpr int64_t kFloat = sizeof(float);

}  // namespace

Collectives::Collectives(std::vector<Queue*> queues, DType dtype, int64_t sum_size, int64_t gather_size)
    : queues_(std::move(queues)), dtype_(dtype) {
  const auto others = static_cast<int64_t>(count()) - 1;
  for (Queue* queue : queues_) {
    events_.push_back(std::make_unique<Event>(queue->device()));
    queue->run([&] {
      const auto floats = on_device(queue->device()).dtype(at::kFloat);
      for (std::vector<at::Tensor>& terms : terms_) {
        terms.push_back(at::empty({sum_size}, floats));
      }
      received_.push_back(at::empty({others, sum_size}, floats));
      if (!gathered_.defined()) {
        gathered_ = at::empty({others, gather_size}, floats);
      }
    });
  }
}

int64_t Collectives::bytes(int64_t rank, int64_t count, int64_t sum_size, int64_t gather_size) {
  return ((count + 1) * sum_size + (rank == 0 ? (count - 1) * gather_size : 0)) * kFloat;
}

void Collectives::fork() {
  events_[0]->record(*queues_[0]);
  for (size_t rank = 1; rank < count(); ++rank) {
    queues_[rank]->wait(*events_[0]);
  }
}

void Collectives::join() {
  for (size_t rank = 1; rank < count(); ++rank) {
    events_[rank]->record(*queues_[rank]);
    queues_[0]->wait(*events_[rank]);
  }
}

void Collectives::broadcast(std::span<void* const> places, int64_t bytes) {
  for (size_t rank = 1; rank < count(); ++rank) {
    queues_[rank]->copy(places[rank], places[0], bytes);
  }
}

void Collectives::sum(std::span<at::Tensor* const> y, int64_t size) {
  for (size_t rank = 0; rank < count(); ++rank) {
    events_[rank]->record(*queues_[rank]);
  }
  for (size_t rank = 0; rank < count(); ++rank) {
    Queue& queue = *queues_[rank];
    SumPartsArgs args = {};
    float* next = received_[rank].mutable_data_ptr<float>();
    for (size_t other = 0; other < count(); ++other) {
      const float* term = terms_[turn_][other].const_data_ptr<float>();
      if (other != rank) {
        queue.wait(*events_[other]);
        queue.copy(next, term, size * kFloat);
        term = next;
        next += received_[rank].size(1);
      }
      args.parts[args.count++] = term;
    }
    args.y = y[rank]->mutable_data_ptr();
    args.y_float = y[rank]->scalar_type() == at::kFloat;
    args.size = size;
    args.dtype = dtype_;
    const DeviceGuard guard(queue.device());
    sum_parts(args, queue.stream());
  }
  turn_ = 1 - turn_;
}

void Collectives::gather(std::span<const float* const> parts, std::span<const int64_t> columns, int rows, float* y,
                         const int32_t* positions) {
  join();
  Queue& queue = *queues_[0];
  JoinColumnsArgs args = {};
  for (size_t rank = 0; rank < count(); ++rank) {
    args.parts[rank] = parts[rank];
    args.first[rank + 1] = args.first[rank] + columns[rank];
    if (rank > 0) {
      auto* here = gathered_.mutable_data_ptr<float>() + (static_cast<int64_t>(rank) - 1) * gathered_.size(1);
      queue.copy(here, parts[rank], rows * columns[rank] * kFloat);
      args.parts[rank] = here;
    }
  }
  args.count = static_cast<int>(count());
  args.y = y;
  args.positions = positions;
  args.rows = rows;
  const DeviceGuard guard(queue.device());
  join_columns(args, queue.stream());
}

}  // namespace dlf::cuda
