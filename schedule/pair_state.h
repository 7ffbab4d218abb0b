// What is known of a schedule and one of its sessions: how fresh its snapshots are, and what must outlive the process.
// Pure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"

namespace still::schedule {

using Level = manifestpb::Consistency::Level;

// "crash", "filesystem", "application"; LEVEL_UNSPECIFIED for what is none of them.
Level LevelOfName(absl::string_view name);
std::string NameOfLevel(Level level);

// How old the newest snapshot of a session is that keeps the promise, by a clock that may be set.
class Freshness {
 public:
  // A good snapshot of that time is there.
  void Good(absl::Time point) { good_ = std::max(good_, point); }
  // The repository has said what there is. Before, the age is only how long nobody here has heard of any.
  void Asked() { asked_ = true; }
  bool asked() const { return asked_; }
  // What is there is about to be told anew by Good().
  void ForgetGood() { good_ = absl::InfinitePast(); }
  // From then on the age counts: there was nothing to do before.
  void CountFrom(absl::Time time) { counted_from_ = std::max(counted_from_, time); }
  // The clock was set back by so much. What seems to come from the future was noted while it was ahead, and is as old as
  // it was: counted as of now, it would make every machine fresh.
  void SetBack(absl::Time now, absl::Duration by) {
    for (absl::Time* time : {&good_, &counted_from_}) {
      if (*time > now) *time = std::min(*time - by, now);
    }
  }
  absl::Duration Age(absl::Time now) const { return now - std::max(good_, counted_from_); }
  absl::Time newest() const { return std::max(good_, counted_from_); }
  // Of a snapshot; InfinitePast(): there is none.
  absl::Time good() const { return good_; }

 private:
  absl::Time good_ = absl::InfinitePast();
  absl::Time counted_from_ = absl::InfinitePast();
  bool asked_ = false;
};

// Kept in the book (RunBook::Remember), so that neither a restart nor an edit of the schedule makes anybody forget.
struct PairMemory {
  absl::Time known;        // When the schedule was first seen to be about this session. The age counts from then on.
  bool was_there = false;  // The session itself, not only its name in the schedule.
  Level level = manifestpb::Consistency::LEVEL_UNSPECIFIED;  // What its first run reached.
  uint32_t below = 0;                                        // Good runs in a row that did not reach what is promised.
  // A run that failed is tried again then.
  std::optional<absl::Time> retry_at;
  absl::Time retry_planned;
  uint32_t attempts = 0;
  // Snapshots whose point lay in the future when it was looked at, and when they were taken at the latest; InfinitePast():
  // nobody knows. Once that future has come, their points alone would make the machine fresh.
  std::map<absl::Time, absl::Time> ahead;
  bool operator==(const PairMemory&) const = default;
};

inline constexpr absl::string_view kPairPrefix = "pair/";
std::string PairMemoryKey(absl::string_view schedule, absl::string_view session);
// The schedule and session of such a key; empty: it is none.
std::optional<std::pair<std::string, std::string>> ParsePairMemoryKey(absl::string_view key);
std::string EncodePairMemory(const PairMemory& memory);
// nullopt: damaged.
std::optional<PairMemory> DecodePairMemory(const std::string& text);

}  // namespace still::schedule
