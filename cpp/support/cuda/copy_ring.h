#pragma once

#include "support/cuda/warp.h"

// A ring of places in shared memory: one warp has the copy engine fill them, ahead of the warps that read them. Use n
// of the ring has place n % Places. Needs sm_90.
namespace dlf::cuda {

#if !defined(__CUDACC__)

// Emulates the ring with counters, for threads that take turns.
template <int Places>
class CopyRing {
 public:
  static constexpr size_t kBytes = 2 * Places * sizeof(uint64_t);

  explicit CopyRing(void* state) : filled_(static_cast<volatile int*>(state)), read_(filled_ + Places) {}

  void start(int reading_warps) const {
    for (int place = 0; place < Places; ++place) {
      filled_[place] = 0;
      read_[place] = 0;
    }
    filled_[2 * Places] = reading_warps;
  }

  void claim(int use) const {
    while (read_[use % Places] < use / Places * filled_[2 * Places]) {
      emulation::pause();
    }
  }
  void expect(int, int) const {}
  void copy(int, void* to, const void* from, int bytes) const { memcpy(to, from, static_cast<size_t>(bytes)); }
  void close(int use) const {
    __syncwarp();
    if (lane_index() == 0) {
      filled_[use % Places] = filled_[use % Places] + 1;
    }
  }

  void await(int use) const {
    while (filled_[use % Places] <= use / Places) {
      emulation::pause();
    }
  }
  void release(int use) const {
    __syncwarp();
    if (lane_index() == 0) {
      read_[use % Places] = read_[use % Places] + 1;
    }
  }

 private:
  volatile int* filled_;  // how often each place was filled; behind all counters, the number of reading warps
  volatile int* read_;    // how often each place was read, by all warps together
};

template <int Threads>
class PartBarrier {
 public:
  static constexpr size_t kBytes = sizeof(uint64_t);
  explicit PartBarrier(void* state) : arrived_(static_cast<volatile int*>(state)) {}
  void start() const { *arrived_ = 0; }
  void sync() {
    passed_ += Threads;
    *arrived_ = *arrived_ + 1;
    while (*arrived_ < passed_) {
      emulation::pause();
    }
  }

 private:
  volatile int* arrived_;
  int passed_ = 0;
};

#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

template <int Places>
class CopyRing {
 public:
  static constexpr size_t kBytes = 2 * Places * sizeof(uint64_t);

  // `state` has kBytes of shared memory.
  __device__ explicit CopyRing(void* state)
      : filled_(static_cast<uint32_t>(__cvta_generic_to_shared(state))), free_(filled_ + Places * sizeof(uint64_t)) {}

  // Called by one thread, before all threads of the block meet.
  __device__ void start(int reading_warps) const {
    for (int place = 0; place < Places; ++place) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" : : "r"(filled(place)));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(free(place)), "r"(reading_warps));
    }
    asm volatile("fence.mbarrier_init.release.cluster;");
  }

  // ---- called by the warp that fills

  // Waits until all warps have read what an earlier use left in this one's place.
  __device__ void claim(int use) const { wait(free(use % Places), use / Places - 1); }

  // Called by one lane, before the warp copies `bytes` in all.
  __device__ void expect(int use, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(filled(use % Places)), "r"(bytes)
                 : "memory");
  }

  // `to`, `from` and `bytes` are multiples of 16. The source need not stay in a cache.
  __device__ void copy(int use, void* to, const void* from, int bytes) const {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        :
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from), "r"(bytes), "r"(filled(use % Places)),
          "l"(policy)
        : "memory");
  }

  // Called by the whole warp, after its last copy for this use.
  __device__ void close(int /*use*/) const {}

  // ---- called by the warps that read

  __device__ void await(int use) const { wait(filled(use % Places), use / Places); }

  // Called by the whole warp, when it has read.
  __device__ void release(int use) const {
    __syncwarp();
    if (lane_index() == 0) {
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(free(use % Places)) : "memory");
    }
  }

 private:
  __device__ uint32_t filled(int place) const { return filled_ + place * sizeof(uint64_t); }
  __device__ uint32_t free(int place) const { return free_ + place * sizeof(uint64_t); }

  // Waits until the barrier has been passed `times` + 1 times.
  __device__ static void wait(uint32_t barrier, int times) {
    asm volatile(
        "{\n"
        ".reg .pred passed;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 passed, [%0], %1;\n"
        "@passed bra done;\n"
        "bra again;\n"
        "done:\n"
        "}"
        :
        : "r"(barrier), "r"(times & 1)
        : "memory");
  }

  uint32_t filled_;  // address in shared memory, of the first place
  uint32_t free_;
};

// A barrier of the first `Threads` threads of a block.
template <int Threads>
class PartBarrier {
 public:
  static constexpr size_t kBytes = 0;
  __device__ explicit PartBarrier(void* /*state*/) {}
  __device__ void start() const {}
  __device__ void sync() { asm volatile("bar.sync 1, %0;" : : "n"(Threads) : "memory"); }
};

#else

// Only compiles: below sm_90 no kernel with a ring is launched.
template <int Places>
struct CopyRing {
  static constexpr size_t kBytes = 2 * Places * sizeof(uint64_t);
  __device__ explicit CopyRing(void*) {}
  __device__ void start(int) const {}
  __device__ void claim(int) const {}
  __device__ void expect(int, int) const {}
  __device__ void copy(int, void*, const void*, int) const {}
  __device__ void close(int) const {}
  __device__ void await(int) const {}
  __device__ void release(int) const {}
};

template <int Threads>
struct PartBarrier {
  static constexpr size_t kBytes = 0;
  __device__ explicit PartBarrier(void*) {}
  __device__ void start() const {}
  __device__ void sync() {}
};

#endif

}  // namespace dlf::cuda
