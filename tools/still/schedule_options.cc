#include "tools/still/schedule_options.h"

#include <limits>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/quantity.h"
#include "tools/still/format.h"
#include "tools/still/labels.h"

namespace still::cli {
namespace {

using ::stillpoint::schedule::v1::Schedule;
using Values = std::vector<std::string>;

struct TextOption {
  const char* flag;
  const char* help;
  void (*set)(Schedule& schedule, const std::string& value);
};

constexpr TextOption kTextOptions[] = {
    {"--every", "Interval instead of calendar expressions: 15m, 6h",
     [](Schedule& s, const std::string& v) {
       s.set_every(v);
       if (!v.empty()) s.clear_calendar();
     }},
    {"--zone", "Time zone, like Europe/Berlin (default: the host's)",
     [](Schedule& s, const std::string& v) { s.set_zone(v); }},
    {"--jitter", "Each run is later by a random share of this",
     [](Schedule& s, const std::string& v) { s.set_jitter(v); }},
    {"--spread", "Each session has its own place in this long a time",
     [](Schedule& s, const std::string& v) { s.set_spread(v); }},
    {"--missed", "What was missed is run once, or skipped: run-once, skip",
     [](Schedule& s, const std::string& v) { s.set_missed(v); }},
    {"--keep", "Retention, applied after each success: 'last=3 daily=7 weekly=4'",
     [](Schedule& s, const std::string& v) { s.set_retention(v); }},
    {"--quiesce", "require: fail unless frozen; try: say so; off",
     [](Schedule& s, const std::string& v) { s.set_quiesce(v); }},
    {"--hooks", "When a hook of the guest fails: fail, warn or skip them",
     [](Schedule& s, const std::string& v) { s.set_hooks(v); }},
    {"--freeze-lease", "The guest thaws by itself so long after it froze",
     [](Schedule& s, const std::string& v) { s.set_freeze_lease(v); }},
    {"--max-pause", "How long the machine may stand still (default 2s)",
     [](Schedule& s, const std::string& v) { s.set_max_pause(v); }},
    {"--memory", "Where saving it would stop the machine for longer: try (leave it out and say so), require, stop",
     [](Schedule& s, const std::string& v) { s.set_memory(v); }},
    {"--before", "Shell command before each run; when it fails, so does the run",
     [](Schedule& s, const std::string& v) { s.set_before(v); }},
    {"--after", "Shell command after each run (STILL_OUTCOME, STILL_SNAPSHOT, STILL_MESSAGE)",
     [](Schedule& s, const std::string& v) { s.set_after(v); }},
    {"--time-limit", "A run that takes longer is ended (default 24h; 0: never)",
     [](Schedule& s, const std::string& v) { s.set_time_limit(v); }},
    {"--max-age", "Tell when the newest good snapshot is older (default: twice the longest gap)",
     [](Schedule& s, const std::string& v) { s.set_max_age(v); }},
    {"--require", "Promised level: crash, filesystem, application (default: what the first run of a session reaches)",
     [](Schedule& s, const std::string& v) { s.set_require(v); }},
    {"--when-off",
     "A session that is off: tell when its newest snapshot is too old, skip it, or back up its disk files (default "
     "tell)",
     [](Schedule& s, const std::string& v) { s.set_when_off(v); }},
    {"--verify-period", "Kind verify: everything is read once in this time (default 30d)",
     [](Schedule& s, const std::string& v) { s.set_verify_period(v); }},
    {"--check", "Kind drill: command that must succeed in the restored guest",
     [](Schedule& s, const std::string& v) { s.set_check(v); }},
};

struct FlagOption {
  const char* flag;
  const char* help;
  void (*set)(Schedule& schedule, bool value);
};

constexpr FlagOption kFlagOptions[] = {
    {"--disk-only", "true: leave memory and device state out", [](Schedule& s, bool v) { s.set_disk_only(v); }},
    {"--track-memory",
     "true: note what is written to memory, so that the next run reads no more than that (while the session runs)",
     [](Schedule& s, bool v) { s.set_track_memory(v); }},
    {"--idle-io", "true: only disk and processor time that nobody else wants",
     [](Schedule& s, bool v) { s.set_idle_io(v); }},
};

absl::StatusOr<uint32_t> Count(const std::string& flag, const std::string& text) {
  uint32_t number = 0;
  if (absl::SimpleAtoi(text, &number) && number <= 1000) return number;
  return absl::InvalidArgumentError(absl::StrCat(flag, " ", text, ": a number up to 1000 was expected"));
}

// A flag alone means true; CLI11 then gives an empty word.
absl::StatusOr<bool> FlagValue(const char* flag, const Values& values) {
  const std::string value = values.empty() ? "" : values.back();
  if (!value.empty() && value != "true" && value != "false") {
    return absl::InvalidArgumentError(absl::StrCat(flag, " ", value, ": true or false was expected"));
  }
  return value != "false";
}

}  // namespace

CLI::Option* ScheduleOptions::Add(CLI::App& command, const std::string& flag, const std::string& help, Setter set) {
  auto values = std::make_shared<Values>();
  CLI::Option* option = command.add_option(flag, *values, help);
  option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  entries_.push_back({.option = option, .values = values, .set = std::move(set)});
  return option;
}

void ScheduleOptions::AddTo(CLI::App& command) {
  auto several = [](CLI::Option* option) {
    option->expected(1, std::numeric_limits<int>::max())->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    option->allow_extra_args(false);
  };
  Add(command, "--kind", "capture, verify, drill or prune (default capture)", [](Schedule& s, const Values& v) {
    static const std::map<std::string, Schedule::Kind> kKinds = {{"capture", Schedule::KIND_CAPTURE},
                                                                 {"verify", Schedule::KIND_VERIFY},
                                                                 {"drill", Schedule::KIND_DRILL},
                                                                 {"prune", Schedule::KIND_PRUNE}};
    s.set_kind(kKinds.at(v.back()));  // Checked by CLI11.
    return absl::OkStatus();
  })->check(CLI::IsMember({"capture", "verify", "drill", "prune"}));
  several(Add(command, "--session", "Name or pattern ('web-*'); may be repeated", [](Schedule& s, const Values& v) {
    s.mutable_sessions()->Assign(v.begin(), v.end());
    return absl::OkStatus();
  }));
  several(Add(command, "--on", "Calendar expression as systemd's OnCalendar=; may be repeated",
              [](Schedule& s, const Values& v) {
                s.mutable_calendar()->Assign(v.begin(), v.end());
                s.clear_every();
                return absl::OkStatus();
              }));
  several(Add(command, "--blackout", "When nothing is begun: 'Mon..Fri 08:00-18:00'; may be repeated",
              [](Schedule& s, const Values& v) {
                s.mutable_blackouts()->Assign(v.begin(), v.end());
                return absl::OkStatus();
              }));
  several(Add(command, "--label", "key=value for each snapshot; may be repeated", [](Schedule& s, const Values& v) {
    STILL_ASSIGN_OR_RETURN(const auto labels, ParseLabels(v));
    s.clear_labels();
    s.mutable_labels()->insert(labels.begin(), labels.end());
    return absl::OkStatus();
  }));
  AddRest(command);
}

void ScheduleOptions::AddRest(CLI::App& command) {
  for (const TextOption& option : kTextOptions) {
    Add(command, option.flag, option.help, [set = option.set](Schedule& s, const Values& v) {
      set(s, v.back());
      return absl::OkStatus();
    });
  }
  for (const FlagOption& option : kFlagOptions) {
    Add(command, option.flag, option.help, [&option](Schedule& s, const Values& v) {
      STILL_ASSIGN_OR_RETURN(const bool on, FlagValue(option.flag, v));
      option.set(s, on);
      return absl::OkStatus();
    })->expected(0, 1);
  }
  Add(command, "--bandwidth", "Bytes a second into and out of the repository: 50M; 0: no limit",
      [](Schedule& s, const Values& v) {
        STILL_ASSIGN_OR_RETURN(uint64_t bytes, ParseSize(v.back()));
        s.set_bandwidth(bytes);
        return absl::OkStatus();
      });
  Add(command, "--read-bandwidth", "Bytes a second read from the session's disks; 0: no limit",
      [](Schedule& s, const Values& v) {
        STILL_ASSIGN_OR_RETURN(uint64_t bytes, ParseSize(v.back()));
        s.set_read_bandwidth(bytes);
        return absl::OkStatus();
      });
  Add(command, "--concurrency", "Runs of this schedule at a time", [](Schedule& s, const Values& v) {
    STILL_ASSIGN_OR_RETURN(uint32_t number, Count("--concurrency", v.back()));
    s.set_concurrency(number);
    return absl::OkStatus();
  });
  Add(command, "--retries", "Tries after a failure (default 3)", [](Schedule& s, const Values& v) {
    STILL_ASSIGN_OR_RETURN(uint32_t number, Count("--retries", v.back()));
    s.set_retries(number);
    return absl::OkStatus();
  });
}

absl::Status ScheduleOptions::Apply(Schedule& schedule) const {
  for (const Entry& entry : entries_) {
    if (entry.option->count() > 0) STILL_RETURN_IF_ERROR(entry.set(schedule, *entry.values));
  }
  return absl::OkStatus();
}

}  // namespace still::cli
