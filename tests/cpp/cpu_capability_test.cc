#include "support/cpu_capability.h"

#include <cstdlib>
#include <string>

#include "check.h"

// The capability is read until a reading succeeds, then never again: the order of the tests in main matters.
namespace dlf {
namespace {

int portable_kernel() { return 0; }
int avx2_kernel() { return 1; }
int avx512_kernel() { return 2; }
int avx512_bf16_kernel() { return 3; }

void the_kernel_follows_the_capability() {
  auto* kernel = choose_kernel(&portable_kernel, &avx2_kernel, &avx512_kernel, &avx512_bf16_kernel);
  EXPECT(kernel() == static_cast<int>(cpu_capability()));
}

void names_are_what_the_variable_takes() {
  EXPECT(name(CpuCapability::portable) == "portable");
  EXPECT(name(CpuCapability::avx2) == "avx2");
  EXPECT(name(CpuCapability::avx512) == "avx512");
  EXPECT(name(CpuCapability::avx512_bf16) == "avx512_bf16");
}

void the_variable_lowers_the_capability() {
  ::setenv("DLF_CPU_CAPABILITY", "portable", 1);
  EXPECT(cpu_capability() == CpuCapability::portable);
}

void a_wrong_name_is_an_error() {
  ::setenv("DLF_CPU_CAPABILITY", "sse9", 1);
  EXPECT_THROWS(cpu_capability());
}

}  // namespace
}  // namespace dlf

int main() {
  // A failed reading is repeated, so the wrong name comes first; the valid one after it stays.
  return dlf::testing::run({
      {"a wrong name is an error", dlf::a_wrong_name_is_an_error},
      {"the variable lowers the capability", dlf::the_variable_lowers_the_capability},
      {"names are what the variable takes", dlf::names_are_what_the_variable_takes},
      {"the kernel follows the capability", dlf::the_kernel_follows_the_capability},
  });
}
