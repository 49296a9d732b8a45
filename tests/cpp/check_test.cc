// Tests check.h: a test that fails, throws or is skipped ends only itself.
#include "check.h"

#include <utility>

namespace dlf::testing {
namespace {

int ran = 0;

void fails() {
  ++ran;
  EXPECT(false);
}

void throws_an_error() {
  ++ran;
  throw std::runtime_error("on purpose");
}

void throws_a_number() {
  ++ran;
  throw 1;
}

void cannot_run_here() {
  ++ran;
  throw Skip("on purpose");
}

void fails_before_it_cannot_go_on() {
  EXPECT(false);
  cannot_run_here();
}

void holds() { ++ran; }

// Returns the exit status of a program with these tests; their failures do not count for this program.
int returned_by(std::initializer_list<Test> tests) {
  ran = 0;
  const int before = std::exchange(failures, 0);
  const int returned = run(tests);
  failures = before;
  return returned;
}

void what_fails_ends_only_itself() {
  for (void (*bad)() : {fails, throws_an_error, throws_a_number, fails_before_it_cannot_go_on}) {
    EXPECT(returned_by({{"holds", holds}, {"fails on purpose", bad}, {"holds too", holds}}) == 1);
    EXPECT(ran == 3);
  }
}

void what_is_skipped_is_no_failure() {
  EXPECT(returned_by({{"skipped on purpose", cannot_run_here}, {"holds", holds}}) == 0);
  EXPECT(ran == 2);
}

}  // namespace
}  // namespace dlf::testing

int main() {
  using namespace dlf::testing;
  return run({{"what fails ends only itself", what_fails_ends_only_itself},
              {"what is skipped is no failure", what_is_skipped_is_no_failure}});
}
