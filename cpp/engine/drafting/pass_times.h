#pragma once

#include <cstdint>

namespace dlf {

// How long a model's forward pass takes by its rows: a line through the passes of late. A pass that reads the weights
// for all its rows takes hardly longer for a few more of them, and how much longer differs from machine to machine.
class PassTimes {
 public:
  void add(int64_t rows, double seconds);

  double of(int64_t rows) const;  // seconds; 0 for no rows, and as long as there was no pass

 private:
  static constexpr double kMemory = 64;     // passes that count
  static constexpr double kRowCost = 0.02;  // of a pass: what a further row is thought to cost until that is seen

  double slope() const;

  double weight_ = 0;  // sums over the passes
  double rows_ = 0;
  double seconds_ = 0;
  double rows_rows_ = 0;
  double rows_seconds_ = 0;
};

}  // namespace dlf
