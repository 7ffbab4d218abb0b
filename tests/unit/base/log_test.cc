#include "base/log.h"

#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(LogTest, EscapesWhatAGuestCouldSendToForgeALine) {
  ::testing::internal::CaptureStderr();
  LogError("guest said", {{"text", "a\nfake line"}, {"count", 3}});
  std::string out = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(out, HasSubstr("E guest said text=\"a\\\\nfake line\" count=3\n"));
}

TEST(LogTest, JsonLinesAndLevels) {
  ::setenv("STILL_LOG", "json", 1);
  ::testing::internal::CaptureStderr();
  LogDebug("not shown");
  LogWarning("shown", {{"path", "/x \"y\""}});
  std::string out = ::testing::internal::GetCapturedStderr();
  ::unsetenv("STILL_LOG");
  EXPECT_THAT(out, HasSubstr("\"level\":\"warning\",\"message\":\"shown\",\"path\":\"/x \\\"y\\\"\"}\n"));
  EXPECT_THAT(out, Not(HasSubstr("not shown")));
}

}  // namespace
}  // namespace still
