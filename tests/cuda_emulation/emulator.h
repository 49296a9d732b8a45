#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "emulation/vector_types.h"

struct CUstream_st;

// Of the kernel that runs. threadIdx and blockIdx differ between threads, so they are macros.
extern dim3 blockDim;
extern dim3 gridDim;

// Runs CUDA kernels on the host so that they can be tested without a GPU. Each thread of a block is a fiber; the blocks
// of a cluster run together, one cluster after the other. A thread runs until it has to wait for others, so threads
// that should have waited are far out of step: a missing barrier gives another answer in another order.
namespace dlf::emulation {

// ---- what tests choose

enum class Order { forward, backward, random };

// In what order threads, blocks, the work of several queues and the steps of a graph take their turns, from now on; the
// environment's DLF_EMULATION_ORDER=forward|backward|<seed> says what it is at first. What shared memory holds at first
// also depends on it, so kernels that read what nothing wrote give different answers too.
void set_order(Order order, uint64_t seed = 0);

// ---- what a kernel sees, through the headers in include/

struct Place {
  uint3 thread;
  uint3 block;
};
extern const Place* place;  // of the thread that runs

void* shared_memory();

struct Votes {
  int yes;
  int all;
};
Votes synchronize_block(bool vote);

// Waits until all lanes of the mask have offered a value, and gives what the exchange made of them for this lane.
struct Offer {
  uint64_t value;
  int source;  // the lane whose value is wanted, where it matters
  uint64_t received;
};
using Exchange = void (*)(Offer* offers, unsigned lanes);
uint64_t meet_warp(unsigned mask, Exchange exchange, uint64_t value, int source);
unsigned present_lanes();  // of the warp: those that have not ended
void yield();              // lets others run
void pause();              // lets other warps run, for a lane that waits for what one of them does

void await_inputs();  // of a kernel that starts early: waits until the one before it has ended

void arrive_cluster();
void wait_cluster();
unsigned cluster_blocks();
unsigned cluster_rank();
void* map_shared(void* pointer, unsigned rank);

[[noreturn]] void fail(const char* problem);  // from inside a kernel: ends it with an error

// ---- what a launch is made of

struct Launch {
  const void* kernel;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  unsigned cluster;  // blocks along x
  bool early;        // whether it may start while the kernel before it runs
};

bool valid(const Launch& launch);  // whether the hardware would take it

class Machine;

// A kernel to be run, more than once if need be. What goes wrong is a std::runtime_error.
class Kernel {
 public:
  Kernel(const Launch& launch, std::function<void()> body);
  ~Kernel();

  void begin();  // runs its first blocks as far as they come without the kernel before; not called if it isn't early
  void run();    // all of it, or what begin() has left

 private:
  Launch launch_;
  std::function<void()> body_;
  std::unique_ptr<Machine> begun_;
};

// Puts work on a stream (runtime.cc).
void submit(CUstream_st* stream, std::function<void()> work);
void submit(CUstream_st* stream, const Launch& launch, std::function<void()> body);

}  // namespace dlf::emulation
