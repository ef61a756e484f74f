#include <exception>

#include "tests/check.h"

int main() {
  using namespace shazam::testing;
  for (const Test& test : tests()) {
    const int before = failures;
    try {
      test.body();
    } catch (const std::exception& error) {
      ++failures;
      std::printf("unexpected exception: %s\n", error.what());
    }
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.name);
  }
  std::printf("%zu tests, %d failed checks\n", tests().size(), failures);
  return failures == 0 ? 0 : 1;
}
