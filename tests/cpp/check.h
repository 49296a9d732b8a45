#pragma once

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <vector>

// Checks a condition. The test continues after a failure, so that one run shows all failures.
#define EXPECT(condition) ::dlf::testing::check((condition), #condition, __FILE__, __LINE__)

#define EXPECT_THROWS(expression)                                                                              \
  ::dlf::testing::check(::dlf::testing::throws([&] { static_cast<void>(expression); }), #expression " throws", \
                        __FILE__, __LINE__)

namespace dlf::testing {

inline int failures = 0;

inline void check(bool holds, const char* what, const char* file, int line) {
  if (!holds) {
    ++failures;
    std::fprintf(stderr, "%s:%d: expected %s\n", file, line, what);
  }
}

template <typename Function>
bool throws(Function&& function) {
  try {
    function();
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

// Thrown by a test that this machine cannot run; the other tests run.
struct Skip : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*run)();
  bool is_small = false;  // whether it runs with --small (cuda_testing.h)
};

// Prints a test's result at once: a later test may end the program.
inline void report(const char* result, const Test& test, const char* why = "") {
  std::printf("%s  %s%s%s\n", result, test.name, *why == '\0' ? "" : ": ", why);
  std::fflush(stdout);
}

// An exception fails only the test that threw it.
inline void run(const Test& test, int& skipped) {
  const int before = failures;
  try {
    test.run();
  } catch (const Skip& skip) {
    if (failures == before) {
      ++skipped;
      report("skip", test, skip.what());
      return;
    }
  } catch (const std::exception& error) {
    ++failures;
    std::fprintf(stderr, "%s: threw %s\n", test.name, error.what());
  } catch (...) {
    ++failures;
    std::fprintf(stderr, "%s: threw what is no exception\n", test.name);
  }
  report(failures == before ? "pass" : "FAIL", test);
}

// Returns the exit status of main: 0 if no test failed.
inline int run(const std::vector<Test>& tests) {
  int failed = 0;
  int skipped = 0;
  for (const Test& test : tests) {
    const int before = failures;
    run(test, skipped);
    failed += failures == before ? 0 : 1;
  }
  std::printf("%d tests, %d failed, %d skipped\n", static_cast<int>(tests.size()), failed, skipped);
  return failed == 0 ? 0 : 1;
}

}  // namespace dlf::testing
