#include "support/cuda/runtime.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/record_function.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "emulator.h"
#include "worker.h"

// The CUDA runtime on the host. Device tensors lie in host memory; a separate thread does the work of queues. Torch
// operators run synchronously: inside Queue::run each first waits for the work of its queue; Queue::enqueue runs them
// in stream order. They cannot be captured: a captured body holds only kernels, copies and matmul.
namespace dlf::cuda {
namespace {

using emulation::Recording;
using emulation::Worker;

thread_local Queue* current_queue = nullptr;  // the queue that torch's operators would use

// Whether an operator returns a view or allocates, and reads no data.
bool is_view(std::string_view name) {
  constexpr std::string_view kViews[] = {"as_strided", "empty",  "expand",       "narrow", "permute",
                                         "reshape",    "select", "slice",        "t",      "transpose",
                                         "unsqueeze",  "view",   "empty_strided"};
  name.remove_prefix(std::min(name.find("::") + 2, name.size()));
  return std::find(std::begin(kViews), std::end(kViews), name) != std::end(kViews);
}

// Called by torch before each operator of a thread that registered it.
std::unique_ptr<at::ObserverContext> before_operator(const at::RecordFunction& function) {
  if (current_queue != nullptr && !is_view(function.name())) {
    Worker::instance().settle(*current_queue->stream());
  }
  return nullptr;
}

void watch_operators() {
  static thread_local const at::CallbackHandle handle =
      at::addThreadLocalCallback(at::RecordFunctionCallback(&before_operator).scopes({at::RecordScope::FUNCTION}));
  static_cast<void>(handle);
}

CUstream_st& default_stream() {
  static CUstream_st* const stream = [] {
    auto* made = new CUstream_st;
    Worker::instance().add(*made);
    return made;
  }();
  return *stream;
}

class CurrentQueue {
 public:
  explicit CurrentQueue(Queue* queue) : before_(std::exchange(current_queue, queue)) { watch_operators(); }
  ~CurrentQueue() { current_queue = before_; }
  CurrentQueue(const CurrentQueue&) = delete;
  CurrentQueue& operator=(const CurrentQueue&) = delete;

