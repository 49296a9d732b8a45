#pragma once

#include "support/cuda/stream.h"

// Kernels that test the emulator; some are wrong on purpose.
namespace dlf::cuda::testing {

struct SumArgs {
  const float* x;  // [blocks, count]
  float* sums;     // [blocks], or [blocks / cluster] for cluster_sum
  int blocks;
  int count;
  int threads = 128;
};
void block_sum(const SumArgs& args, Stream stream);
void cluster_sum(const SumArgs& args, int cluster, bool last_barrier, Stream stream);

// Rotates 128 numbers by one through shared memory; wrong without a barrier.
void rotate(const int* x, int* y, bool barrier, Stream stream);
// Rotates 32 numbers by one through shared memory; wrong without the warp's barrier.
void rotate_warp(const int* x, int* y, bool barrier, Stream stream);

void half_waits_for_block(Stream stream);  // a deadlock
void half_waits_for_warp(Stream stream);   // a deadlock
void lane_outside_its_mask(Stream stream);
void write_beyond_shared_memory(Stream stream);
void read_unwritten(float* y, Stream stream);  // y[0] = the initial content of shared memory

// y[i] = the result of thread i of 96; threads from `alive` on end before the barriers and write nothing.
void early_end(int* y, int alive, Stream stream);

// y = x + value for `count` numbers.
void add(const float* x, float value, float* y, int count, Stream stream);

// y = x for `count` numbers, by a kernel that may start early and waits for the previous one as told.
enum class Waits { before_reading, after_reading, never };
void copy_early(const float* x, float* y, int count, Waits waits, Stream stream);

// y[32][8] = the results of eight warp collectives in each lane.
void warp_collectives(int* y, Stream stream);
// y[64][3] = the votes of 64 threads on i >= 3: count, or, and.
void block_votes(int* y, Stream stream);
// y[32] = the results of the two halves of a warp, one after the other, each with its own mask.
void divergent(int* y, Stream stream);
// y[2][count] = x[count] rounded to bfloat16 and to half, and widened again.
void round_trip(const float* x, float* y, int count, Stream stream);

void launch_shape(unsigned grid, unsigned threads, unsigned shared_bytes, unsigned cluster, Stream stream);

}  // namespace dlf::cuda::testing
