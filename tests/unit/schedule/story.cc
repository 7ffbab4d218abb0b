#include "tests/unit/schedule/story.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/unit/schedule/story_world.h"

namespace still::schedule {
namespace {

// What the oracle grants, in true time. The clock may be wrong by two hours at both ends of an age, and a run takes its time.
constexpr absl::Duration kSlack = absl::Hours(5);
// From when it could be told until it must have arrived: the outside look comes hourly, and pauses grow to an hour.
constexpr absl::Duration kGrace = absl::Hours(4);
// Whoever is called while all is well is alarmed by this much silence.
constexpr absl::Duration kSilence = absl::Hours(3);
constexpr absl::Duration kLook = absl::Hours(3);
// The end of something is told for so long, by a clock that may be set back meanwhile.
constexpr absl::Duration kRecoveryMayWait = absl::Hours(72 + 8);

class Story {
 public:
  explicit Story(const StoryOptions& options) : options_(options), random_(options.seed) {
    for (int i = 0; i < 3; ++i) {
      hosts_.push_back(std::make_unique<StoryHost>(i, clock_, repository_, options_, random_));
    }
  }
  StoryEnd Live();

 private:
  absl::Duration Some(int from_hours, int to_hours) {
    return absl::Minutes(from_hours * 60 +
                         static_cast<int>(random_() % static_cast<uint64_t>((to_hours - from_hours) * 60 + 1)));
  }
  bool Awake(const StoryHost& host) const { return now_ >= host.asleep_until; }
  // stilld's turn ought to have come, and does not end.
  bool Hangs(const StoryHost& host) const {
    return host.scheduler != nullptr && now_ < host.hung_until &&
           now_ > std::max(host.wake, host.hung_since) + kLongestTurn;
  }
  void EndDaemon(StoryHost& host, absl::Time back_at);
  void EndWithHost(StoryHost& host);
  void StartDaemon(StoryHost& host);
  void Turn(StoryHost& host);
  void LookFromOutside(StoryHost& host);
  void Trouble(StoryHost& host);
  void TroubleMachine(StoryHost& host);
  void Judge(const StoryHost& host);
  void JudgeMachine(const StoryHost& host, const Plan& plan, const std::string& name, const Machine& machine);
  void JudgeEnd(const StoryHost& host, const std::string& name, const Machine& machine);
  void JudgeHang(const StoryHost& host);
  void JudgeRecoveries(StoryHost& host);
  bool KnownToBeBlind(const StoryHost& host) const;
  absl::Time NewestTruth(const StoryHost& host, const Plan& plan, const std::string& name) const;
  std::string When(const StoryHost& host) const;
  // `about`: for whoever reads the story.
  void Happened(const StoryHost& host, const std::string& what, const std::string& about = "");
  void Wrong(const StoryHost& host, const std::string& what);

