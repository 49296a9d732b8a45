#pragma once

#include <cstdint>

namespace dlf {

// Chooses how many threads repeat some work, by the times that it took. Alone on a machine a whole team is fastest.
// Where other processes take cores from it, each of its loops waits for a thread that has none, and fewer threads are
// faster. So now and then the work is repeated with half as many threads, with one, or with twice as many, and at once
// when its time has grown.
class TeamSize {
 public:
  explicit TeamSize(int most) : most_(most), size_(most) {}

  // Threads of the next repetition.
  int next() const { return trying_ == 0 ? size_ : trying_; }

  // Takes the time of a repetition by next() threads, in any unit.
  void add(double time);

 private:
  static constexpr int64_t kTrial = 16;       // repetitions
  static constexpr double kLongestTrial = 5;  // mean times of a repetition, for a size that is slower
  static constexpr int64_t kLeast = 32;       // repetitions between trials
  static constexpr int64_t kMost = 512;
  static constexpr double kFaster = 0.95;  // of the mean time, to change the size
  static constexpr double kSlower = 1.25;

  int other();
  void begin_trial();
  void end_trial(bool faster);

  int most_;
  int size_;
  int trying_ = 0;  // the size on trial, or 0
  int trials_ = 0;
  double mean_ = 0;          // of the last repetitions by size_ threads
  double mean_before_ = 0;   // when the last trial ended
  double trial_ = 0;         // sum of the trial's times
  int64_t repetitions_ = 0;  // since the last trial ended, or began
  int64_t between_ = kLeast;
};

}  // namespace dlf
