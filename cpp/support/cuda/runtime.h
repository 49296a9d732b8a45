#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/cuda/stream.h"

// The CUDA runtime as the engine sees it. It has two implementations: runtime.cc for a GPU, and one for tests that
// works on the host (tests/cuda_emulation).
namespace dlf::cuda {

// CUDA version of this build; empty without CUDA.
std::string version();

struct DeviceInfo {
  int index;
  std::string name;
  int64_t total_bytes;
  int64_t free_bytes;
  int compute_capability;  // 90 is 9.0
  int multiprocessors;
};

// Devices that this process sees; none without a driver.
std::vector<DeviceInfo> devices();

// Options of tensors on a device.
at::TensorOptions on_device(int device);
// Host memory that the device can read and write while the host does.
at::Tensor pinned(at::IntArrayRef shape, at::ScalarType type);

// Makes a device current while it lives, so that kernels can be launched on its streams.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

class Event;

// A stream of a device, other than the default one; its work runs in order.
class Queue {
 public:
  explicit Queue(int device);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  int device() const { return device_; }
  Stream stream() const;

  // Runs body with this device and stream current, so that torch's operators use them too.
  void run(const std::function<void()>& body);
  // The same, for operators on device memory alone; they may not have run when this returns.
  void enqueue(std::function<void()> body);

  // Copies bytes between host and device, or between devices, in order. The copy is asynchronous only if the host
  // memory is pinned.
  void copy(void* to, const void* from, int64_t bytes);
  void clear(void* to, int64_t bytes);

  void wait(const Event& event);  // later work waits; the host does not
  void synchronize();             // the host waits for all queued work
  bool finished() const;          // whether no work is left; throws what went wrong on the device

 private:
  friend class Event;
  friend class Graph;
  struct State;
  int device_;
  std::unique_ptr<State> state_;
};

// A point in a queue.
class Event {
 public:
  explicit Event(int device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Queue& queue);

 private:
  friend class Queue;
  struct State;
  std::unique_ptr<State> state_;
};

// Recorded work of a queue, and of queues that it waited for, to be done again with one call.
class Graph {
 public:
  Graph();
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void capture(Queue& queue, const std::function<void()>& body);  // records body's work without doing it
  void replay(Queue& queue);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Computes y = x W^T for many rows, by the matrix library. x [rows, in] and W [out, in] have one type; y has it too, or
// is float32. The rows of y may be further apart than they are long.
void matmul(const at::Tensor& x, const at::Tensor& weight, at::Tensor& y);

// Computes y = attention of the last tokens of a prompt, q and y [rows, heads, head_dim], over keys and values
// [kv_heads, end, head_dim]: over all positions up to each token, or the last `window` of them if that is not 0;
// `scale` multiplies the scores. Returns false if the attention library has no kernel for it.
bool prompt_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window,
                      double scale, const at::Tensor& y);

}  // namespace dlf::cuda
