#pragma once

#include <cstdint>

namespace dlf {

// Predicts the time of a model's forward pass from its rows, by a line through recent passes. A pass reads the weights
// once for all its rows, so a few more cost little; how much differs from machine to machine.
class PassTimes {
 public:
  void add(int64_t rows, double seconds);

  double of(int64_t rows) const;  // seconds; 0 for no rows and before the first pass

 private:
  static constexpr double kMemory = 64;     // passes in the running sums
  static constexpr double kRowCost = 0.02;  // assumed cost of a further row, in passes, until it is measured

  double slope() const;

  double weight_ = 0;  // sums over the passes
  double rows_ = 0;
  double seconds_ = 0;
  double rows_rows_ = 0;
  double rows_seconds_ = 0;
};

}  // namespace dlf
