#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "order.h"

namespace dlf::emulation {

// A point in a stream. Each recording has a number; a recording is passed when `passed` reaches its number.
struct Mark {
  uint64_t recorded = 0;
  uint64_t passed = 0;
};

// One step of a graph; the steps that it waits for come before it in the list.
struct Step {
  std::function<void()> work;
  std::function<void()> begin;  // the part that may run before the awaited step; or null
  std::set<size_t> after;
};

// A running graph. Order chooses the order of its steps among those that their waits allow; forward is the host's.
class Replay {
 public:
  explicit Replay(std::shared_ptr<const std::vector<Step>> steps);

  bool advance();  // runs one step; returns whether it was the last

 private:
  std::shared_ptr<const std::vector<Step>> steps_;
  std::vector<bool> done_;
  unsigned left_;
  Schedule schedule_;
};

// A capture in progress.
struct Recording {
  CUstream_st* origin;
  std::vector<Step> steps;
  std::set<CUstream_st*> streams;   // streams in the capture
  std::set<CUstream_st*> unjoined;  // streams with work that the origin has not waited for
};

}  // namespace dlf::emulation

struct CUstream_st {
  struct Work {
    uint64_t number;              // position in the order of the host
    std::function<bool()> body;   // called until it returns true; other streams may run between the calls
    std::function<void()> begin;  // the part that may run before the previous work; or null
    std::shared_ptr<dlf::emulation::Mark> mark;  // awaited before the body; or null
    uint64_t wanted = 0;
  };
  std::deque<Work> work;
  dlf::emulation::Recording* recording = nullptr;
  std::set<size_t> after;  // steps of the capture for which its next step waits
};

namespace dlf::emulation {

// Does the streams' work on its own thread, so that the host runs ahead of the device, as with a GPU. Order chooses
// the order of work on different streams among those that their waits allow.
class Worker {
 public:
  static Worker& instance();

  Worker();
  ~Worker();

  void add(CUstream_st& stream);
  void remove(CUstream_st& stream);  // after its work is done

  void enqueue(CUstream_st& stream, std::function<bool()> body, std::function<void()> begin = nullptr);
  void record(CUstream_st& stream, const std::shared_ptr<Mark>& mark);
  void wait(CUstream_st& stream, const std::shared_ptr<Mark>& mark);

  void settle(CUstream_st& stream);  // the host waits
  // The host waits. Throws the first error since the last call of drain(), finished() or enqueue().
  void drain(CUstream_st& stream);
  void drain();
  bool finished(CUstream_st& stream);  // throws as drain() does

 private:
  void push(CUstream_st& stream, CUstream_st::Work work);
  void work();
  CUstream_st* choose();
  void report();  // throws the first error

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<CUstream_st*> streams_;
  uint64_t numbers_ = 0;
  uint64_t turns_ = 0;
  std::exception_ptr error_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace dlf::emulation
