// Tests what decides on drafts: pass times, acceptance rates, prompt lookup and the policies built on them.
#include "engine/draft.h"

#include <cmath>
#include <map>
#include <vector>

#include "check.h"
#include "engine/drafting/draft_policy.h"
#include "engine/drafting/pass_times.h"
#include "engine/drafting/step_draft_policy.h"
#include "engine/prompt_lookup.h"

namespace dlf {
namespace {

bool near(double a, double b, double relative) { return std::abs(a - b) <= relative * std::abs(b); }

void pass_times_are_a_line() {
  PassTimes times;
  EXPECT(times.of(1) == 0);
  times.add(1, 10.0);
  EXPECT(near(times.of(1), 10.0, 1e-9));
  EXPECT(near(times.of(5), 10.8, 1e-2));  // a guess
  for (int i = 0; i < 40; ++i) {
    times.add(1, 10.0);
    times.add(5, 14.0);
  }
  EXPECT(near(times.of(3), 12.0, 0.02));
  EXPECT(near(times.of(9), 18.0, 0.03));
  EXPECT(times.of(0) == 0);
  times.add(5, 1e6);  // another process had the processor
  EXPECT(times.of(5) < 20);
}

void rates_follow_what_is_seen() {
  const Acceptance others(1024);
  Acceptance rates(64);
  EXPECT(rates.rate(7, others) > rates.rate(0, others));  // before any observation, the drafter's own confidence
  for (int i = 0; i < 200; ++i) {
    rates.add(3, i % 4 != 0);
  }
  EXPECT(near(rates.rate(3, others), 0.75, 0.05));
  EXPECT(near(rates.mean(others), 0.75, 0.05));
  for (int i = 0; i < 300; ++i) {
    rates.add(3, false);
  }
  EXPECT(rates.rate(3, others) < 0.1);
  EXPECT(Acceptance::bin_of(0) == 0 && Acceptance::bin_of(1) == Acceptance::kBins - 1);
}

void look_up_finds_the_longest_match() {
  const std::vector<int64_t> text = {1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3};
  const PromptLookup::Match match = PromptLookup::find(text);
  EXPECT(match.length == 3);
  EXPECT(match.next.front() == 4 && match.next.size() == 8);
  EXPECT(PromptLookup::find(std::vector<int64_t>{1, 2, 3}).length == 0);
  EXPECT(PromptLookup::find(std::vector<int64_t>{}).length == 0);
  const std::vector<int64_t> same(20, 7);
  EXPECT(PromptLookup::find(same).length == PromptLookup::kLongest);
}

// A sequence on a large model, an expert and a base, whose passes take the given seconds.
struct Scene {
  explicit Scene(std::vector<double> seconds) {
    plan.lane_model = {0, 1, 2};
    plan.experts = {{1, 2}};
    for (size_t i = 0; i < seconds.size(); ++i) {
      for (int n = 0; n < 10; ++n) {
        times[i].add(1, seconds[i]);
        times[i].add(8, 1.1 * seconds[i]);
      }
    }
    sequence.lanes.resize(3);
    for (Lane& lane : sequence.lanes) {
      lane.prompt.tokens = {1, 2, 3};
    }
    sequence.tokens = {1, 2, 3, 4};
    sequence.experts = {0};
    sequence.draft = Draft({8}, 1, plan);
    sequence.draft.limit = 8;
    sequence.draft.weight = {1.0};
  }

  // Returns the number of tokens drafted by an expert that is right with this probability, and knows it.
  int64_t drafted(double right) {
    DraftPolicy policy(plan, {&times[0], &times[1], &times[2]});
    const int bin = Acceptance::bin_of(right);
    for (int i = 0; i < 400; ++i) {
      policy.rates().learn(sequence.draft, 1, bin, std::fmod(i * 0.618, 1.0) < right);
    }
    Sequence* sequences[] = {&sequence};
    policy.begin(sequences);
    Draft& draft = sequence.draft;
    for (draft.size = 0, draft.reach = 1; draft.size < draft.limit && policy.worth_drafting(sequence); ++draft.size) {
      draft.reach *= policy.rates().rate(draft, 1, bin);
    }
    return draft.size;
  }

