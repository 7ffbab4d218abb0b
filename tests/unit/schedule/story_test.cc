// Years of three hosts on one repository (story.h). Here a few of them, by a seed that is printed; `tools/dev simulate` lives
// through any number. STILL_FIRST_YEAR and STILL_YEARS choose which: each is replayed by its number, and STILL_NARRATE=1
// prints what happens in it.
#include "tests/unit/schedule/story.h"

#include <stdlib.h>

#include <iostream>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

uint64_t Setting(const char* name, uint64_t otherwise) {
  const char* text = ::getenv(name);
  uint64_t number = 0;
  return text != nullptr && absl::SimpleAtoi(text, &number) ? number : otherwise;
}

bool Narrated() { return Setting("STILL_NARRATE", 0) != 0; }

class StoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SetLogSink([](absl::string_view line) {  // Years are full of warnings.
      if (Narrated()) std::cout << line << "\n";
    });
  }
  void TearDown() override { SetLogSink(nullptr); }
  // Whether the oracle sees that something is left out, in one of a few years.
  static bool Seen(StoryOptions options) {
    for (options.seed = 1; options.seed <= 40; ++options.seed) {
      if (!LiveAYear(options).wrong.empty()) return true;
    }
    return false;
  }
};

TEST_F(StoryTest, EveryMachineHasAYoungGoodSnapshotOrSomebodyHasBeenTold) {
  const uint64_t first = Setting("STILL_FIRST_YEAR", std::random_device{}());
  const uint64_t years = Setting("STILL_YEARS", 12);
  StoryEnd all;
  for (uint64_t year = first; year < first + years; ++year) {
    StoryOptions options{.seed = year};
    if (Narrated()) options.narrate = [](const std::string& what) { std::cout << what << "\n"; };
    StoryEnd end = LiveAYear(options);
    EXPECT_TRUE(end.wrong.empty()) << "STILL_FIRST_YEAR=" << year
                                   << " STILL_YEARS=1: " << absl::StrJoin(end.wrong, "; ");
    all.looked += end.looked;
    all.too_old += end.too_old;
    all.ended += end.ended;
    all.hung += end.hung;
    all.fresh_while_off += end.fresh_while_off;
    all.snapshots += end.snapshots;
    for (const auto& [what, count] : end.happened) all.happened[what] += count;
  }
  std::cout << "years " << first << " to " << first + years - 1 << ": " << all.snapshots << " snapshots, " << all.looked
            << " ages looked at, " << all.too_old << " too old and told, " << all.ended << " ended and told, "
            << all.hung << " hung and told, " << all.fresh_while_off << " fresh while off";
  for (const auto& [what, count] : all.happened) std::cout << ", " << what << " " << count;
  std::cout << "\n";
  EXPECT_GT(all.too_old, static_cast<int64_t>(years)) << "the years were too quiet to prove anything";
  if (years < 12) return;  // One that is replayed may be without one or the other.
  EXPECT_GT(all.ended, static_cast<int64_t>(years));
  EXPECT_GT(all.hung, 0);
  EXPECT_GT(all.fresh_while_off, 0) << "no machine that was off was backed up from its disks";
}

// The controls: an oracle that cannot turn red proves nothing.
TEST_F(StoryTest, ItShowsWhenMessagesAreNotQueued) { EXPECT_TRUE(Seen({.messages_are_queued = false})); }
TEST_F(StoryTest, ItShowsWhenHostsAreNotToldApart) { EXPECT_TRUE(Seen({.hosts_have_ids = false})); }
TEST_F(StoryTest, ItShowsWhenNobodySeesThatAMachineEnded) { EXPECT_TRUE(Seen({.ends_are_seen = false})); }
TEST_F(StoryTest, ItShowsWhenNobodyLooksFromOutside) { EXPECT_TRUE(Seen({.somebody_looks_from_outside = false})); }

}  // namespace
}  // namespace still::schedule
