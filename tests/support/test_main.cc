// The main() of every test program. It is GoogleTest's own, but says at its end which cases were skipped and why, a line each
// (tests/support/run_ctest.py collects them), and ends with the exit code that ctest counts as "skipped" when nothing failed.
#include <gtest/gtest.h>

#include <iostream>

#include "gmock/gmock.h"

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in cmake/still.cmake.

// How many cases of the suite were skipped.
int ReportSkipped(const testing::TestSuite& suite) {
  int count = 0;
  for (int i = 0; i < suite.total_test_count(); ++i) {
    const testing::TestInfo& test = *suite.GetTestInfo(i);
    const testing::TestResult& result = *test.result();
    if (!test.should_run() || !result.Skipped()) continue;
    ++count;
    std::string reason;
    for (int part = 0; part < result.total_part_count(); ++part) {
      if (result.GetTestPartResult(part).skipped()) reason = result.GetTestPartResult(part).message();
    }
    std::cout << "skipped: " << suite.name() << "." << test.name() << ": " << reason << "\n";
  }
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (int failed = RUN_ALL_TESTS(); failed != 0) return failed;
  const testing::UnitTest& tests = *testing::UnitTest::GetInstance();
  int skipped = 0;
  for (int i = 0; i < tests.total_test_suite_count(); ++i) skipped += ReportSkipped(*tests.GetTestSuite(i));
  return skipped > 0 ? kSkipped : 0;
}