  FusionPlan plan;
  PassTimes times[3];
  Sequence sequence;
};

void drafts_are_as_long_as_is_worth_it() {
  EXPECT(Scene({50, 5, 5}).drafted(0.97) >= 6);
  EXPECT(Scene({50, 5, 5}).drafted(0.6) >= 1);
  EXPECT(Scene({50, 5, 5}).drafted(0.6) <= 4);
  EXPECT(Scene({50, 5, 5}).drafted(0.02) == 0);
  EXPECT(Scene({5, 5, 5}).drafted(0.3) == 0);  // as slow as the large model
  Scene fixed({5, 5, 5});
  fixed.sequence.draft.options.adaptive = false;
  EXPECT(fixed.drafted(0.02) == 8);
}

// Two experts that share a base, and sequences that may be drafted 12 tokens.
struct StepScene {
  explicit StepScene(int count) : sequences(count) {
    for (Sequence& sequence : sequences) {
      sequence.experts = {0, 1};
      sequence.draft = Draft({12}, 2, plan);
      sequence.draft.limit = 12;
      sequence.draft.weight = {1, 0.5};
      all.push_back(&sequence);
    }
  }

  Draft& draft_of(int of) { return sequences[of].draft; }
  StepDraft choose(int batch = 1) { return policy.choose(all, batch); }

  // Runs 1000 steps. A plain step takes one second; each token that a lane drafts adds `token_seconds`, prompt lookup
  // adds 0.02 a step. Of 100 tokens, the lane predicts `right` and prompt lookup `looked_up`. Returns how many of the
  // last 500 steps drafted each number of tokens; prompt lookup's numbers are negative.
  std::map<int, int> run(double token_seconds, int right, int looked_up = 0) {
    std::map<int, int> counts;
    int tokens = 0;
    for (int step = 0; step < 1000; ++step) {
      const StepDraft draft = choose();
      const bool lane = draft.count > 0 && draft.drafter != kPromptLookup;
      policy.add_time(1, draft, 1 + (lane ? token_seconds * draft.count : draft.count > 0 ? 0.02 : 0));
      policy.learn(draft_of(0), kPromptLookup, 1, 37 * step % 100 < looked_up ? 1 : 0);
      for (int i = 0; lane && i < draft.count; ++i) {
        const bool agrees = 37 * ++tokens % 100 < right;
        policy.learn(draft_of(0), draft.drafter, 1, agrees ? 1 : 0);
        if (!agrees) {
          break;
        }
      }
      counts[lane ? draft.count : -draft.count] += step >= 500 ? 1 : 0;
    }
    return counts;
  }

