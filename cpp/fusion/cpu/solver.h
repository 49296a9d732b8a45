#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fusion/bad_model.h"
#include "fusion/cpu/curve_search.h"
#include "fusion/cpu/sweep.h"
#include "fusion/joint.h"
#include "fusion/rule.h"
#include "support/thread_team.h"

namespace dlf {

enum class GateState { undecided, open, closed };

// One row's logits, V each, and how they are fused. Bases may repeat one pointer.
struct FusionInput {
  const float* large;
  const float* const* experts;            // T
  const float* const* bases;              // T
  const Rule* rule;                       // for T experts
  int count;                              // T, at most the solver's
  const int* names = nullptr;             // T numbers by which bad_model names the experts, or null for 0, 1, ...
  GateState gate = GateState::undecided;  // that of the rule, if the caller knows it
};

struct FusionResult {
  // The caller's arrays.
  double* alpha;     // T, the weights
  double* target_f;  // T, a_t = KL(Q_t‖Q)
  double* target_g;  // T, b_t = KL(Q‖Q_t)
  float* logits;     // V, fused

  double f;          // KL(P̃‖P) of the fused distribution
  double g;          // KL(P‖P̃)
  int sweeps;        // sweeps over the vocabulary for the expert that took most, fusing included
  int bad_model;     // unless this is kNoBadModel, the rest is undefined
  bool open = true;  // whether the gate of the rule was open; else the fused logits are the large model's
};

// Solves the weights of every row of a batch, each by its own rule, and fuses its logits. A row's result depends on
// nothing but its input. Allocates in the constructor only.
class FusionSolver {
 public:
  // `experts`: most experts of a row.
  FusionSolver(int experts, int64_t vocab, int max_batch, ThreadTeam& threads);

  // Of a row whose gate is closed by the large model's logits alone, no other logits are read.
  void solve(std::span<const FusionInput> inputs, std::span<FusionResult> results);

  // Whether a gate that reads no experts is open.
  bool is_open(const Gate& gate, const float* large);

 private:
  // One (row, expert) pair.
  struct Curve {
    CurveSearch search;
    Moments zero;  // of Δ under P
    double a;      // a_t = KL(Q_t‖Q)
    double b;      // b_t = KL(Q‖Q_t)
    double expert_log_sum;
    double base_log_sum;
    double fused_log_sum;  // of the row, kept by its first curve
    double given;          // the weight that is not searched; 0 for an expert that is mixed in
    double share;          // of its probabilities in the result
    double entropy;        // of the expert, where the rule needs it
    uint32_t flags;
    bool solved;    // whether the weight is searched
    bool selected;  // whether it is the expert that the row selects
    int sweeps;
    int ranges;  // of α, in the next sweep
    AlphaRange alpha[kSweepRanges];
  };

  // A curve's number is row * T + expert.
  void choose_shares(int row);
  double find_centre(int curve) const;
  int name(int curve) const;
  int experts(int row) const { return inputs_[row].count; }
  int solved(int row) const;
  const Rule& rule(int curve) const { return *inputs_[curve / experts_].rule; }
  ExpertWeight weight(int curve) const { return rule(curve).weight(curve % experts_); }
  AlphaRange first_range(int curve) const;
  BlockSum sum_model(const float* logits, const float* large, BlockSum* sums);
  double entropy(const float* logits, const float* large, BlockSum* sums);
  void weigh_targets(int row);
  bool disagrees(const FusionInput& input) const;
  void close_gates();
  void scale_rows();
  void sweep_rows(bool check);
  void sweep_curves();
  void take_first(int curve);
  void take_points(int curve);
  void check_rows();
  void shrink_supports();
  void set_targets();
  void search();
  bool plan(int curve);
  double rival(int row) const;
  void measure();
  void combine(int row);
  void solve_joint();
  bool take_joint(int row);
  void fuse();
  void mix();
  void mask();
  bool alive(int row) const { return results_[row].open && results_[row].bad_model == kNoBadModel; }
  BlockSum* sums(int64_t curve) { return sums_.get() + curve * blocks_ * kSums; }
  // Calls body(item, block, begin, end) for every block of every item.
  template <typename Body>
  void for_blocks(size_t items, Body&& body);

  static constexpr int64_t kSums = kSweepPoints + 2;  // per curve and block
  // Count of numbers that sweep_joint writes for a block.
  static constexpr int joint_sums(int experts) { return 2 + experts + experts * (experts + 1) / 2; }

  int experts_;
  int64_t vocab_;
  int64_t blocks_;
  int max_batch_;
  ThreadTeam& threads_;

  std::span<const FusionInput> inputs_;  // of the current solve()
  std::span<FusionResult> results_;
  std::vector<Curve> curves_;              // max_batch × T
  std::vector<AlphaRange> ranges_;         // per curve: of the first sweep
  std::vector<double> centres_;            // per curve: subtracted from Δ in the sweeps, so that Δ² keeps its digits
  std::vector<int> active_;                // curves of the next sweep, or rows to scale
  std::vector<int> active_rows_;           // rows of the next sweep
  std::vector<const float*> large_;        // per row: the logits, or their copy on the common support
  std::unique_ptr<BlockSum[]> sums_;       // per curve and block
  std::unique_ptr<uint32_t[]> flags_;      // per curve and block
  std::unique_ptr<JointSearch[]> joints_;  // per row; null if no row has more than one expert
  std::unique_ptr<double[]> joint_sums_;   // per row and block
  int joint_sum_size_ = 0;
};

template <typename Body>
void FusionSolver::for_blocks(size_t items, Body&& body) {
  threads_.parallel_for(static_cast<int64_t>(items) * blocks_, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t block = i % blocks_;
      body(static_cast<int>(i / blocks_), block, block * kSweepBlock, std::min((block + 1) * kSweepBlock, vocab_));
    }
  });
}

}  // namespace dlf
