#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "emulation/vector_types.h"

struct CUstream_st;

// Shape of the running kernel. threadIdx and blockIdx differ between threads, so they are macros.
extern dim3 blockDim;
extern dim3 gridDim;

// Runs CUDA kernels on the host so that they can be tested without a GPU. Each thread of a block is a fiber; the blocks
// of a cluster run together, one cluster after the other. A thread runs until it has to wait for others, so without a
// barrier threads get far out of step: a missing barrier gives different results in different orders.
namespace dlf::emulation {

// ---- the order, chosen by tests

enum class Order { forward, backward, random };

// Sets the order in which threads, blocks, the work of several queues and the steps of a graph take turns. The initial
// order is that of the environment's DLF_EMULATION_ORDER=forward|backward|<seed>. The initial content of shared memory
// depends on the order too, so kernels that read unwritten memory also give different results.
void set_order(Order order, uint64_t seed = 0);

// ---- called by kernels, through the headers in include/

struct Place {
  uint3 thread;
  uint3 block;
};
extern const Place* place;  // place of the running thread

void* shared_memory();

struct Votes {
  int yes;
  int all;
};
Votes synchronize_block(bool vote);

// Waits until all lanes of the mask have offered a value; returns this lane's result of the exchange.
struct Offer {
  uint64_t value;
  int source;  // the lane whose value is wanted, if the exchange needs one
  uint64_t received;
};
using Exchange = void (*)(Offer* offers, unsigned lanes);
uint64_t meet_warp(unsigned mask, Exchange exchange, uint64_t value, int source);
unsigned present_lanes();  // lanes of the warp that have not ended
void yield();              // lets other threads run
void pause();              // lets other warps run, for a lane that waits for one of them

void await_inputs();  // in a kernel that starts early: waits until the previous kernel has ended

void arrive_cluster();
void wait_cluster();
unsigned cluster_blocks();
unsigned cluster_rank();
void* map_shared(void* pointer, unsigned rank);

[[noreturn]] void fail(const char* problem);  // in a kernel: ends it with an error

// ---- launches

struct Launch {
  const void* kernel;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  unsigned cluster;  // blocks along x
  bool early;        // whether it may start while the previous kernel runs
};

bool valid(const Launch& launch);  // whether the hardware would accept it

class Machine;

// A kernel launch that may run several times. Errors are std::runtime_error.
class Kernel {
 public:
  Kernel(const Launch& launch, std::function<void()> body);
  ~Kernel();

  void begin();  // runs its first blocks as far as they can before the previous kernel; only for early kernels
  void run();    // runs all of it, or the rest after begin()

 private:
  Launch launch_;
  std::function<void()> body_;
  std::unique_ptr<Machine> begun_;
};

// Puts work on a stream (runtime.cc).
void submit(CUstream_st* stream, std::function<void()> work);
void submit(CUstream_st* stream, const Launch& launch, std::function<void()> body);

}  // namespace dlf::emulation
