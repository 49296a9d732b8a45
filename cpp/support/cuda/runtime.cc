#include "support/cuda/runtime.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/PeerToPeerAccess.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

namespace dlf::cuda {
namespace {

// Makes torch's CUDA state (allocators, handles of the libraries), which Python does at its first use of CUDA. A second
// call costs nothing.
void initialize() { at::globalContext().lazyInitDevice(at::kCUDA); }

c10::cuda::CUDAStream stream_from_pool(int device) {
  initialize();
  return c10::cuda::getStreamFromPool(/*isHighPriority=*/false, static_cast<c10::DeviceIndex>(device));
}

DeviceInfo describe(int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  cudaDeviceProp properties = {};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  size_t free = 0;
  size_t total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  // Memory that torch holds unused is as good as free.
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const int64_t cached = stats.reserved_bytes[kAll].current - stats.active_bytes[kAll].current;
  return {device,
          properties.name,
          static_cast<int64_t>(total),
          static_cast<int64_t>(free) + cached,
          10 * properties.major + properties.minor,
          properties.multiProcessorCount};
}

}  // namespace

std::string version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> found;
  const int count = c10::cuda::device_count();  // 0 without a driver
  if (count > 0) {
    initialize();
  }
  for (int device = 0; device < count; ++device) {
    found.push_back(describe(device));
  }
  return found;
}

at::TensorOptions on_device(int device) {
  return at::TensorOptions().device(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
}

// Pinned memory is mapped at the same address on every device.
at::Tensor pinned(at::IntArrayRef shape, at::ScalarType type) {
  initialize();
  return at::empty(shape, at::TensorOptions().dtype(type).pinned_memory(true));
}

DeviceGuard::DeviceGuard(int device) : before_(c10::cuda::current_device()) {
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
}

DeviceGuard::~DeviceGuard() { C10_CUDA_CHECK_WARN(cudaSetDevice(before_)); }

struct Queue::State {
  c10::cuda::CUDAStream stream;
};

// The streams of the pool live as long as the process, as do the workspaces that cuBLAS keeps for each.
Queue::Queue(int device) : device_(device), state_(new State{stream_from_pool(device)}) {}
Queue::~Queue() = default;

Stream Queue::stream() const { return state_->stream.stream(); }

void Queue::run(const std::function<void()>& body) {
  const c10::cuda::CUDAStreamGuard guard(state_->stream);  // makes its device current, too
  const at::NoGradGuard no_grad;
  body();
}

void Queue::enqueue(std::function<void()> body) { run(body); }

void Queue::copy(void* to, const void* from, int64_t bytes) {
  const c10::cuda::CUDAGuard guard(state_->stream.device());
  C10_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream()));
}

void Queue::clear(void* to, int64_t bytes) {
  const c10::cuda::CUDAGuard guard(state_->stream.device());
  C10_CUDA_CHECK(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream()));
}

struct Event::State {
  c10::DeviceIndex device;
  cudaEvent_t event = nullptr;
};

Event::Event(int device) : state_(new State{static_cast<c10::DeviceIndex>(device)}) {
  const c10::cuda::CUDAGuard guard(state_->device);
  C10_CUDA_CHECK(cudaEventCreateWithFlags(&state_->event, cudaEventDisableTiming));
}

Event::~Event() { C10_CUDA_CHECK_WARN(cudaEventDestroy(state_->event)); }

void Event::record(Queue& queue) {
  const c10::cuda::CUDAGuard guard(state_->device);
  C10_CUDA_CHECK(cudaEventRecord(state_->event, queue.stream()));
}

void Queue::wait(const Event& event) {
  const c10::DeviceIndex other = event.state_->device;
  if (other != device_) {
    // A copy between the two devices comes next; asking for access grants it, if the hardware has it.
    at::cuda::get_p2p_access(static_cast<c10::DeviceIndex>(device_), other);
    at::cuda::get_p2p_access(other, static_cast<c10::DeviceIndex>(device_));
  }
  const c10::cuda::CUDAGuard guard(state_->stream.device());
  C10_CUDA_CHECK(cudaStreamWaitEvent(stream(), event.state_->event));
}

void Queue::synchronize() { state_->stream.synchronize(); }

bool Queue::finished() const { return state_->stream.query(); }

// at::cuda::CUDAGraph tells torch's allocator, so that memory that an operator takes for itself during the capture
// stays the graph's.
struct Graph::State {
  std::unique_ptr<at::cuda::CUDAGraph> graph;
};

Graph::Graph() : state_(new State) {}
Graph::~Graph() = default;

void Graph::capture(Queue& queue, const std::function<void()>& body) {
  queue.run([&] {
    state_->graph = std::make_unique<at::cuda::CUDAGraph>();
    // Other threads may go on with other engines meanwhile; a forbidden call of this one is still an error.
    state_->graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    try {
      body();
    } catch (...) {
      try {
        state_->graph->capture_end();
      } catch (const std::exception&) {  // follows from the first error
      }
      state_->graph.reset();
      throw;
    }
    state_->graph->capture_end();
    // Does now what the first launch would otherwise do.
    C10_CUDA_CHECK(cudaGraphUpload(state_->graph->raw_cuda_graph_exec(), queue.stream()));
  });
}

// Avoids CUDAGraph::replay, which adds launches of its own for torch's random numbers.
void Graph::replay(Queue& queue) {
  TORCH_INTERNAL_ASSERT(state_->graph, "replay() of a graph that was not captured");
  const c10::cuda::CUDAGuard guard(queue.state_->stream.device());
  C10_CUDA_CHECK(cudaGraphLaunch(state_->graph->raw_cuda_graph_exec(), queue.stream()));
}

void matmul(const at::Tensor& x, const at::Tensor& weight, at::Tensor& y) {
  if (y.scalar_type() == x.scalar_type()) {
    at::mm_out(y, x, weight.t());
  } else {
    at::mm_out(y, x, weight.t(), y.scalar_type());
  }
}

// Avoids scaled_dot_product_attention, which may choose cuDNN: that compiles a plan for every new pair of lengths.
bool prompt_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window,
                      double scale, const at::Tensor& y) {
  constexpr int64_t kVector = 8;
  if (q.scalar_type() == at::kFloat || q.size(2) % kVector != 0) {
    return false;
  }
  const int64_t before = window > 0 ? window - 1 : -1;  // positions that a token sees before itself; -1: all
  const at::Tensor attended = std::get<0>(at::_flash_attention_forward(
      q.unsqueeze(0), keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0), /*cum_seq_q=*/{},
      /*cum_seq_k=*/{}, q.size(0), keys.size(1), /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false,
      scale, before, /*window_size_right=*/0));
  y.copy_(attended.squeeze(0));
  return true;
}

}  // namespace dlf::cuda
