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

// A point in a stream: each recording has a number, and is past once that number is.
struct Mark {
  uint64_t recorded = 0;
  uint64_t passed = 0;
};

// What a graph does: each step after the steps that it waits for, which are before it in the list.
struct Step {
  std::function<void()> work;
  std::function<void()> begin;  // what may be done of it before what it waits for; or nothing
  std::set<size_t> after;
};

// A graph that runs. Its steps are done in an order that they allow and Order chooses; in the one in which they were
// asked for, if forward.
class Replay {
 public:
  explicit Replay(std::shared_ptr<const std::vector<Step>> steps);

  bool advance();  // by a step; whether it was the last one

 private:
  std::shared_ptr<const std::vector<Step>> steps_;
  std::vector<bool> done_;
  unsigned left_;
  Schedule schedule_;
};

// What a capture has seen.
struct Recording {
  CUstream_st* origin;
  std::vector<Step> steps;
  std::set<CUstream_st*> streams;   // those that take part
  std::set<CUstream_st*> unjoined;  // those with work that the origin has not waited for
};

}  // namespace dlf::emulation

struct CUstream_st {
  struct Work {
    uint64_t number;              // in the order in which the host asked for it
    std::function<bool()> body;   // to be called until it says that it is done; other streams may work between
    std::function<void()> begin;  // what may be done of it before the work before it; or nothing
    std::shared_ptr<dlf::emulation::Mark> mark;  // to wait for
    uint64_t wanted = 0;
  };
  std::deque<Work> work;
  dlf::emulation::Recording* recording = nullptr;
  std::set<size_t> after;  // steps of the recording that its next one waits for
};

namespace dlf::emulation {

// Does the streams' work on a thread of its own, so that the host runs ahead of the device as it does on a GPU. Work
// of several streams is done in an order that the streams allow and Order chooses.
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
  // The host waits. Throws what went wrong since the last call of this or enqueue().
  void drain(CUstream_st& stream);
  void drain();
  bool finished(CUstream_st& stream);  // throws likewise

 private:
  void push(CUstream_st& stream, CUstream_st::Work work);
  void work();
  CUstream_st* choose();
  void report();  // throws the error

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
