#pragma once

#include "support/cuda/stream.h"

// Kernels that try the emulator, and some that are wrong on purpose.
namespace dlf::cuda::testing {

struct SumArgs {
  const float* x;  // [blocks, count]
  float* sums;     // [blocks], or [blocks / cluster] for the cluster's
  int blocks;
  int count;
  int threads = 128;
};
void block_sum(const SumArgs& args, Stream stream);
void cluster_sum(const SumArgs& args, int cluster, bool last_barrier, Stream stream);

// Rotates 128 numbers by one through shared memory; wrong without the barrier.
void rotate(const int* x, int* y, bool barrier, Stream stream);
// Rotates 32 numbers by one through shared memory, with the warp's barrier or without.
void rotate_warp(const int* x, int* y, bool barrier, Stream stream);

void half_waits_for_block(Stream stream);  // a deadlock
void half_waits_for_warp(Stream stream);   // another
void lane_outside_its_mask(Stream stream);
void write_beyond_shared_memory(Stream stream);
void read_unwritten(float* y, Stream stream);  // y[0] is what shared memory held

// y[i] = what thread i of 96 learns: threads from `alive` on end before the barriers.
void early_end(int* y, int alive, Stream stream);

// y = x + value for `count` numbers.
void add(const float* x, float value, float* y, int count, Stream stream);

// y = x for `count` numbers, by a kernel that may start early: it waits for the one before it, or reads first.
enum class Waits { before_reading, after_reading, never };
void copy_early(const float* x, float* y, int count, Waits waits, Stream stream);

// Results of the warp's collectives for lanes 0 ... 31, eight numbers each: y[32][8].
void warp_collectives(int* y, Stream stream);
// Votes of 64 threads: y[64][3], count, or and and of i >= 3.
void block_votes(int* y, Stream stream);
// Half of a warp after the other, each with its own mask: y[32].
void divergent(int* y, Stream stream);
// y[count] = bits of x[count] rounded to bfloat16 and to half, widened again to y[2][count].
void round_trip(const float* x, float* y, int count, Stream stream);

void launch_shape(unsigned grid, unsigned threads, unsigned shared_bytes, unsigned cluster, Stream stream);

}  // namespace dlf::cuda::testing
