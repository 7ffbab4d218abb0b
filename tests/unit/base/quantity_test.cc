#include "base/quantity.h"

#include "gtest/gtest.h"

namespace still {
namespace {

TEST(DurationTest, ReadsNumbersWithUnitsAndTheirSums) {
  const std::pair<const char*, absl::Duration> cases[] = {
      {"0", absl::ZeroDuration()},
      {"250ms", absl::Milliseconds(250)},
      {"30s", absl::Seconds(30)},
      {"90m", absl::Minutes(90)},
      {"1.5h", absl::Minutes(90)},
      {"7d", absl::Hours(7 * 24)},
      {"2w", absl::Hours(14 * 24)},
      {"1h30m", absl::Minutes(90)},
      {"1d1ms", absl::Hours(24) + absl::Milliseconds(1)},
  };
  for (const auto& [text, duration] : cases) {
    absl::StatusOr<absl::Duration> read = ParseDuration(text);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, duration) << text;
  }
}

TEST(DurationTest, RefusesWhatIsNotOneWithAnExample) {
  for (const char* wrong : {"", "5", "m", "5x", "-5m", "+5m", "5m3", "5 m", "inf", "nan", "1e3s", "1..5h", "5M",
                            "200000w", "9999999999999999999999s"}) {
    absl::StatusOr<absl::Duration> read = ParseDuration(wrong);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_NE(read.status().message().find("1h30m"), std::string::npos) << read.status();
  }
}

TEST(DurationTest, ReadsWhatItWrites) {
  for (absl::Duration span : {absl::Seconds(30), absl::Minutes(90), absl::Hours(49), absl::Hours(24 * 14)}) {
    EXPECT_EQ(*ParseDuration(ShortDuration(span)), span) << ShortDuration(span);
  }
}

TEST(SizeTest, ReadsBytesAndPowersOf1024) {
  const std::pair<const char*, uint64_t> cases[] = {
      {"0", 0},           {"4096", 4096},       {"3k", 3 << 10},      {"512M", 512 << 20},
      {"2G", 2ull << 30}, {"2GiB", 2ull << 30}, {"16T", 16ull << 40}, {"1P", 1ull << 50},
  };
  for (const auto& [text, size] : cases) {
    absl::StatusOr<uint64_t> read = ParseSize(text);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, size) << text;
  }
}

TEST(SizeTest, RefusesWhatIsNotOne) {
  for (const char* wrong :
       {"", "M", "-1", "1.5G", "5X", "5MB", "5MM", "5 M", "0x10", "20000000T", "99999999999999999999"}) {
    EXPECT_EQ(ParseSize(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace still
