#pragma once

#include <array>
#include <cstdint>

namespace dlf {

// How long a model's forward pass takes by its rows, from passes that were measured. Rows that were not, or not lately,
// are interpolated, or expected to cost a little more than fewer did: trying them will tell.
class PassTimes {
 public:
  void add(int64_t rows, double seconds);

  bool known() const { return passes_ > 0; }
  double of(int64_t rows) const;  // seconds; 0 rows take none

 private:
  static constexpr int64_t kMostRows = 64;
  static constexpr int64_t kLately = 512;   // passes
  static constexpr double kRowCost = 0.02;  // of a further row, unless measured

  struct Entry {
    double seconds = 0;
    int64_t pass = 0;  // the last one of so many rows; 0: none
  };
  bool fresh(const Entry& entry) const { return entry.pass > 0 && passes_ - entry.pass < kLately; }

  std::array<Entry, kMostRows + 1> entries_;  // by rows
  int64_t passes_ = 0;
};

}  // namespace dlf
