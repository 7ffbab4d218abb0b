// Schedule: what is done regularly, to which sessions, and how; checked and ready to be asked. Its written form is the
// Schedule message (proto/schedule.proto), which the catalog keeps as JSON beside the columns that others read.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "proto/schedule.pb.h"
#include "schedule/timing.h"
#include "snapshot/retention.h"
#include "store/book/rows.h"

namespace still {
namespace schedulepb = ::stillpoint::schedule::v1;
}

namespace still::schedule {

// Snapshots that a schedule took carry this label with its name; its retention looks at no others.
inline constexpr absl::string_view kScheduleLabel = "schedule";

// What is done about a session that was switched off.
enum class WhenOff {
  kTell,  // When its newest snapshot is too old, as of one that runs.
  kSkip,  // Nothing, for as long as it stays off.
  kDisk,  // Its runs read the files of its disks.
};

struct Schedule {
  schedulepb::Schedule definition;
  Timing timing;
  std::optional<snapshot::RetentionPolicy> retention;
  absl::Time counted_from;
  absl::Duration time_limit;  // Infinite: none.
  absl::Duration verify_period;
  WhenOff when_off = WhenOff::kTell;

  const std::string& name() const { return definition.name(); }
  bool captures() const { return definition.kind() == schedulepb::Schedule::KIND_CAPTURE; }
  // Verifying and pruning are about the repository; their runs have an empty session.
  bool per_session() const;
  bool Fits(absl::string_view session) const;
  // The dead man's limit at that time: as given, or twice the longest gap that the timing leaves.
  absl::Duration MaxAge(absl::Time now) const;
};

// INVALID_ARGUMENT says which part is wrong. `local`: the zone when none is named.
absl::StatusOr<Schedule> MakeSchedule(const schedulepb::Schedule& definition, absl::TimeZone local);

// "capture", "verify", "drill", "prune".
std::string KindName(schedulepb::Schedule::Kind kind);
std::string OutcomeName(store::RunOutcome outcome);

absl::StatusOr<store::ScheduleRow> ToRow(const Schedule& schedule);
absl::StatusOr<Schedule> FromRow(const store::ScheduleRow& row, absl::TimeZone local);
schedulepb::Run ToProto(const store::RunRow& run);

// `pattern`: a name, where * stands for any characters and ? for one.
bool MatchesPattern(absl::string_view text, absl::string_view pattern);

}  // namespace still::schedule