  FusionPlan plan{{0, 1, 2, 3}, {}, {{1, 2}, {3, 2}}, 50, -1};
  std::vector<Sequence> sequences;
  std::vector<Sequence*> all;
  StepDraftPolicy policy{plan, {7, 32, 8}};
};

void graphs_draft_as_far_as_is_worth_it() {
  EXPECT(StepScene(1).choose() == StepDraft());  // the time of a plain step is measured first
  EXPECT(StepScene(1).run(0.1, 100)[7] == 500);
  EXPECT(StepScene(1).run(0.9, 100)[7] == 500);
  std::map<int, int> slow = StepScene(1).run(1.1, 100);
  EXPECT(slow[0] >= 490 && slow[1] > 0 && slow[0] + slow[1] == 500);
  std::map<int, int> wrong = StepScene(1).run(0.1, 0);
  EXPECT(wrong[0] >= 490 && wrong[1] > 0 && wrong[0] + wrong[1] == 500);
  StepScene short_of_room(1);
  short_of_room.draft_of(0).limit = 2;
  EXPECT(short_of_room.run(0.1, 100)[2] == 500);
  short_of_room.draft_of(0).limit = 0;
  EXPECT(short_of_room.run(0.1, 100)[0] == 500);
}

// (1 + a + ... + a^k) / (1 + 0.36 k) is largest at k = 2 for a = 0.7, at 4 or 5 for 0.92.
void graphs_draft_as_many_as_pay() {
  std::map<int, int> some = StepScene(1).run(0.36, 70);
  EXPECT(some[1] + some[2] + some[3] >= 450 && some[2] >= 250);
  std::map<int, int> many = StepScene(1).run(0.36, 92);
  EXPECT(many[3] + many[4] + many[5] >= 400);
}

void text_that_repeats_itself_is_looked_up() {
  std::map<int, int> repeats = StepScene(1).run(0.36, 70, 60);
  EXPECT(repeats[-7] >= 400 && repeats[1] > 0);  // the lane is tried now and then
  EXPECT(StepScene(1).run(0.36, 92, 30)[-7] < 50);
  StepScene lane_only(1);
  lane_only.draft_of(0).options.drafter = 1;
  EXPECT(lane_only.run(0.36, 70, 100)[-7] == 0);
  StepScene two_rows(2);
  two_rows.policy.add_time(2, {}, 1);
  for (Sequence& sequence : two_rows.sequences) {
    sequence.draft.limit = 1;  // near their ends, where the graph stays the same
    for (int i = 0; i < 100; ++i) {
      two_rows.policy.learn(sequence.draft, kPromptLookup, 1, 1);
    }
  }
  EXPECT((two_rows.choose(2) == StepDraft{kPromptLookup, 3}));
}

void a_step_that_was_held_up_is_no_measure() {
  StepScene scene(1);
  for (int i = 0; i < 20; ++i) {
    scene.policy.learn(scene.draft_of(0), 1, 7, 7);
    scene.policy.learn(scene.draft_of(0), kPromptLookup, 1, 0);
  }
  scene.policy.add_time(1, {}, 1);
  EXPECT((scene.choose() == StepDraft{1, 7}));
  scene.policy.add_time(1, {1, 7}, 1000);
  EXPECT(scene.choose().count > 0);
  scene.policy.add_time(1, {}, 1000);
  scene.policy.add_time(1, {}, 1);
  EXPECT((scene.choose() != StepDraft()));
}

void graphs_draft_what_most_sequences_want() {
  StepScene three(3);
  three.policy.add_time(4, {}, 1);
  for (Sequence& sequence : three.sequences) {
    three.policy.learn(sequence.draft, kPromptLookup, 1, 0);
    three.policy.learn(sequence.draft, kPromptLookup, 1, 0);
  }
  EXPECT((three.choose(4) == StepDraft{1, 1}));  // the expert with the most weight; 8 rows are exact
  three.draft_of(0).options.drafter = 3;
  three.draft_of(2).weight = {0.1, 0.4};
  EXPECT((three.choose(4) == StepDraft{3, 1}));
  for (Sequence& sequence : three.sequences) {
    sequence.draft.options.adaptive = false;
  }
  EXPECT((three.choose(4) == StepDraft{3, 7}));
  EXPECT((three.choose(16) == StepDraft{3, 1}));
  EXPECT(three.choose(32) == StepDraft());
  three.draft_of(0).limit = three.draft_of(2).limit = 0;
  EXPECT((three.choose(4) == StepDraft{1, 7}));
  three.draft_of(1).weight.clear();  // the large model alone
  EXPECT((three.choose(4) == StepDraft{kPromptLookup, 7}));
  EXPECT(!three.policy.looks_up(three.sequences[1]));  // drafts that are not adaptive need no rate
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"pass times are a line", dlf::pass_times_are_a_line},
      {"rates follow what is seen", dlf::rates_follow_what_is_seen},
      {"look-up finds the longest match", dlf::look_up_finds_the_longest_match},
      {"drafts are as long as is worth it", dlf::drafts_are_as_long_as_is_worth_it},
      {"graphs draft as far as is worth it", dlf::graphs_draft_as_far_as_is_worth_it},
      {"graphs draft as many as pay", dlf::graphs_draft_as_many_as_pay},
      {"text that repeats itself is looked up", dlf::text_that_repeats_itself_is_looked_up},
      {"a step that was held up is no measure", dlf::a_step_that_was_held_up_is_no_measure},
      {"graphs draft what most sequences want", dlf::graphs_draft_what_most_sequences_want},
  });
}
