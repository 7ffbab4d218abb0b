// The hosts of a story (story.h): machines, a repository that they share, clocks, channels. Only what happens in them; what
// was right is the oracle's business.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "schedule/machines.h"
#include "schedule/scheduler.h"
#include "tests/unit/schedule/fake_world.h"
#include "tests/unit/schedule/story.h"

namespace still::schedule {

struct Plan {
  const char* name;
  const char* sessions;
  const char* calendar;
  absl::Duration allowed;  // Also given as its --max-age.
  bool filesystem;         // Promised; else any.
  bool skip_when_off;
  int disk_when_off_on = -1;  // The host where it is.
};
inline constexpr Plan kPlans[] = {{"nightly", "*", "*-*-* 01:30", absl::Hours(50), false, false},
                                  {"often", "db", "*-*-* 00/6:00", absl::Hours(26), true, false, 2},
                                  {"lab", "lab", "*-*-* 12:00", absl::Hours(60), false, true}};

// What is true of a snapshot, whatever it says of itself.
struct Truth {
  absl::Time taken;  // When its run began.
  bool filesystem = true;
};

struct Repository {
  void Add(manifestpb::Snapshot snapshot);
  void Remove(const std::set<std::string>& ids);

  std::vector<manifestpb::Snapshot> snapshots;    // In the order of commits.
  std::vector<store::SnapshotSummary> summaries;  // Of the same: they are asked for in each hour of a year.
  std::map<std::string, std::map<std::string, Truth>> truths;  // By machine ("host/name"), id.
  uint64_t commits = 0;
  uint64_t changes = 0;  // Snapshots that came or went.
};

// A receiver of messages, in true time.
class Receiver final : public Announcer {
 public:
  Receiver(const FakeClock& clock, bool honest, bool has_ping) : clock_(clock), honest_(honest), has_ping_(has_ping) {}
  std::vector<std::string> Channels() const override { return {"pager"}; }
  void Deliver(const Delivery& delivery) override;
  std::vector<Outcome> TakeOutcomes() override { return std::exchange(outcomes_, {}); }
  void AllWell() override { pinged = clock_.true_time; }
  void Hear(const Event& event);
  bool Open(const std::string& kind, const std::string& about) const { return open.count({kind, about}) != 0; }
  // For how long whoever is called while all is well was not called; zero where nobody is.
  absl::Duration Silence() const { return has_ping_ ? clock_.true_time - pinged : absl::ZeroDuration(); }

  std::function<void(const std::string&)> narrate;
  absl::Time down_until = absl::InfinitePast();
  absl::Time pinged = absl::InfinitePast();
  std::map<std::pair<std::string, std::string>, absl::Time> open;
  std::vector<std::pair<std::pair<std::string, std::string>, absl::Time>> recoveries;

 private:
  const FakeClock& clock_;
  const bool honest_;
  const bool has_ping_;
  std::vector<Outcome> outcomes_;
};

struct Machine {
  bool there = true;
  bool on = true;
  std::string ended;       // Not by somebody: how.
  bool on_purpose = true;  // ... by its guest. Else it ought to run.
  absl::Time ended_at;
  std::string unreadable;
  bool silent = false;  // Its guest does not answer.
  bool lame = false;    // Its hooks fail: only crash-consistent.
  int births = 0;
  absl::Time obliged_from;  // True time from which on its age counts: it came.
  absl::Time switched_on;   // After it was off on purpose: from then on its age counts where it is skipped when off.
  absl::Time changed;       // Came or went.

  // The age of such a one is nobody's concern where the plan says so.
  bool off_on_purpose() const { return !on && on_purpose; }
  void End(const std::string& how, bool purpose, absl::Time when) {
    on = false;
    ended = how;
    on_purpose = purpose;
    ended_at = when;
  }
  void Begin(absl::Time when) {
    if (off_on_purpose()) switched_on = when;
    on = true;
    ended.clear();
    on_purpose = true;
  }
};

class StoryHost final : public Host {
 public:
  StoryHost(int number, const FakeClock& time, Repository& repository, const StoryOptions& options,
            std::mt19937_64& random);

  HostIdentity Identity() const {
    return {.id = options_.hosts_have_ids ? std::string(32, static_cast<char>('a' + number)) : "one", .name = "host"};
  }
  snapshot::MachineIdentity IdentityOf(const std::string& name) const {
    const std::string id = options_.hosts_have_ids ? absl::StrCat(number, name) : name;
    return {.host = Identity(), .machine_id = id, .session_id = id, .name = name};
  }
  std::string TrueMachine(const std::string& name) const { return absl::StrCat(number, "/", name); }

  absl::StatusOr<std::vector<SessionState>> Sessions() override;
  absl::StatusOr<std::map<std::string, Newest>> NewestGood(const std::set<std::string>& sessions) override;
  absl::Status Start(const Schedule& schedule, const store::RunRow& run) override;
  bool Alive(int64_t run) override { return active.count(run) != 0; }
  void Stop(int64_t run) override { active.erase(run); }

  // Ends the runs whose time has come.
  void Pass();
  absl::Time NextEnd() const;

  struct Run {
    absl::Time ends;
    absl::Time began;
    const Schedule schedule;
  };
  std::function<void(const std::string&)> narrate;
  const int number;
  FakeClock clock;  // A copy of its own: each host has its own wrong time. The true time is the story's.
  MemoryBook book;
  Receiver receiver;
  std::map<std::string, Machine> machines;
  std::map<int64_t, Run> active;
  std::unique_ptr<Scheduler> scheduler;
  absl::Time repository_down_until = absl::InfinitePast();
  absl::Time book_broken_until = absl::InfinitePast();
  absl::Time back_at = absl::InfinitePast();     // stilld.
  absl::Time hung_since = absl::InfinitePast();  // Its turn does not end.
  absl::Time hung_until = absl::InfinitePast();
  absl::Time awake_since = absl::InfinitePast();
  absl::Time asleep_until = absl::InfinitePast();
  absl::Time channel_up_since = absl::InfinitePast();
  absl::Time wake = absl::InfinitePast();  // Its next turn.
  absl::Time next_trouble;
  absl::Time next_look_from_outside;
  absl::Time looked_directly = absl::InfinitePast();  // When it was last told without a book.
  std::vector<std::string> wrong;

 private:
  void Finish(int64_t id, const Run& run);
  absl::Status Outcome(const Run& run, const std::string& session);
  void Commit(store::RunRow& row, const Run& run);

  Repository& repository_;
  const StoryOptions& options_;
  std::mt19937_64& random_;
  // What NewestByLevel() said last, and of what: a year asks far more often than something changes.
  std::map<std::string, Newest> newest_;
  std::set<std::string> newest_of_;
  uint64_t newest_at_ = 0;  // Of Repository::changes.
};

}  // namespace still::schedule
