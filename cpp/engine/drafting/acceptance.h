#pragma once

#include <array>

namespace dlf {

// How often what a drafter said was what came, by how sure it was: running rates that forget.
class Acceptance {
 public:
  static constexpr int kBins = 8;

  // `memory` is the number of tokens that count.
  explicit Acceptance(double memory) : keep_(1 - 1 / memory) {}

  // Of a token to which the drafter gave this probability.
  static int bin_of(double probability);

  void add(int bin, bool accepted);

  // The probability that a token is accepted: of a bin, and on the whole. What other sequences saw, `others`, is what a
  // new one expects.
  double rate(int bin, const Acceptance& others) const;
  double mean(const Acceptance& others) const;

 private:
  struct Count {
    double accepted = 0;
    double all = 0;

    // With `weight` tokens' worth of an expectation.
    double rate(double expected, double weight) const { return (accepted + weight * expected) / (all + weight); }
  };
  double own_rate(int bin) const;
  double own_mean() const { return total_.rate(0.6, 1); }

  double keep_;
  std::array<Count, kBins> bins_;
  Count total_;
};

}  // namespace dlf
