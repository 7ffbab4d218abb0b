// Retention: which snapshots a policy keeps and which it drops, each with its reasons. Pure: it deletes nothing, knows
// no repository, and reads no clock.
//
//   STILL_ASSIGN_OR_RETURN(RetentionPolicy policy, ParseRetention("last=3 daily=7 weekly=5 min-age=1h"));
//   STILL_ASSIGN_OR_RETURN(auto verdicts, DecideRetention(snapshots, policy, clock.Now(), absl::LocalTimeZone()));
//
// The rules are independent, and what any of them keeps is kept: adding a rule, or raising a number, never drops more.
// They are applied to each machine's snapshots alone. "daily=7" keeps the newest snapshot of each of the last seven
// days *that have snapshots*, so a machine that was off for a month loses nothing by it. Days, weeks (from Monday),
// months and years are those of the time zone; an hour that a change to winter time repeats is two hours.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "proto/manifest.pb.h"
#include "snapshot/snapshots_in_use.h"
#include "store/maintenance.h"

namespace still::snapshot {

using store::kHoldLabel;
inline constexpr int kKeepAll = 1'000'000'000;

struct RetentionPolicy {
  // How many to keep; kKeepAll for all, 0 for none by this rule.
  int last = 0;
  int hourly = 0;
  int daily = 0;
  int weekly = 0;
  int monthly = 0;
  int yearly = 0;
  // Those with one of these labels are kept. An empty value means any.
  std::vector<std::pair<std::string, std::string>> labels;
  // Younger ones are kept.
  absl::Duration minimum_age;
  bool operator==(const RetentionPolicy&) const = default;
};

// Words "RULE=NUMBER" (last, hourly, daily, weekly, monthly, yearly; NUMBER may be "all"), "label=KEY[=VALUE]" any
// number of times and "min-age=DURATION" (36h, 7d, 2w), separated by spaces or commas. INVALID_ARGUMENT names the word,
// or says that no rule with a number is there: such a policy would drop everything.
absl::StatusOr<RetentionPolicy> ParseRetention(absl::string_view text);
// ParseRetention() gives the same policy back.
std::string FormatRetention(const RetentionPolicy& policy);

struct RetentionCandidate {
  std::string id;
  std::string machine;  // Snapshots with the same are of one machine (machine.h).
  absl::Time point;
  std::map<std::string, std::string> labels;
  std::string in_use;  // Not empty: by whom, and so it is kept (snapshots_in_use.h).
};

// `machine`: its key.
RetentionCandidate CandidateOf(const stillpoint::manifest::v1::Snapshot& snapshot, const std::string& machine,
                               const SnapshotsInUse& in_use);

struct RetentionVerdict {
  std::string id;
  bool keep = false;
  // Of keeping: every rule that does. Of dropping: of each rule why not. For people.
  std::vector<std::string> reasons;
};

// Held snapshots, and those in use, are kept whatever the policy says. In the order of `candidates`, whose ids must
// differ. INVALID_ARGUMENT for a policy that ParseRetention() would refuse. Snapshots whose point lies after `now` (a
// clock that was set back) are kept and do not count.
absl::StatusOr<std::vector<RetentionVerdict>> DecideRetention(absl::Span<const RetentionCandidate> candidates,
                                                              const RetentionPolicy& policy, absl::Time now,
                                                              absl::TimeZone zone);

}  // namespace still::snapshot
