#include "emulator.h"

#include <bit>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "kernel_name.h"
#include "order.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

dim3 blockDim;
dim3 gridDim;

namespace dlf::emulation {

const Place* place = nullptr;

namespace {

constexpr unsigned kLanes = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxBlockDepth = 64;
constexpr unsigned kMaxGridSide = 65535;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr unsigned kMaxCluster = 16;
constexpr size_t kGuardBytes = 128;  // after each block's shared memory; also its alignment
constexpr unsigned char kGuard = 0xa5;

struct Block;

struct Thread {
  Place place;
  Block* block;
  unsigned warp;  // within the cluster
  unsigned lane;
  unsigned cluster_phase;  // cluster barriers at which it has arrived
  bool awaited;            // whether it has called await_inputs()
  Fiber fiber;
};

// The lanes of a warp; sets of lanes are bit masks.
struct Warp {
  unsigned first_thread;  // within the cluster
  unsigned ready;
  unsigned ended;  // includes lanes that the block does not have
  unsigned meeting;
  unsigned at_block_barrier;
  unsigned at_cluster_barrier;
  unsigned at_inputs;      // lanes that wait for the previous kernel
  unsigned paused;         // lanes that let other warps run first
  unsigned masks[kLanes];  // masks of the meeting lanes
  Exchange exchanges[kLanes];
  Offer offers[kLanes];
};

struct Block {
  unsigned first_warp;  // within the cluster
  unsigned rank;
  unsigned arrived;
  unsigned ended;
  int votes;
  Votes result;
  unsigned char* shared;
};

}  // namespace

// Runs a kernel, one cluster after the other.
class Machine {
 public:
  void start(const Launch& launch, const std::function<void()>& body);
  void run_ahead();  // runs the first cluster as far as it can before the previous kernel
  void finish();

  Thread& current() { return *current_; }
  Votes synchronize_block(bool vote);
  uint64_t meet_warp(unsigned mask, Exchange exchange, uint64_t value, int source);
  unsigned present_lanes() { return ~warps_[current_->warp].ended; }
  void yield();
  void pause();
  void await_inputs();
  void arrive_cluster();
  void wait_cluster();
  unsigned cluster_blocks() const { return launch_->cluster; }
  void* map_shared(void* pointer, unsigned rank);
  [[noreturn]] void fail(const char* problem);

 private:
  void enter();
  void prepare(uint64_t cluster);
  bool run_turn();
  void prepare_shared_memory();
  void run_warp(unsigned warp);
  bool take_lane(Warp& warp);
  void suspend();
  void try_to_meet(Warp& warp, unsigned mask, Exchange exchange);
  void try_to_pass_block_barrier(Block& block);
  void try_to_pass_cluster_barrier();
  void end(Thread& thread);
  void end(Block& block);
  std::string describe(const uint3& block, const std::string& problem) const;
  std::string describe_deadlock() const;
  static void thread_main();

