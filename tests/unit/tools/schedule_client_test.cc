// Whom commands tell.
#include "tools/still/schedule_client.h"

#include <stdlib.h>

#include <string>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::cli {
namespace {

TEST(ConfiguredChannelsTest, AreThoseOfTheServiceAndOverThemThoseOfTheEnvironment) {
  const std::string path = JoinPath(::testing::TempDir(), "still-channels.conf");
  ASSERT_TRUE(WriteFileAtomically(path,
                                  "# Mine.\nhttp=127.0.0.1:1\nwebhook=\"http://of.conf/a=b\"\nmail-to=root\n"
                                  "notify-command=\"logger two words\"\n")
                  .ok());
  ASSERT_EQ(::unsetenv("STILL_NOTIFY_COMMAND"), 0);
  ASSERT_EQ(::setenv("STILL_MAIL_TO", "admin", 1), 0);
  const schedule::AnnouncerOptions options = ConfiguredChannels(path);
  EXPECT_EQ(options.webhook, "http://of.conf/a=b");
  EXPECT_EQ(options.command, "logger two words");
  EXPECT_EQ(options.mail_to, "admin");
  EXPECT_EQ(ConfiguredChannels(path + ".none").mail_to, "admin");
  ASSERT_EQ(::unsetenv("STILL_MAIL_TO"), 0);
  ASSERT_TRUE(RemoveFile(path).ok());
}

}  // namespace
}  // namespace still::cli