 private:
  Queue* before_;
};

void check_device(int device) {
  if (device < 0 || device >= static_cast<int>(devices().size())) {
    throw std::invalid_argument("there is no emulated CUDA device " + std::to_string(device));
  }
}

// Available memory. _SC_AVPHYS_PAGES would count cached file pages as used.
int64_t available_bytes() {
  std::ifstream words("/proc/meminfo");
  std::string word;
  while (words >> word) {
    int64_t kibibytes = 0;
    if (word == "MemAvailable:" && words >> kibibytes) {
      return kibibytes * 1024;
    }
  }
  throw std::runtime_error("/proc/meminfo does not say how much memory is available");
}

}  // namespace

std::string version() { return "emulated"; }

std::vector<DeviceInfo> devices() {
  const char* asked = std::getenv("DLF_EMULATION_DEVICES");
  const int count = asked == nullptr ? 2 : std::atoi(asked);
  const int64_t total = sysconf(_SC_PAGESIZE) * sysconf(_SC_PHYS_PAGES);
  std::vector<DeviceInfo> all;
  for (int index = 0; index < count; ++index) {
    all.push_back({index, "emulated " + std::to_string(index), total, available_bytes(), 90, 16});
  }
  return all;
}

at::TensorOptions on_device(int device) {
  check_device(device);
  return at::TensorOptions().device(at::kCPU);
}

at::Tensor pinned(at::IntArrayRef shape, at::ScalarType type) { return at::empty(shape, type); }

// ---- queues

DeviceGuard::DeviceGuard(int device) : before_(device) {}
DeviceGuard::~DeviceGuard() = default;

struct Queue::State {
  CUstream_st stream;
};

Queue::Queue(int device) : device_(device), state_(std::make_unique<State>()) {
  check_device(device);
  Worker::instance().add(state_->stream);
}

Queue::~Queue() { Worker::instance().remove(state_->stream); }

Stream Queue::stream() const { return &state_->stream; }

void Queue::run(const std::function<void()>& body) {
  const CurrentQueue current(this);
  body();
}

void Queue::enqueue(std::function<void()> body) { emulation::submit(&state_->stream, std::move(body)); }

void Queue::copy(void* to, const void* from, int64_t bytes) {
  emulation::submit(&state_->stream, [to, from, bytes] { std::memmove(to, from, bytes); });
}

void Queue::clear(void* to, int64_t bytes) {
  emulation::submit(&state_->stream, [to, bytes] { std::memset(to, 0, bytes); });
}

void Queue::synchronize() {
  if (state_->stream.recording != nullptr) {
    throw std::runtime_error("the host cannot wait for a queue during its capture");
  }
  Worker::instance().drain(state_->stream);
}

bool Queue::finished() const { return Worker::instance().finished(state_->stream); }

// ---- events

struct Event::State {
  std::shared_ptr<emulation::Mark> mark = std::make_shared<emulation::Mark>();
  Recording* recording = nullptr;  // the capture in which it was recorded
  CUstream_st* stream = nullptr;
  std::set<size_t> after;  // steps of the capture that come before it
};

Event::Event(int device) : state_(std::make_unique<State>()) { check_device(device); }
Event::~Event() = default;

void Event::record(Queue& queue) {
  CUstream_st& stream = queue.state_->stream;
  state_->recording = stream.recording;
  state_->stream = &stream;
  state_->after = stream.after;
  if (stream.recording == nullptr) {
    Worker::instance().record(stream, state_->mark);
  }
}

void Queue::wait(const Event& event) {
  CUstream_st& stream = state_->stream;
  Recording* const recording = event.state_->recording;
  if (recording == nullptr) {
    if (stream.recording != nullptr) {
      throw std::runtime_error("a captured queue waits for an event that was recorded outside the capture");
    }
    Worker::instance().wait(stream, event.state_->mark);
    return;
  }
  stream.recording = recording;
  stream.after.insert(event.state_->after.begin(), event.state_->after.end());
  recording->streams.insert(&stream);
  recording->unjoined.erase(event.state_->stream);
  if (&stream != recording->origin) {
    recording->unjoined.insert(&stream);
  }
}

// ---- graphs

struct Graph::State {
  std::shared_ptr<const std::vector<emulation::Step>> steps;
};

Graph::Graph() : state_(std::make_unique<State>()) {}
Graph::~Graph() = default;

void Graph::capture(Queue& queue, const std::function<void()>& body) {
  CUstream_st& origin = queue.state_->stream;
  if (origin.recording != nullptr) {
    throw std::runtime_error("the queue is being captured already");
  }
  Recording recording{&origin, {}, {&origin}, {}};
  origin.recording = &recording;
  const auto stop = [&] {
    for (CUstream_st* stream : recording.streams) {
      stream->recording = nullptr;
      stream->after.clear();
    }
  };
  try {
    const CurrentQueue current(&queue);
    body();
  } catch (...) {
    stop();
    throw;
  }
  stop();
  if (!recording.unjoined.empty()) {
    throw std::runtime_error("a capture ended before its queue waited for the other queues in it");
  }
  state_->steps = std::make_shared<const std::vector<emulation::Step>>(std::move(recording.steps));
}

void Graph::replay(Queue& queue) {
  if (state_->steps == nullptr) {
    throw std::runtime_error("a graph was replayed before a capture into it");
  }
  const auto replay = std::make_shared<emulation::Replay>(state_->steps);
  Worker::instance().enqueue(queue.state_->stream, [replay] { return replay->advance(); });
}

// ---- the matrix library

void matmul(const at::Tensor& x, const at::Tensor& weight, at::Tensor& y) {
  if (current_queue == nullptr) {
    throw std::runtime_error("matmul outside Queue::run and Graph::capture");
  }
  const bool types_agree =
      x.scalar_type() == weight.scalar_type() && (y.scalar_type() == x.scalar_type() || y.scalar_type() == at::kFloat);
  if (!types_agree || x.dim() != 2 || weight.dim() != 2 || y.dim() != 2 || x.size(1) != weight.size(1) ||
      y.size(0) != x.size(0) || y.size(1) != weight.size(0) || y.stride(1) != 1) {
    throw std::invalid_argument("matmul: shapes or types do not agree");
  }
  emulation::submit(current_queue->stream(),
                    [x, weight, y] { y.copy_(at::mm(x.to(at::kFloat), weight.to(at::kFloat).t())); });
}

bool prompt_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, double, const at::Tensor&) {
  return false;
}

}  // namespace dlf::cuda

namespace dlf::emulation {

namespace {

void submit(CUstream_st* stream, std::function<void()> work, std::function<void()> begin) {
  CUstream_st& target = stream == nullptr ? cuda::default_stream() : *stream;
  if (target.recording != nullptr) {
    target.recording->steps.push_back({std::move(work), std::move(begin), target.after});
    target.after = {target.recording->steps.size() - 1};
    if (&target != target.recording->origin) {
      target.recording->unjoined.insert(&target);
    }
  } else {
    const auto body = [work = std::move(work)] {
      work();
      return true;
    };
    Worker::instance().enqueue(target, body, std::move(begin));
  }
}

}  // namespace

void submit(CUstream_st* stream, std::function<void()> work) { submit(stream, std::move(work), nullptr); }

void submit(CUstream_st* stream, const Launch& launch, std::function<void()> body) {
  const auto kernel = std::make_shared<Kernel>(launch, std::move(body));
  submit(stream, [kernel] { kernel->run(); }, launch.early ? [kernel] { kernel->begin(); } : std::function<void()>());
}

}  // namespace dlf::emulation