  const StoryOptions options_;
  std::mt19937_64 random_;
  FakeClock clock_;
  absl::Time now_ = clock_.true_time;
  Repository repository_;
  std::vector<std::unique_ptr<StoryHost>> hosts_;
  StoryEnd end_;
};

SchedulerOptions Options() {
  return {.max_running = 2, .poll = absl::Hours(1), .reload_every = absl::Hours(1), .failing_after = absl::Minutes(10)};
}

void Story::StartDaemon(StoryHost& host) {
  host.scheduler = std::make_unique<Scheduler>(host.book, host, host.receiver, host.clock, Options());
  // One that cannot start ends, and is started again by and by.
  if (host.scheduler->Recover().ok()) {
    host.wake = now_;
    return;
  }
  host.scheduler.reset();
  host.back_at = now_ + absl::Minutes(30);
}

void Story::EndDaemon(StoryHost& host, absl::Time back_at) {
  host.scheduler.reset();
  host.hung_until = now_;
  host.back_at = back_at;
}

// A reboot: nothing of it lives, and not all of its machines are begun again.
void Story::EndWithHost(StoryHost& host) {
  host.active.clear();
  EndDaemon(host, host.asleep_until);
  for (auto& [name, machine] : host.machines) {
    if (!machine.on || random_() % 2 == 0) continue;
    machine.End("ended with its host", /*purpose=*/false, host.asleep_until);
    Happened(host, "ended with its host", name);
  }
}

void Story::Turn(StoryHost& host) {
  absl::StatusOr<absl::Duration> wait = host.scheduler->Step();
  host.wake = now_ + (wait.ok() ? std::max(*wait, absl::Seconds(1)) : absl::Minutes(15));
}

// `still schedule check` by its timer: only where stilld does not answer, or says that it does not get on, it does the work
// itself.
void Story::LookFromOutside(StoryHost& host) {
  host.next_look_from_outside = now_ + absl::Hours(1);
  const bool hangs = Hangs(host);
  if (!options_.somebody_looks_from_outside || (host.scheduler != nullptr && !hangs)) return;
  Scheduler onlooker(host.book, host, host.receiver, host.clock, Options());
  onlooker.OnlyLook();
  absl::Status looked = onlooker.Recover();
  if (looked.ok()) {
    if (hangs) onlooker.RaiseTrouble("stilld answers, but has not worked on the schedules");
    looked = onlooker.Step().status();
  }
  if (looked.ok()) {
    while (onlooker.Telling()) {
    }
  } else if (now_ >= host.receiver.down_until) {
    host.looked_directly = now_;
  }
}

void Story::TroubleMachine(StoryHost& host) {
  auto& [name, machine] = *std::next(host.machines.begin(), static_cast<long>(random_() % host.machines.size()));
  switch (random_() % 8) {
    case 0:  // Switched off, by somebody or by itself, or on.
    case 1:
      if (!machine.there) break;
      if (machine.on) {
        machine.End(random_() % 2 == 0 ? "powered off" : "", /*purpose=*/true, now_);
      } else {
        machine.Begin(now_);
      }
      Happened(host, machine.on ? "switched on" : "stopped", name);
      break;
    case 2:
      if (!machine.there || !machine.on) break;
      machine.End("crashed: by a signal", /*purpose=*/false, now_);
      Happened(host, "crash of a machine", name);
      break;
    case 3:  // It vanishes, or comes back. Whoever removes it knows how it ended.
      machine.there = !machine.there;
      machine.Begin(now_);
      host.receiver.open.erase({"ended", "/" + name});
      machine.unreadable = "";
      machine.changed = now_;
      if (machine.there) machine.obliged_from = now_;
      Happened(host, machine.there ? "came back" : "vanished", name);
      break;
    case 4:
      machine.unreadable = machine.unreadable.empty() ? "session.json is damaged" : "";
      Happened(host, "unreadable", name);
      break;
    case 5:
      machine.silent = !machine.silent;
      Happened(host, "silent guest", name);
      break;
    case 6:
      machine.lame = !machine.lame;
      Happened(host, "level drops", name);
      break;
    default:  // Everything is mended.
      machine.silent = machine.lame = false;
      machine.unreadable = "";
      if (machine.there && !machine.on && !machine.on_purpose) machine.Begin(now_);
      Happened(host, "mended", name);
  }
}

void Story::Trouble(StoryHost& host) {
  host.next_trouble = now_ + Some(2, 60);
  switch (random_() % 13) {
    case 0:
    case 1:  // stilld dies, sometimes with its workers, sometimes for days.
      if (random_() % 2 == 0) host.active.clear();
      EndDaemon(host, now_ + (random_() % 6 == 0 ? Some(24, 120) : Some(0, 2)));
      Happened(host, "crash of stilld", absl::FormatDuration(host.back_at - now_));
      break;
    case 2:  // The clock is set, now and then to another year.
      host.clock.skew = random_() % 8 == 0 ? absl::Hours(24 * 300) : Some(0, 4) - absl::Hours(2);
      Happened(host, "clock step", absl::FormatDuration(host.clock.skew));
      break;
    case 3:
      host.clock.skew = absl::ZeroDuration();
      Happened(host, "clock set right");
      break;
    case 4:  // The host is off, or asleep.
      host.asleep_until = now_ + Some(1, 60);
      host.awake_since = host.asleep_until;
      if (random_() % 2 == 0) {
        EndWithHost(host);
      } else {
        for (auto& [id, run] : host.active) run.ends += host.asleep_until - now_;
      }
      Happened(host, "host off", absl::FormatDuration(host.asleep_until - now_));
      break;
    case 5:
      host.repository_down_until = now_ + Some(1, 90);
      Happened(host, "repository down", absl::FormatDuration(host.repository_down_until - now_));
      break;
    case 6:
      host.receiver.down_until = now_ + Some(1, 60);
      host.channel_up_since = host.receiver.down_until;
      Happened(host, "channel down", absl::FormatDuration(host.receiver.down_until - now_));
      break;
    case 7:
      host.book_broken_until = now_ + Some(1, 72);
      Happened(host, "book broken", absl::FormatDuration(host.book_broken_until - now_));
      break;
    case 8:
      if (host.book.unusable.empty()) {
        host.book.unusable[kPlans[random_() % 3].name] = "it does not parse";
      } else {
        host.book.unusable.clear();
      }
      Happened(host, "unusable schedule");
      break;
    case 9:  // Somebody edits, and changes nothing.
      for (Schedule& schedule : host.book.schedules) schedule.counted_from = host.clock.Now();
      if (host.scheduler != nullptr) host.scheduler->Reload();
      Happened(host, "edit");
      break;
    case 10:
      if (host.scheduler == nullptr) break;
      host.hung_since = now_;
      host.hung_until = now_ + Some(1, 60);
      Happened(host, "stilld hangs", absl::FormatDuration(host.hung_until - now_));
      break;
    default:
      TroubleMachine(host);
  }
}

absl::Time Story::NewestTruth(const StoryHost& host, const Plan& plan, const std::string& name) const {
  absl::Time newest = absl::InfinitePast();
  const auto truths = repository_.truths.find(host.TrueMachine(name));
  if (truths == repository_.truths.end()) return newest;
  for (const auto& [id, truth] : truths->second) {
    if (!plan.filesystem || truth.filesystem) newest = std::max(newest, truth.taken);
  }
  return newest;
}

std::string Story::When(const StoryHost& host) const {
  const absl::Duration since = now_ - FakeClock().true_time;
  const absl::Duration in_day = since % absl::Hours(24);
  return absl::StrFormat("day %d %02d:%02d, host %d: ", since / absl::Hours(24), absl::ToInt64Hours(in_day),
                         absl::ToInt64Minutes(in_day) % 60, host.number);
}

void Story::Happened(const StoryHost& host, const std::string& what, const std::string& about) {
  ++end_.happened[what];
  if (options_.narrate) options_.narrate(absl::StrCat(When(host), what, about.empty() ? "" : " ", about));
}

void Story::Wrong(const StoryHost& host, const std::string& what) {
  end_.wrong.push_back(absl::StrCat(When(host), what));
}

void Story::JudgeMachine(const StoryHost& host, const Plan& plan, const std::string& name, const Machine& machine) {
  const std::string about = absl::StrCat(plan.name, "/", name);
  const auto open = [&](const char* kind, const std::string& of) { return host.receiver.Open(kind, of); };
  if (machine.there && plan.skip_when_off && machine.off_on_purpose()) return;
  ++end_.looked;
  const absl::Time newest = NewestTruth(host, plan, name);
  const absl::Time counts =
      std::max({newest, machine.obliged_from, plan.skip_when_off ? machine.switched_on : absl::InfinitePast()});
  if (machine.there && now_ - counts <= plan.allowed + kSlack) {
    const bool long_off = machine.off_on_purpose() && now_ - machine.ended_at > plan.allowed;
    end_.fresh_while_off += long_off && newest > machine.ended_at ? 1 : 0;
    return;
  }
  // One that is gone is told, and after that nobody expects anything of it.
  if (!machine.there && now_ - machine.changed > absl::Hours(24 * 8)) return;
  ++end_.too_old;
  const bool told = open("stale", about) || open("failed", about) || open("level", about) || open("gone", about) ||
                    open("unreadable", "/" + name) || open("unusable", absl::StrCat(plan.name, "/")) ||
                    open("unmatched", absl::StrCat(plan.name, "/", plan.sessions)) || KnownToBeBlind(host);
  if (!told) {
    Wrong(host, absl::StrCat(name, " of ", plan.name, machine.there ? " is too old since " : " is gone since ",
                             absl::FormatDuration(now_ - (machine.there ? counts + plan.allowed : machine.changed)),
                             ", and nobody was told"));
  }
}

// Somebody knows that nothing more is seen on this host.
bool Story::KnownToBeBlind(const StoryHost& host) const {
  return host.receiver.Open("scheduler", "/") || now_ - host.looked_directly <= kGrace ||
         host.receiver.Silence() > kSilence;
}

// All machines are named by a schedule, so that of each somebody is told when it has ended and nobody stopped it.
void Story::JudgeEnd(const StoryHost& host, const std::string& name, const Machine& machine) {
  if (!machine.there || machine.on || machine.ended.empty() || now_ < machine.ended_at + kGrace) return;
  ++end_.ended;
  // A schedule that cannot be read names nothing, and whoever was told of that is told of the rest when it can.
  const bool unnamed = std::any_of(std::begin(kPlans), std::end(kPlans), [&host](const Plan& plan) {
    return host.receiver.Open("unusable", absl::StrCat(plan.name, "/"));
  });
  const bool told = unnamed || host.receiver.Open("ended", "/" + name) ||
                    host.receiver.Open("unreadable", "/" + name) || KnownToBeBlind(host);
  if (!told) {
    Wrong(host, absl::StrCat(name, " ended (", machine.ended, ") ", absl::FormatDuration(now_ - machine.ended_at),
                             " ago, and nobody was told"));
  }
}

void Story::JudgeHang(const StoryHost& host) {
  if (!Hangs(host) || now_ < std::max(host.wake, host.hung_since) + kGrace) return;
  ++end_.hung;
  if (!KnownToBeBlind(host)) {
    Wrong(host,
          absl::StrCat("stilld hangs since ", absl::FormatDuration(now_ - host.hung_since), ", and nobody was told"));
  }
}

void Story::Judge(const StoryHost& host) {
  // What cannot be told from here now, or could not a moment ago. Whoever is called while all is well is alarmed by then.
  const absl::Time able = std::max(host.awake_since, host.channel_up_since);
  if (now_ < able + kGrace) return;
  JudgeHang(host);
  for (const auto& [name, machine] : host.machines) JudgeEnd(host, name, machine);
  for (const Plan& plan : kPlans) {
    for (const auto& [name, machine] : host.machines) {
      if (absl::string_view(plan.sessions) != "*" && name != plan.sessions) continue;
      if (now_ < std::max(machine.changed, machine.obliged_from) + kGrace) continue;
      JudgeMachine(host, plan, name, machine);
    }
  }
}

// Nobody is told that it is over unless there is a young good snapshot, or the machine that had ended runs again.
void Story::JudgeRecoveries(StoryHost& host) {
  for (const auto& [key, when] : std::exchange(host.receiver.recoveries, {})) {
    if (key.first == "ended") {
      const std::string name = key.second.substr(1);
      const Machine& machine = host.machines[name];
      if (machine.there && !machine.ended.empty() && when - machine.ended_at > kRecoveryMayWait) {
        Wrong(host, absl::StrCat(name, " was said to run again, and has been off (", machine.ended, ") for ",
                                 absl::FormatDuration(when - machine.ended_at)));
      }
    }
    if (key.first != "stale") continue;
    for (const Plan& plan : kPlans) {
      const std::string prefix = absl::StrCat(plan.name, "/");
      if (key.second.rfind(prefix, 0) != 0) continue;
      const absl::Duration age = when - NewestTruth(host, plan, key.second.substr(prefix.size()));
      // It may have been true when it happened, and be told when the channel came back.
      if (age > plan.allowed + kSlack + kRecoveryMayWait) {
        Wrong(host, absl::StrCat(key.second, " was called mended when its newest good snapshot was ",
                                 absl::FormatDuration(age), " old"));
      }
    }
  }
}

StoryEnd Story::Live() {
  const absl::Time until = now_ + absl::Hours(24 * options_.days);
  absl::Time next_look = now_ + kLook;
  for (auto& host : hosts_) {
    if (options_.narrate) {
      host->narrate = [this, &host = *host](const std::string& what) { options_.narrate(When(host) + what); };
      host->receiver.narrate = host->narrate;
    }
    host->next_trouble = now_ + Some(24, 72);
    host->next_look_from_outside = now_ + absl::Hours(1);
    StartDaemon(*host);
  }
  while (now_ < until && end_.wrong.empty()) {
    absl::Time next = std::min(next_look, until);
    for (auto& host : hosts_) {
      host->clock.true_time = now_;
      host->book.writes = host->book.reads =
          now_ < host->book_broken_until ? absl::ResourceExhaustedError("no space left on device") : absl::OkStatus();
      if (!Awake(*host)) {
        next = std::min(next, host->asleep_until);
        continue;
      }
      host->Pass();
      if (now_ >= host->next_trouble) Trouble(*host);
      if (Awake(*host) && host->scheduler == nullptr && now_ >= host->back_at) StartDaemon(*host);
      if (Awake(*host) && host->scheduler != nullptr && now_ >= std::max(host->wake, host->hung_until)) Turn(*host);
      if (Awake(*host) && now_ >= host->next_look_from_outside) LookFromOutside(*host);
      JudgeRecoveries(*host);
      for (const std::string& what : std::exchange(host->wrong, {})) Wrong(*host, what);
      for (absl::Time at : {host->next_trouble, host->NextEnd(), host->next_look_from_outside,
                            host->scheduler != nullptr ? std::max(host->wake, host->hung_until) : host->back_at}) {
        next = std::min(next, at);
      }
    }
    if (now_ >= next_look) {
      for (const auto& host : hosts_) {
        if (Awake(*host)) Judge(*host);
      }
      next_look = now_ + kLook;
    }
    now_ = std::max(next, now_ + absl::Seconds(1));
  }
  end_.snapshots = static_cast<int64_t>(repository_.commits);
  return std::move(end_);
}

}  // namespace

StoryEnd LiveAYear(const StoryOptions& options) { return Story(options).Live(); }

}  // namespace still::schedule
