#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/cuda/stream.h"

// The CUDA runtime as the engine sees it. Two implementations: runtime.cc on a GPU, and one for tests that runs
// everything at once on the host (tests/cuda_emulation).
namespace dlf::cuda {

// Of CUDA, that this was built with; empty in a build without.
std::string version();

struct DeviceInfo {
  int index;
  std::string name;
  int64_t total_bytes;
  int64_t free_bytes;
  int compute_capability;  // 90 is 9.0
  int multiprocessors;
};

// Devices that this process sees; none where there is no driver.
std::vector<DeviceInfo> devices();

// Where tensors of a device lie.
at::TensorOptions on_device(int device);
// Host memory that the device can read and write while the host does.
at::Tensor pinned(at::IntArrayRef shape, at::ScalarType type);

// Makes a device current while it lives: kernels can be launched on its streams then.
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

// A stream of a device, and what runs on it in order. Not the default stream.
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
  // The same, for operators that only work on what is on the device: nothing of them is there when this returns.
  void enqueue(std::function<void()> body);

  // Bytes between host and device, or between devices, in order. Host memory must be pinned or the copy is not
  // asynchronous.
  void copy(void* to, const void* from, int64_t bytes);
  void clear(void* to, int64_t bytes);

  void wait(const Event& event);  // what comes later waits; the host does not
  void synchronize();             // the host waits for all of it
  bool finished() const;          // nothing of it is left to do; throws what went wrong on the device

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

// What was done on a queue, and on queues that it waited for, to be done again with one call.
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

// y = x W^T for many rows, by the matrix library. x [rows, in] and W [out, in] have one type; y has it too, or is
// float32. y's rows may lie further apart than they are long.
void matmul(const at::Tensor& x, const at::Tensor& weight, at::Tensor& y);

// y = attention of the last tokens of a prompt, q and y [rows, heads, head_dim], over what they see of keys and values
// [kv_heads, end, head_dim]: all before, or the last `window` positions where that is not 0; `scale` multiplies the
// scores. False where the attention library has no kernel for it.
bool prompt_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window,
                      double scale, const at::Tensor& y);

}  // namespace dlf::cuda
