#pragma once

#include <cstdio>
#include <exception>
#include <initializer_list>

// EXPECT states what a test expects and goes on after a failure, so that one run shows all of them.
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

struct Test {
  const char* name;
  void (*run)();
};

// What main returns: 0 if every check of every test held.
inline int run(std::initializer_list<Test> tests) {
  for (const Test& test : tests) {
    const int before = failures;
    test.run();
    std::printf("%s  %s\n", failures == before ? "pass" : "FAIL", test.name);
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace dlf::testing
