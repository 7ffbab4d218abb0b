#include "schedule/alerts.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "schedule/scheduler_edges.h"

namespace still::schedule {
namespace {

constexpr absl::Duration kTellAgainAfter = absl::Hours(24);
constexpr absl::Duration kFirstPause = absl::Minutes(1);
constexpr absl::Duration kLongestPause = absl::Hours(1);
// A recovery that nobody takes for so long is no news.
constexpr absl::Duration kRecoveryKept = absl::Hours(72);
constexpr absl::string_view kPrefix = "alert/";

constexpr std::pair<Event::Kind, absl::string_view> kNames[] = {
    {Event::Kind::kFailed, "failed"},       {Event::Kind::kStale, "stale"},
    {Event::Kind::kRecovered, "recovered"}, {Event::Kind::kScheduler, "scheduler"},
    {Event::Kind::kLevel, "level"},         {Event::Kind::kUnreadable, "unreadable"},
    {Event::Kind::kUnusable, "unusable"},   {Event::Kind::kUnmatched, "unmatched"},
    {Event::Kind::kGone, "gone"},           {Event::Kind::kEnded, "ended"},
    {Event::Kind::kHeld, "held"},           {Event::Kind::kTest, "test"},
    {Event::Kind::kLost, "lost"},           {Event::Kind::kRestarting, "restarting"},
};

absl::string_view NameOfKind(Event::Kind kind) {
  for (const auto& [known, name] : kNames) {
    if (known == kind) return name;
  }
  return "unknown";
}

std::optional<Event::Kind> KindOfName(absl::string_view text) {
  for (const auto& [kind, name] : kNames) {
    if (name == text) return kind;
  }
  return std::nullopt;
}

// Names of schedules hold no slash.
std::string KeyOf(Event::Kind kind, absl::string_view schedule, absl::string_view session) {
  return absl::StrCat(kPrefix, NameOfKind(kind), "/", schedule, "/", session);
}

// What happened once is told once.
bool ToldAgain(Event::Kind kind) { return kind != Event::Kind::kGone && kind != Event::Kind::kEnded; }

std::string Encode(const Alert& alert) {
  nlohmann::json channels = nlohmann::json::object();
  for (const auto& [name, channel] : alert.channels) {
    channels[name] = {{"next", absl::ToUnixSeconds(channel.next)}, {"tries", channel.tries}};
    if (channel.told.has_value()) channels[name]["told"] = absl::ToUnixSeconds(*channel.told);
  }
  nlohmann::json json = {{"since", absl::ToUnixSeconds(alert.event.at)},
                         {"message", alert.event.message},
                         {"quiet", alert.quiet},
                         {"channels", std::move(channels)}};
  if (alert.over.has_value()) {
    json["over"] = absl::ToUnixSeconds(*alert.over);
    json["how"] = alert.how;
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::optional<Alert> Decode(absl::string_view key, const std::string& value) {
  const std::vector<absl::string_view> parts = absl::StrSplit(key.substr(kPrefix.size()), absl::MaxSplits('/', 2));
  if (parts.size() != 3) return std::nullopt;
  std::optional<Event::Kind> kind = KindOfName(parts[0]);
  if (!kind.has_value()) return std::nullopt;
  Alert alert;
  alert.saved = true;
  alert.row = value;
  alert.event = {.kind = *kind, .schedule = std::string(parts[1]), .session = std::string(parts[2])};
  int64_t seconds = 0;
  if (absl::SimpleAtoi(value, &seconds)) {
    // As older versions wrote it: when it was told, and that it was. It is told again in its time.
    alert.event.at = absl::FromUnixSeconds(seconds);
    return alert;
  }
  const nlohmann::json json = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  const auto number = [](const nlohmann::json& in, const char* name) {
    auto at = in.find(name);
    return at != in.end() && at->is_number_integer() ? at->get<int64_t>() : 0;
  };
  const auto text = [&](const char* name) {
    auto at = json.find(name);
    return at != json.end() && at->is_string() ? at->get<std::string>() : std::string();
  };
  alert.event.at = absl::FromUnixSeconds(number(json, "since"));
  alert.event.message = text("message");
  alert.how = text("how");
  if (json.contains("over")) alert.over = absl::FromUnixSeconds(number(json, "over"));
  if (auto quiet = json.find("quiet"); quiet != json.end() && quiet->is_boolean()) alert.quiet = quiet->get<bool>();
  auto channels = json.find("channels");
  if (channels == json.end() || !channels->is_object()) return alert;
  for (const auto& [name, of] : channels->items()) {
    if (!of.is_object()) continue;
    Alert::Channel& channel = alert.channels[name];
    channel.next = absl::FromUnixSeconds(number(of, "next"));
    channel.tries = static_cast<int>(number(of, "tries"));
    if (of.contains("told")) channel.told = absl::FromUnixSeconds(number(of, "told"));
  }
  return alert;
}

// Since the book was read or written last.
bool IsAsItWas(const Alert& alert) { return alert.saved && !alert.pending(); }

}  // namespace

std::string EventName(Event::Kind kind) { return std::string(NameOfKind(kind)); }

bool Alert::delivered() const {
  return std::any_of(channels.begin(), channels.end(), [](const auto& entry) { return entry.second.told.has_value(); });
}

bool Alert::pending() const {
  return std::any_of(channels.begin(), channels.end(), [](const auto& entry) { return entry.second.pending; });
}

std::map<std::string, Alert> ParseAlerts(const std::map<std::string, std::string>& remembered) {
  std::map<std::string, Alert> alerts;
  for (auto at = remembered.lower_bound(std::string(kPrefix)); at != remembered.end(); ++at) {
    if (!absl::StartsWith(at->first, kPrefix)) break;
    if (std::optional<Alert> alert = Decode(at->first, at->second)) alerts[at->first] = *std::move(alert);
  }
  return alerts;
}

absl::Status Alerts::Load() {
  STILL_ASSIGN_OR_RETURN(auto remembered, book_.Remembered());
  alerts_ = ParseAlerts(remembered);
  return absl::OkStatus();
}

absl::Status Alerts::Adopt() {
  STILL_ASSIGN_OR_RETURN(auto remembered, book_.Remembered());
  for (auto row = remembered.lower_bound(std::string(kPrefix)); row != remembered.end(); ++row) {
    if (!absl::StartsWith(row->first, kPrefix)) break;
    if (forgotten_.count(row->first) != 0) continue;
    auto known = alerts_.find(row->first);
    if (known != alerts_.end() && (!IsAsItWas(known->second) || known->second.row == row->second)) continue;
    if (std::optional<Alert> alert = Decode(row->first, row->second)) alerts_[row->first] = *std::move(alert);
  }
  // What another process has told to be over is news when it is true again.
  for (auto alert = alerts_.begin(); alert != alerts_.end();) {
    const bool gone = IsAsItWas(alert->second) && remembered.count(alert->first) == 0;
    alert = gone ? alerts_.erase(alert) : std::next(alert);
  }
  return absl::OkStatus();
}

Alert* Alerts::Find(Event::Kind kind, const std::string& schedule, const std::string& session) {
  auto at = alerts_.find(KeyOf(kind, schedule, session));
  return at == alerts_.end() ? nullptr : &at->second;
}

const Alert* Alerts::Find(Event::Kind kind, const std::string& schedule, const std::string& session) const {
  auto at = alerts_.find(KeyOf(kind, schedule, session));
  return at == alerts_.end() ? nullptr : &at->second;
}

void Alerts::Raise(const Event& event) {
  const std::string key = KeyOf(event.kind, event.schedule, event.session);
  auto [at, added] = alerts_.try_emplace(key);
  Alert& alert = at->second;
  if (added || alert.over.has_value() || alert.quiet) {
    alert.saved = false;
    alert.over.reset();
    alert.quiet = false;
  }
  const absl::Time since = added ? event.at : std::min(alert.event.at, event.at);
  alert.event = event;  // Its message says how things are now.
  alert.event.at = since;
  if (!added) return;
  const LogLevel level = LogLevel::kError;
  Log(level, "alert",
      {{"event", EventName(event.kind)},
       {"schedule", event.schedule},
       {"session", event.session},
       {"message", event.message}});
}

void Alerts::Clear(Event::Kind kind, const std::string& schedule, const std::string& session, absl::Time now,
                   const std::string& message) {
  Alert* alert = Find(kind, schedule, session);
  if (alert == nullptr || alert->over.has_value()) return;
  alert->over = now;
  alert->how = message;
  alert->quiet = false;
  alert->saved = false;
  for (auto& [name, channel] : alert->channels) {
    channel.next = now;
    channel.tries = 0;
  }
  LogInfo("alert is over",
          {{"event", EventName(kind)}, {"schedule", schedule}, {"session", session}, {"how", message}});
}

void Alerts::Quiet(Event::Kind kind, const std::string& schedule, const std::string& session) {
  Alert* alert = Find(kind, schedule, session);
  if (alert == nullptr || alert->quiet || alert->over.has_value()) return;
  alert->quiet = true;
  alert->saved = false;
}

void Alerts::KeepOnly(const std::function<bool(const Event& event)>& wanted) {
  for (auto alert = alerts_.begin(); alert != alerts_.end();) {
    if (wanted(alert->second.event)) {
      ++alert;
      continue;
    }
    forgotten_[alert->first] = true;
    alert = alerts_.erase(alert);
  }
}

bool Alerts::Raised(Event::Kind kind, const std::string& schedule, const std::string& session) const {
  const Alert* alert = Find(kind, schedule, session);
  return alert != nullptr && !alert->over.has_value();
}

std::optional<absl::Time> Alerts::RaisedSince(Event::Kind kind, const std::string& schedule,
                                              const std::string& session) const {
  const Alert* alert = Find(kind, schedule, session);
  if (alert == nullptr || alert->over.has_value()) return std::nullopt;
  return alert->event.at;
}

bool Alerts::Delivered(Event::Kind kind, const std::string& schedule, const std::string& session) const {
  const Alert* alert = Find(kind, schedule, session);
  return alert != nullptr && alert->delivered();
}

bool Alerts::AnyTrue() const {
  return std::any_of(alerts_.begin(), alerts_.end(),
                     [](const auto& entry) { return !entry.second.over.has_value() && !entry.second.quiet; });
}

bool Alerts::Pending() const {
  return std::any_of(alerts_.begin(), alerts_.end(), [](const auto& entry) { return entry.second.pending(); });
}

void Alerts::TakeOutcomes(absl::Time now) {
  for (const Announcer::Outcome& outcome : announcer_.TakeOutcomes()) {
    auto at = alerts_.find(outcome.key);
    if (at == alerts_.end()) continue;
    Alert& alert = at->second;
    Alert::Channel& channel = alert.channels[outcome.channel];
    channel.pending = false;
    alert.saved = false;
    if (!outcome.delivered) {
      channel.next = now + std::min(kFirstPause * (1 << std::min(channel.tries, 6)), kLongestPause);
      ++channel.tries;
      continue;
    }
    channel.tries = 0;
    channel.next = now;
    if (!outcome.recovery) {
      channel.told = now;
    } else if (alert.over.has_value()) {
      alert.channels.erase(outcome.channel);
    } else {
      channel.told.reset();  // It came back while its end was being told.
    }
  }
}

void Alerts::Tell(const std::string& key, Alert& alert, const std::vector<std::string>& there, absl::Time now) {
  for (const std::string& name : there) {
    if (alert.over.has_value() && alert.channels.count(name) == 0) continue;
    Alert::Channel& channel = alert.channels[name];
    // The clock was set back: nobody knows how long ago it was. That is written down, or each of many processes that only
    // look for a moment would begin to wait anew.
    if (channel.told.has_value() && *channel.told > now) {
      channel.told = now;
      alert.saved = false;
    }
    if (channel.next > now + kLongestPause) channel.next = now;
    if (channel.pending || channel.next > now || alert.quiet) continue;
    Event event = alert.event;
    if (alert.over.has_value()) {
      if (!channel.told.has_value()) continue;
      event.kind = Event::Kind::kRecovered;
      event.about = EventName(alert.event.kind);
      event.at = *alert.over;
      event.message = alert.how;
    } else if (channel.told.has_value() && (!ToldAgain(event.kind) || now - *channel.told < kTellAgainAfter)) {
      continue;
    }
    channel.pending = true;
    announcer_.Deliver({.key = key, .channel = name, .event = std::move(event)});
  }
}

absl::Status Alerts::Work(absl::Time now) {
  TakeOutcomes(now);
  const std::vector<std::string> there = announcer_.Channels();
  for (auto at = alerts_.begin(); at != alerts_.end();) {
    Alert& alert = at->second;
    if (alert.over.has_value()) {
      // Left are the channels that must still hear of the end: those that were told of the beginning.
      for (auto channel = alert.channels.begin(); channel != alert.channels.end();) {
        const bool owed = channel->second.told.has_value() || channel->second.pending;
        const bool known = std::find(there.begin(), there.end(), channel->first) != there.end();
        channel = owed && known ? std::next(channel) : alert.channels.erase(channel);
      }
      if (alert.channels.empty() || now - *alert.over > kRecoveryKept || *alert.over > now + kRecoveryKept) {
        forgotten_[at->first] = true;
        at = alerts_.erase(at);
        continue;
      }
    }
    Tell(at->first, alert, there, now);
    ++at;
  }
  return Keep();
}

// A book that does not take one row takes none: the others are tried again with it.
absl::Status Alerts::Keep() {
  for (auto at = forgotten_.begin(); at != forgotten_.end(); at = forgotten_.erase(at)) {
    if (alerts_.count(at->first) == 0) STILL_RETURN_IF_ERROR(book_.Remember(at->first, ""));
  }
  for (auto& [key, alert] : alerts_) {
    if (alert.saved) continue;
    alert.row = Encode(alert);
    STILL_RETURN_IF_ERROR(book_.Remember(key, alert.row));
    alert.saved = true;
  }
  return absl::OkStatus();
}

absl::Time Alerts::Next(absl::Time now) const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [key, alert] : alerts_) {
    if (alert.quiet) continue;
    if (!alert.saved) next = std::min(next, now + absl::Seconds(1));
    for (const auto& [name, channel] : alert.channels) {
      if (channel.pending) {
        next = std::min(next, now + absl::Seconds(1));  // Its outcome is looked for.
      } else if (alert.over.has_value() || !channel.told.has_value()) {
        next = std::min(next, channel.next);
      } else if (ToldAgain(alert.event.kind)) {
        next = std::min(next, std::max(channel.next, *channel.told + kTellAgainAfter));
      }
    }
  }
  return next;
}

}  // namespace still::schedule
