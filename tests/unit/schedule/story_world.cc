#include "tests/unit/schedule/story_world.h"

#include "absl/strings/str_cat.h"
#include "base/quantity.h"

namespace still::schedule {

using store::RunOutcome;
using store::RunRow;

namespace {

store::SnapshotSummary SummaryOf(const manifestpb::Snapshot& one) {
  return {.id = one.id(),
          .session = one.session(),
          .session_id = one.session_id(),
          .host_id = one.host_id(),
          .host = one.host(),
          .machine_id = one.machine_id(),
          .sequence = static_cast<int64_t>(one.sequence()),
          .point_unix_ns = one.point_unix_ns(),
          .level = one.consistency().level()};
}

}  // namespace

void Repository::Add(manifestpb::Snapshot snapshot) {
  summaries.push_back(SummaryOf(snapshot));
  snapshots.push_back(std::move(snapshot));
  ++changes;
}

void Repository::Remove(const std::set<std::string>& ids) {
  auto among = [&](const std::string& id) { return ids.count(id) != 0; };
  snapshots.erase(std::remove_if(snapshots.begin(), snapshots.end(), [&](auto& one) { return among(one.id()); }),
                  snapshots.end());
  summaries.erase(std::remove_if(summaries.begin(), summaries.end(), [&](auto& one) { return among(one.id); }),
                  summaries.end());
  changes += ids.size();
}

void Receiver::Deliver(const Delivery& delivery) {
  const bool up = clock_.true_time >= down_until;
  const Event& event = delivery.event;
  outcomes_.push_back({.key = delivery.key,
                       .channel = delivery.channel,
                       .recovery = event.kind == Event::Kind::kRecovered,
                       .delivered = up || !honest_});
  if (up) Hear(event);
}

void Receiver::Hear(const Event& event) {
  const bool over = event.kind == Event::Kind::kRecovered;
  const auto key = std::make_pair(over ? event.about : EventName(event.kind), event.schedule + "/" + event.session);
  if (narrate)
    narrate(absl::StrCat("told: ", EventName(event.kind), " ", key.first, " ", key.second, ": ", event.message));
  if (over) {
    recoveries.emplace_back(key, clock_.true_time);
    open.erase(key);
  } else {
    open[key] = clock_.true_time;
  }
}

StoryHost::StoryHost(int number, const FakeClock& time, Repository& repository, const StoryOptions& options,
                     std::mt19937_64& random)
    : number(number),
      clock(time),
      receiver(this->clock, options.messages_are_queued, number == 0),
      repository_(repository),
      options_(options),
      random_(random) {
  for (const Plan& plan : kPlans) {
    book.Add(plan.name, plan.sessions, plan.calendar, [&](auto& s) {
      s.set_zone("Europe/Berlin");
      s.set_retention("last=3 daily=4");
      s.set_max_age(ShortDuration(plan.allowed));
      if (plan.filesystem) s.set_require("filesystem");
      if (plan.skip_when_off) s.set_when_off("skip");
      if (plan.disk_when_off_on == number) s.set_when_off("disk");
    });
  }
  for (const char* name : {"web", "db", "lab"})
    machines[name] = {.obliged_from = clock.true_time, .changed = clock.true_time};
  receiver.pinged = clock.true_time;
}

absl::StatusOr<std::vector<SessionState>> StoryHost::Sessions() {
  std::vector<SessionState> states;
  for (const auto& [name, machine] : machines) {
    if (!machine.there) continue;
    states.push_back({.name = name,
                      .running = !machine.off_on_purpose() || !machine.unreadable.empty(),
                      .unreadable = machine.unreadable,
                      .ended = machine.unreadable.empty() && options_.ends_are_seen ? machine.ended : ""});
  }
  return states;
}

absl::StatusOr<std::map<std::string, Newest>> StoryHost::NewestGood(const std::set<std::string>& sessions) {
  if (clock.true_time < repository_down_until) return absl::UnavailableError("the repository does not answer");
  if (newest_at_ != repository_.changes || newest_of_ != sessions) {
    std::map<std::string, snapshot::MachineIdentity> asked;
    for (const std::string& name : sessions) asked[name] = IdentityOf(name);
    newest_ = NewestByLevel(repository_.summaries, asked);
    newest_of_ = sessions;
    newest_at_ = repository_.changes;
  }
  return newest_;
}

absl::Status StoryHost::Start(const Schedule& schedule, const store::RunRow& run) {
  active.try_emplace(run.id, Run{.ends = clock.true_time + absl::Seconds(30 + random_() % 600),
                                 .began = clock.true_time,
                                 .schedule = schedule});
  return absl::OkStatus();
}

void StoryHost::Pass() {
  for (auto at = active.begin(); at != active.end();) {
    if (at->second.ends > clock.true_time) {
      ++at;
      continue;
    }
    Finish(at->first, at->second);
    at = active.erase(at);
  }
}

absl::Time StoryHost::NextEnd() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [id, run] : active) next = std::min(next, run.ends);
  return next;
}

