#include "worker.h"

#include <algorithm>
#include <utility>

namespace dlf::emulation {

Replay::Replay(std::shared_ptr<const std::vector<Step>> steps)
    : steps_(std::move(steps)),
      done_(steps_->size(), false),
      left_(static_cast<unsigned>(steps_->size())),
      schedule_(left_) {}

bool Replay::advance() {
  if (left_ == 0) {
    return true;
  }
  const auto count = static_cast<unsigned>(done_.size());
  // Always starts from one end: in backward order, a stream forked late runs ahead as far as it may.
  const unsigned index = schedule_.next(schedule_.before_first(count), count, [&](unsigned i) {
    const std::set<size_t>& after = (*steps_)[i].after;
    return !done_[i] && std::all_of(after.begin(), after.end(), [&](size_t step) { return done_[step]; });
  });
  for (const Step& step : *steps_) {
    const bool next = step.after.size() == 1 && *step.after.begin() == index;
    if (next && step.begin != nullptr && schedule_.starts_early()) {
      step.begin();
    }
  }
  (*steps_)[index].work();
  done_[index] = true;
  return --left_ == 0;
}

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

void Worker::enqueue(CUstream_st& stream, std::function<bool()> body, std::function<void()> begin) {
  const std::lock_guard lock(mutex_);
  report();
  push(stream, {0, std::move(body), std::move(begin), nullptr});
}

void Worker::record(CUstream_st& stream, const std::shared_ptr<Mark>& mark) {
  const std::lock_guard lock(mutex_);
  const uint64_t number = ++mark->recorded;
  push(stream, {0,
                [this, mark, number] {
                  const std::lock_guard inner(mutex_);
                  mark->passed = std::max(mark->passed, number);
                  return true;
                },
                nullptr, nullptr});
}

void Worker::wait(CUstream_st& stream, const std::shared_ptr<Mark>& mark) {
  const std::lock_guard lock(mutex_);
  push(stream, {0, [] { return true; }, nullptr, mark, mark->recorded});
}

void Worker::report() {
  if (error_ != nullptr) {
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void Worker::settle(CUstream_st& stream) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stream.work.empty(); });
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
  Schedule schedule(turns_);
  if (schedule.order() == Order::forward) {  // the host's order
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
    // The work stays in the queue while it runs: an empty stream is one that has finished.
    const std::function<bool()>& body = stream->work.front().body;
    std::function<void()> begin_next;
    if (stream->work.size() > 1 && Schedule().starts_early()) {
      begin_next = std::exchange(stream->work[1].begin, nullptr);
    }
    ++turns_;
    lock.unlock();
    std::exception_ptr error;
    bool done = true;
    try {
      if (begin_next != nullptr) {
        begin_next();
      }
      done = body();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (done) {
      stream->work.pop_front();
    }
    if (error != nullptr && error_ == nullptr) {
      error_ = error;
    }
    changed_.notify_all();
  }
}

}  // namespace dlf::emulation