  const Launch* launch_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Schedule schedule_;
  std::vector<uint64_t> order_;  // order of the clusters
  bool begun_ = false;           // whether run_ahead() has begun the first cluster
  bool inputs_are_there_ = false;
  unsigned last_warp_ = 0;
  unsigned turn_ = 0;  // lanes of it that have yet to run, in a random order
  bool block_by_block_ = false;
  std::vector<std::unique_ptr<Thread>> threads_;  // pointers, since a fiber must not move
  std::vector<Warp> warps_;
  std::vector<Block> blocks_;
  std::unique_ptr<unsigned char[]> shared_;
  size_t shared_stride_ = 0;
  unsigned threads_per_block_ = 0;
  unsigned warps_per_block_ = 0;
  unsigned ended_ = 0;
  unsigned cluster_arrived_ = 0;
  unsigned cluster_phase_ = 0;
  bool barrier_passed_ = false;  // whether a barrier of a block or of the cluster was passed in this turn
  Thread* current_ = nullptr;
  uint3 first_block_ = {};  // first block of the running cluster
  std::string problem_;
};

namespace {

Machine* machine = nullptr;                      // the running one
std::vector<std::unique_ptr<Machine>> machines;  // idle ones, kept for their threads' stacks
std::mutex machine_mutex;

std::unique_ptr<Machine> take_machine() {
  if (machines.empty()) {
    return std::make_unique<Machine>();
  }
  std::unique_ptr<Machine> taken = std::move(machines.back());
  machines.pop_back();
  return taken;
}

}  // namespace

void Machine::start(const Launch& launch, const std::function<void()>& body) {
  launch_ = &launch;
  body_ = &body;
  schedule_ = Schedule();
  begun_ = false;
  threads_per_block_ = launch.block.x * launch.block.y * launch.block.z;
  warps_per_block_ = (threads_per_block_ + kLanes - 1) / kLanes;
  blocks_.assign(launch.cluster, Block{});
  warps_.assign(launch.cluster * warps_per_block_, Warp{});
  while (threads_.size() < launch.cluster * threads_per_block_) {
    threads_.push_back(std::make_unique<Thread>());
  }
  prepare_shared_memory();
  order_ = schedule_.permutation(uint64_t{launch.grid.x} / launch.cluster * launch.grid.y * launch.grid.z);
}

void Machine::enter() {
  machine = this;
  blockDim = launch_->block;
  gridDim = launch_->grid;
}

void Machine::run_ahead() {
  enter();
  begun_ = true;
  inputs_are_there_ = false;
  prepare(order_[0]);
  while (run_turn()) {
  }
  unsigned waiting = 0;
  for (const Warp& warp : warps_) {
    waiting += std::popcount(warp.at_inputs);
  }
  if (waiting < launch_->cluster * threads_per_block_) {
    throw std::runtime_error(describe(first_block_,
                                      "a thread of a kernel that starts early waits for another, or "
                                      "ends, before it calls await_inputs()"));
  }
}

void Machine::finish() {
  enter();
  inputs_are_there_ = true;
  for (size_t i = 0; i < order_.size(); ++i) {
    if (i > 0 || !begun_) {
      prepare(order_[i]);
    }
    for (Warp& warp : warps_) {
      warp.ready |= warp.at_inputs;
      warp.at_inputs = 0;
    }
    while (ended_ < launch_->cluster * threads_per_block_) {
      if (!run_turn()) {
        throw std::runtime_error(describe(first_block_, describe_deadlock()));
      }
    }
  }
}

void Machine::prepare_shared_memory() {
  const size_t rounded = (launch_->shared_bytes + kGuardBytes - 1) / kGuardBytes * kGuardBytes;
  shared_stride_ = rounded + kGuardBytes;
  shared_.reset(new unsigned char[launch_->cluster * shared_stride_ + kGuardBytes]);
  const auto address = reinterpret_cast<uintptr_t>(shared_.get());
  unsigned char* aligned = shared_.get() + (kGuardBytes - address % kGuardBytes) % kGuardBytes;
  for (unsigned rank = 0; rank < launch_->cluster; ++rank) {
    unsigned char* shared = aligned + rank * shared_stride_;
    blocks_[rank].shared = shared;
    std::memset(shared + launch_->shared_bytes, kGuard, shared_stride_ - launch_->shared_bytes);
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(shared + launch_->shared_bytes, shared_stride_ - launch_->shared_bytes);
#endif
  }
}

void Machine::prepare(uint64_t cluster) {
  const uint64_t row = launch_->grid.x / launch_->cluster;
  first_block_.x = static_cast<unsigned>(cluster % row) * launch_->cluster;
  first_block_.y = static_cast<unsigned>(cluster / row % launch_->grid.y);
  first_block_.z = static_cast<unsigned>(cluster / row / launch_->grid.y);
  problem_.clear();
  ended_ = 0;
  cluster_arrived_ = 0;
  cluster_phase_ = 0;
  const unsigned last_lanes = threads_per_block_ - (warps_per_block_ - 1) * kLanes;
  unsigned thread_index = 0;
  for (unsigned rank = 0; rank < launch_->cluster; ++rank) {
    unsigned char* shared = blocks_[rank].shared;
    std::memset(shared, schedule_.poison(), launch_->shared_bytes);
    blocks_[rank] = Block{rank * warps_per_block_, rank, 0, 0, 0, {}, shared};
    for (unsigned index = 0; index < threads_per_block_; ++index, ++thread_index) {
      Thread& thread = *threads_[thread_index];
      thread.place.thread = {index % launch_->block.x, index / launch_->block.x % launch_->block.y,
                             index / launch_->block.x / launch_->block.y};
      thread.place.block = {first_block_.x + rank, first_block_.y, first_block_.z};
      thread.block = &blocks_[rank];
      thread.warp = rank * warps_per_block_ + index / kLanes;
      thread.lane = index % kLanes;
      thread.cluster_phase = 0;
      thread.awaited = false;
      thread.fiber.start(&Machine::thread_main);
    }
    for (unsigned index = 0; index < warps_per_block_; ++index) {
      Warp& warp = warps_[rank * warps_per_block_ + index];
      warp.first_thread = rank * threads_per_block_ + index * kLanes;
      const bool partial = index + 1 == warps_per_block_ && last_lanes < kLanes;
      warp.ready = partial ? (1U << last_lanes) - 1 : ~0U;
      warp.ended = ~warp.ready;
      warp.meeting = warp.at_block_barrier = warp.at_cluster_barrier = warp.at_inputs = warp.paused = 0;
    }
  }
  last_warp_ = schedule_.before_first(warps_.size());
  // In half of the random orders a block runs as far as it can before another does. This shows a block that overwrites
  // memory before its neighbours have read it.
  block_by_block_ = schedule_.is_random() && schedule_.random() % 2 == 0;
}

// Runs one warp; false if none can run.
bool Machine::run_turn() {
  const unsigned block = last_warp_ / warps_per_block_;
  unsigned warp = warps_.size();
  if (block_by_block_) {
    warp = schedule_.next(last_warp_, warps_.size(), [&](unsigned index) {
      return warps_[index].ready != 0 && index / warps_per_block_ == block;
    });
  }
  if (warp == warps_.size()) {
    warp = schedule_.next(last_warp_, warps_.size(), [&](unsigned index) { return warps_[index].ready != 0; });
  }
  if (warp == warps_.size()) {
    return false;
  }
  last_warp_ = warp;
  run_warp(warp);
  return true;
}

// Runs the lanes of a warp until all wait or a barrier opens; in a random order, each ready lane once.
void Machine::run_warp(unsigned index) {
  Warp& warp = warps_[index];
  barrier_passed_ = false;
  turn_ = warp.ready;
  while (take_lane(warp)) {
    current_->fiber.resume();
    if (!problem_.empty()) {
      throw std::runtime_error(describe(current_->place.block, problem_));
    }
  }
  warp.ready |= warp.paused;
  warp.paused = 0;
}

// Makes the next lane of the warp's turn the current one; false if the turn is over.
bool Machine::take_lane(Warp& warp) {
  const unsigned left = schedule_.is_random() ? turn_ : warp.ready;
  if (left == 0 || barrier_passed_) {
    return false;
  }
  const unsigned lane = schedule_.lane(left);
  turn_ = left & ~(1U << lane);
  warp.ready &= ~(1U << lane);
  current_ = threads_[warp.first_thread + lane].get();
  place = &current_->place;
  return true;
}

// Runs the next lane at once: a detour over run_warp() would double the switches of a warp that exchanges values.
void Machine::suspend() {
  Thread& thread = *current_;
  if (!take_lane(warps_[thread.warp])) {
    thread.fiber.suspend();
  } else if (current_ != &thread) {
    thread.fiber.suspend(current_->fiber);
  }
}

void Machine::thread_main() {
  try {
    (*machine->body_)();
  } catch (const std::exception& error) {
    machine->problem_ = std::string("exception: ") + error.what();
  }
  machine->end(machine->current());
  machine->current().fiber.finish();
}

void Machine::yield() {
  warps_[current_->warp].ready |= 1U << current_->lane;
  suspend();
}

void Machine::pause() {
  warps_[current_->warp].paused |= 1U << current_->lane;
  suspend();
}

void Machine::await_inputs() {
  current_->awaited = true;
  if (!inputs_are_there_) {
    warps_[current_->warp].at_inputs |= 1U << current_->lane;
    suspend();
  }
}

// Leaves the thread's frames without unwinding: destructors of their objects do not run.
void Machine::fail(const char* problem) {
  problem_ = problem;
  current_->fiber.finish();
  __builtin_trap();
}

// ---- warps

uint64_t Machine::meet_warp(unsigned mask, Exchange exchange, uint64_t value, int source) {
  Thread& thread = *current_;
  Warp& warp = warps_[thread.warp];
  const unsigned bit = 1U << thread.lane;
  if ((mask & bit) == 0) {
    fail("a lane calls a warp collective with a mask that does not include it");
  }
  warp.masks[thread.lane] = mask;
  warp.exchanges[thread.lane] = exchange;
  warp.offers[thread.lane] = {value, source, 0};
  warp.meeting |= bit;
  try_to_meet(warp, mask, exchange);
  if ((warp.ready & bit) == 0) {
    suspend();
  } else {
    warp.ready &= ~bit;  // the last lane to arrive need not wait
  }
  return warp.offers[thread.lane].received;
}

void Machine::try_to_meet(Warp& warp, unsigned mask, Exchange exchange) {
  const unsigned lanes = mask & ~warp.ended;
  if ((lanes & ~warp.meeting) != 0) {
    return;
  }
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    const unsigned lane = std::countr_zero(left);
    if (warp.masks[lane] != mask || warp.exchanges[lane] != exchange) {
      return;  // these lanes never meet: a deadlock
    }
  }
  if (exchange != nullptr) {
    exchange(warp.offers, lanes);
  }
  warp.meeting &= ~lanes;
  warp.ready |= lanes;
}

