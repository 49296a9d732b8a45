#include "worker.h"

#include <algorithm>
#include <utility>

namespace dlf::emulation {

Worker& Worker::instance() {
  static Worker worker;
  return worker;
}

Worker::Worker() : thread_([this] { work(); }) {}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Worker::add(CUstream_st& stream) {
  const std::lock_guard lock(mutex_);
  streams_.push_back(&stream);
}

void Worker::remove(CUstream_st& stream) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stream.work.empty(); });
  std::erase(streams_, &stream);
}

void Worker::push(CUstream_st& stream, CUstream_st::Work work) {
  work.number = numbers_++;
  stream.work.push_back(std::move(work));
  changed_.notify_all();
}

void Worker::enqueue(CUstream_st& stream, std::function<void()> body) {
  const std::lock_guard lock(mutex_);
  report();
  push(stream, {0, std::move(body), nullptr});
}

void Worker::record(CUstream_st& stream, const std::shared_ptr<Mark>& mark) {
  const std::lock_guard lock(mutex_);
  const uint64_t number = ++mark->recorded;
  push(stream, {0,
                [this, mark, number] {
                  const std::lock_guard inner(mutex_);
                  mark->passed = std::max(mark->passed, number);
                },
                nullptr});
}

void Worker::wait(CUstream_st& stream, const std::shared_ptr<Mark>& mark) {
  const std::lock_guard lock(mutex_);
  push(stream, {0, [] {}, mark, mark->recorded});
}

void Worker::report() {
  if (error_ != nullptr) {
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void Worker::drain(CUstream_st& stream) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stream.work.empty(); });
  report();
}

void Worker::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return std::all_of(streams_.begin(), streams_.end(),
                       [](const CUstream_st* stream) { return stream->work.empty(); });
  });
  report();
}

bool Worker::finished(CUstream_st& stream) {
  const std::lock_guard lock(mutex_);
  report();
  return stream.work.empty();
}

CUstream_st* Worker::choose() {
  const auto can_run = [](const CUstream_st& stream) {
    return !stream.work.empty() &&
           (stream.work.front().mark == nullptr || stream.work.front().mark->passed >= stream.work.front().wanted);
  };
  Schedule schedule(numbers_);
  if (schedule.order() == Order::forward) {  // as the host asked for it
    CUstream_st* first = nullptr;
    for (CUstream_st* stream : streams_) {
      if (can_run(*stream) && (first == nullptr || stream->work.front().number < first->work.front().number)) {
        first = stream;
      }
    }
    return first;
  }
  const auto count = static_cast<unsigned>(streams_.size());
  if (count == 0) {
    return nullptr;
  }
  const unsigned index =
      schedule.next(schedule.before_first(count), count, [&](unsigned i) { return can_run(*streams_[i]); });
  return index < count ? streams_[index] : nullptr;
}

void Worker::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    CUstream_st* stream = nullptr;
    changed_.wait(lock, [&] {
      stream = choose();
      return stream != nullptr || stopping_;
    });
    if (stream == nullptr) {
      return;
    }
    // It stays in front while it is done: an empty stream is one that has finished.
    const std::function<void()> body = std::move(stream->work.front().body);
    lock.unlock();
    std::exception_ptr error;
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    stream->work.pop_front();
    if (error != nullptr && error_ == nullptr) {
      error_ = error;
    }
    changed_.notify_all();
  }
}

}  // namespace dlf::emulation
