#include "schedule/alerts.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "schedule/scheduler.h"

namespace still::schedule {
namespace {

constexpr absl::Duration kTellAgainAfter = absl::Hours(24);
constexpr absl::string_view kPrefix = "alert/";

// Names of schedules and sessions hold no slash.
std::string KeyOf(Event::Kind kind, absl::string_view schedule, absl::string_view session) {
  return absl::StrCat(kPrefix, EventName(kind), "/", schedule, "/", session);
}

}  // namespace

std::string EventName(Event::Kind kind) {
  switch (kind) {
    case Event::Kind::kFailed:
      return "failed";
    case Event::Kind::kStale:
      return "stale";
    case Event::Kind::kRecovered:
      return "recovered";
  }
  return "unknown";
}

absl::Status Alerts::Load() {
  STILL_ASSIGN_OR_RETURN(auto remembered, book_.Remembered());
  told_.clear();
  for (const auto& [key, value] : remembered) {
    int64_t seconds = 0;
    if (absl::StartsWith(key, kPrefix) && absl::SimpleAtoi(value, &seconds)) {
      told_[key] = absl::FromUnixSeconds(seconds);
    }
  }
  return absl::OkStatus();
}

absl::Status Alerts::Raise(const Event& event) {
  const std::string key = KeyOf(event.kind, event.schedule, event.session);
  auto told = told_.find(key);
  if (told != told_.end()) {
    // Told in the future: the clock was set back, and nobody knows how long ago it was.
    if (told->second > event.at) told->second = event.at;
    if (event.at - told->second < kTellAgainAfter) return absl::OkStatus();
  }
  // Told first: better twice than never.
  announcer_.Announce(event);
  told_[key] = event.at;
  return book_.Remember(key, absl::StrCat(absl::ToUnixSeconds(event.at)));
}

absl::Status Alerts::Clear(Event::Kind kind, const std::string& schedule, const std::string& session, absl::Time now,
                           const std::string& message) {
  const std::string key = KeyOf(kind, schedule, session);
  if (told_.count(key) == 0) return absl::OkStatus();
  announcer_.Announce({.kind = Event::Kind::kRecovered,
                       .about = EventName(kind),
                       .schedule = schedule,
                       .session = session,
                       .at = now,
                       .message = message});
  told_.erase(key);
  return book_.Remember(key, "");
}

absl::Status Alerts::KeepOnly(
    const std::function<bool(const std::string& schedule, const std::string& session)>& there) {
  for (auto told = told_.begin(); told != told_.end();) {
    const std::vector<std::string> parts = absl::StrSplit(told->first, '/');
    if (parts.size() == 4 && there(parts[2], parts[3])) {
      ++told;
      continue;
    }
    STILL_RETURN_IF_ERROR(book_.Remember(told->first, ""));
    told = told_.erase(told);
  }
  return absl::OkStatus();
}

bool Alerts::Raised(Event::Kind kind, const std::string& schedule, const std::string& session) const {
  return told_.count(KeyOf(kind, schedule, session)) != 0;
}

void Freshness::Good(absl::Time point) { newest_ = std::max(newest_, point); }
void Freshness::NoLaterThan(absl::Time now) { newest_ = std::min(newest_, now); }

}  // namespace still::schedule