// ---- blocks

Votes Machine::synchronize_block(bool vote) {
  Thread& thread = *current_;
  Block& block = *thread.block;
  Warp& warp = warps_[thread.warp];
  const unsigned bit = 1U << thread.lane;
  ++block.arrived;
  block.votes += vote;
  warp.at_block_barrier |= bit;
  try_to_pass_block_barrier(block);
  suspend();  // the last thread to arrive waits for its turn too, so that others get ahead of it
  return block.result;
}

void Machine::try_to_pass_block_barrier(Block& block) {
  if (block.arrived == 0 || block.arrived + block.ended < threads_per_block_) {
    return;
  }
  block.result = {block.votes, static_cast<int>(block.arrived)};
  block.arrived = 0;
  block.votes = 0;
  barrier_passed_ = true;
  for (unsigned index = block.first_warp; index < block.first_warp + warps_per_block_; ++index) {
    warps_[index].ready |= warps_[index].at_block_barrier;
    warps_[index].at_block_barrier = 0;
  }
}

// ---- clusters

void Machine::arrive_cluster() {
  if (current_->cluster_phase != cluster_phase_) {
    fail("a thread arrives twice at the cluster's barrier without waiting");
  }
  ++current_->cluster_phase;
  ++cluster_arrived_;
  try_to_pass_cluster_barrier();
}