void StoryHost::Finish(int64_t id, const Run& run) {
  RunRow row = book.rows[static_cast<size_t>(id - 1)];
  row.ended = clock.Now();
  absl::Status status = Outcome(run, row.session);
  row.outcome = status.ok() ? RunOutcome::kSucceeded : RunOutcome::kFailed;
  row.message = std::string(status.message());
  if (status.ok()) Commit(row, run);
  (void)book.UpdateRun(row);  // A worker whose book takes nothing ends without a word.
}

absl::Status StoryHost::Outcome(const Run& run, const std::string& session) {
  const Machine& machine = machines[session];
  if (clock.true_time < repository_down_until) return absl::UnavailableError("the repository does not answer");
  const bool from_disk = machine.off_on_purpose() && run.schedule.when_off == WhenOff::kDisk;
  if (!machine.there || (!machine.on && !from_disk)) return absl::UnavailableError("it does not run");
  if (!machine.unreadable.empty()) return absl::DataLossError(machine.unreadable);
  if (machine.silent && !from_disk) return absl::UnavailableError("the guest does not answer");
  return random_() % 100 == 0 ? absl::UnavailableError("bad luck") : absl::OkStatus();
}

void StoryHost::Commit(RunRow& row, const Run& run) {
  const snapshot::MachineIdentity machine = IdentityOf(row.session);
  // What was shut down in order needs no guest.
  const Machine& taken = machines[row.session];
  const bool filesystem = !taken.lame || !taken.on;
  manifestpb::Snapshot manifest;
  manifest.set_id(absl::StrCat("s", ++repository_.commits));
  manifest.set_sequence(repository_.commits);
  manifest.set_session(row.session);
  manifest.set_session_id(machine.session_id);
  manifest.set_machine_id(machine.machine_id);
  manifest.set_host(machine.host.name);
  manifest.set_host_id(machine.host.id);
  manifest.set_point_unix_ns(absl::ToUnixNanos(row.started.value_or(clock.Now())));
  (*manifest.mutable_labels())[std::string(kScheduleLabel)] = row.schedule;
  manifest.mutable_consistency()->set_level(filesystem ? manifestpb::Consistency::FILESYSTEM
                                                       : manifestpb::Consistency::CRASH);
  row.snapshot = manifest.id();
  row.consistency = NameOfLevel(manifest.consistency().level());
  if (narrate) narrate(absl::StrCat("snapshot ", manifest.id(), " of ", row.session, ", ", row.consistency));
  const std::string mine = TrueMachine(row.session);
  repository_.truths[mine][manifest.id()] = {.taken = run.began, .filesystem = filesystem};
  repository_.Add(std::move(manifest));
  absl::StatusOr<std::vector<std::string>> dropped =
      DroppedByRetention(run.schedule, machine, repository_.snapshots, {}, clock.Now());
  if (!dropped.ok()) {
    wrong.push_back(dropped.status().ToString());
    return;
  }
  const std::set<std::string> gone(dropped->begin(), dropped->end());
  for (auto& [of, truths] : repository_.truths) {
    for (const std::string& id : gone) {
      if (truths.erase(id) != 0 && of != mine) {
        wrong.push_back(absl::StrCat("host ", number, " dropped a snapshot of ", of));
      }
    }
  }
  repository_.Remove(gone);
}

}  // namespace still::schedule