void Machine::wait_cluster() {
  Thread& thread = *current_;
  if (thread.cluster_phase > cluster_phase_) {
    warps_[thread.warp].at_cluster_barrier |= 1U << thread.lane;
    suspend();
  } else {
    yield();
  }
}

void Machine::try_to_pass_cluster_barrier() {
  if (cluster_arrived_ == 0 || cluster_arrived_ + ended_ < launch_->cluster * threads_per_block_) {
    return;
  }
  cluster_arrived_ = 0;
  ++cluster_phase_;
  barrier_passed_ = true;
  for (Warp& warp : warps_) {
    warp.ready |= warp.at_cluster_barrier;
    warp.at_cluster_barrier = 0;
  }
}

void* Machine::map_shared(void* pointer, unsigned rank) {
  const Block& block = *current_->block;
  if (rank >= blocks_.size()) {
    fail("map_shared_rank: the cluster has no block of this rank");
  }
  const auto offset = static_cast<unsigned char*>(pointer) - block.shared;
  if (offset < 0 || static_cast<size_t>(offset) >= launch_->shared_bytes) {
    fail("map_shared_rank: the pointer is outside the block's shared memory");
  }
  return blocks_[rank].shared + offset;
}

// ---- the end

void Machine::end(Thread& thread) {
  Warp& warp = warps_[thread.warp];
  Block& block = *thread.block;
  if (thread.fiber.overflowed()) {
    problem_ = "a thread needs more stack than the emulator gives it";
  }
  if (launch_->early && !thread.awaited) {
    problem_ = "a thread of a kernel that starts early ends without await_inputs()";
  }
  warp.ended |= 1U << thread.lane;
  ++block.ended;
  ++ended_;
  for (unsigned lanes = warp.meeting; lanes != 0; lanes &= warp.meeting & (lanes - 1)) {
    const unsigned lane = std::countr_zero(lanes);
    try_to_meet(warp, warp.masks[lane], warp.exchanges[lane]);
  }
  try_to_pass_block_barrier(block);
  if (thread.cluster_phase > cluster_phase_) {
    --cluster_arrived_;  // it arrived without waiting, and counts as ended now
  }
  try_to_pass_cluster_barrier();
  if (block.ended == threads_per_block_) {
    end(block);
  }
}

// Overwrites the block's shared memory, so that a neighbour that reads it without a last barrier gets wrong values.
void Machine::end(Block& block) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(block.shared, shared_stride_);
#endif
  for (size_t i = launch_->shared_bytes; i < shared_stride_; ++i) {
    if (block.shared[i] != kGuard) {
      problem_ = "a write beyond the " + std::to_string(launch_->shared_bytes) + " bytes of shared memory";
    }
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(block.shared + launch_->shared_bytes, shared_stride_ - launch_->shared_bytes);
#endif
  std::memset(block.shared, schedule_.poison(), launch_->shared_bytes);
}

std::string Machine::describe(const uint3& block, const std::string& problem) const {
  return "kernel " + kernel_name(launch_->kernel) + ", block (" + std::to_string(block.x) + ", " +
         std::to_string(block.y) + ", " + std::to_string(block.z) + "): " + problem;
}

std::string Machine::describe_deadlock() const {
  unsigned warp_lanes = 0;
  unsigned block_lanes = 0;
  unsigned cluster_lanes = 0;
  for (const Warp& warp : warps_) {
    warp_lanes += std::popcount(warp.meeting);
    block_lanes += std::popcount(warp.at_block_barrier);
    cluster_lanes += std::popcount(warp.at_cluster_barrier);
  }
  return "deadlock: of " + std::to_string(launch_->cluster * threads_per_block_) + " threads " +
         std::to_string(ended_) + " have ended, " + std::to_string(warp_lanes) + " wait for their warp, " +
         std::to_string(block_lanes) + " for their block, " + std::to_string(cluster_lanes) + " for their cluster";
}

bool valid(const Launch& launch) {
  const dim3& grid = launch.grid;
  const dim3& block = launch.block;
  if (block.x == 0 || block.y == 0 || block.z == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return false;
  }
  return block.x <= kMaxThreads && block.y <= kMaxThreads && block.z <= kMaxBlockDepth &&
         block.x * block.y * block.z <= kMaxThreads && grid.x <= INT32_MAX && grid.y <= kMaxGridSide &&
         grid.z <= kMaxGridSide && launch.shared_bytes <= kMaxSharedBytes && launch.cluster >= 1 &&
         launch.cluster <= kMaxCluster && grid.x % launch.cluster == 0;
}

Kernel::Kernel(const Launch& launch, std::function<void()> body) : launch_(launch), body_(std::move(body)) {}
Kernel::~Kernel() = default;

void Kernel::begin() {
  const std::lock_guard lock(machine_mutex);
  begun_ = take_machine();
  begun_->start(launch_, body_);
  begun_->run_ahead();
}

void Kernel::run() {
  const std::lock_guard lock(machine_mutex);
  std::unique_ptr<Machine> used = std::move(begun_);
  if (used == nullptr) {
    used = take_machine();
    used->start(launch_, body_);
  }
  used->finish();
  machines.push_back(std::move(used));
}

void* shared_memory() { return machine->current().block->shared; }
Votes synchronize_block(bool vote) { return machine->synchronize_block(vote); }
uint64_t meet_warp(unsigned mask, Exchange exchange, uint64_t value, int source) {
  return machine->meet_warp(mask, exchange, value, source);
}
unsigned present_lanes() { return machine->present_lanes(); }
void yield() { machine->yield(); }
void pause() { machine->pause(); }
void await_inputs() { machine->await_inputs(); }
void arrive_cluster() { machine->arrive_cluster(); }
void wait_cluster() { machine->wait_cluster(); }
unsigned cluster_blocks() { return machine->cluster_blocks(); }
unsigned cluster_rank() { return machine->current().block->rank; }
void* map_shared(void* pointer, unsigned rank) { return machine->map_shared(pointer, rank); }
void fail(const char* problem) { machine->fail(problem); }

}  // namespace dlf::emulation
