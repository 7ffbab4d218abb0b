#include "snapshot/drill.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clean_text.h"
#include "base/clock.h"
#include "proto/grpc_status.h"
#include "snapshot/throw_away_session.h"

namespace still::snapshot {
namespace {

using store::DrillRecord;
using store::DrillState;

constexpr char kPrefix[] = "drill";
// Of what the check prints, the end is kept: that is where the reason stands.
constexpr size_t kMaxMessage = 4096;
constexpr int64_t kMaxDrills = 1'000'000;
// Beyond the check's own time, for the answers to come back.
constexpr absl::Duration kCallGrace = absl::Seconds(30);
constexpr absl::Duration kPollAgent = absl::Milliseconds(100);

std::string End(std::string text, size_t limit) {
  if (text.size() > limit) text.erase(0, text.size() - limit);
  return text;
}

void Fail(DrillRecord& drill, const absl::Status& status) {
  drill.state = DrillState::kFailed;
  drill.message = End(std::string(status.message()), kMaxMessage);
}

// The session's name stands for its newest snapshot, unless a snapshot has that name or id. Beginnings of names come last: the
// only one that begins with "web" may be "web-before-rollback-1".
absl::StatusOr<manifestpb::Snapshot> FindSnapshot(store::Repository& repository, const std::string& reference) {
  absl::StatusOr<manifestpb::Snapshot> found = repository.FindSnapshot(reference);
  if (found.ok() && (found->name() == reference || found->id() == reference)) return found;
  absl::StatusOr<manifestpb::Snapshot> newest = repository.FindSnapshot(absl::StrCat(reference, "@latest"));
  return newest.ok() ? newest : found;
}

void SetDeadline(grpc::ClientContext& call, absl::Duration timeout) {
  call.set_deadline(absl::ToChronoTime(Clock::Real().Now() + timeout));
}

// The machine is there; is anybody in it?
absl::Status ExpectAgent(sessionpb::SessionControl::Stub& session, absl::Duration timeout) {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  for (;;) {
    grpc::ClientContext call;
    SetDeadline(call, kCallGrace);
    sessionpb::DescribeResponse description;
    STILL_RETURN_IF_ERROR(FromGrpc(session.Describe(&call, {}, &description)));
    if (description.agent().connected()) return absl::OkStatus();
    // A restore waits by itself where the snapshot is known to have an agent; of an import nobody knows.
    if (Clock::Real().Monotonic() >= deadline) break;
    Clock::Real().Sleep(kPollAgent);
  }
  return absl::UnavailableError("the machine was restored, but no guest agent answered in it");
}

absl::Status RunCheck(sessionpb::SessionControl::Stub& session, const DrillOptions& options, DrillRecord& drill) {
  guestpb::ExecRequest request;
  for (const char* word : {"/bin/sh", "-c"}) request.add_argv(word);
  request.add_argv(options.check);
  request.set_timeout_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options.check_timeout)));
  grpc::ClientContext call;
  SetDeadline(call, options.check_timeout + kCallGrace);
  auto reader = session.Exec(&call, request);
  guestpb::ExecOutput output;
  guestpb::ExecExit exit;
  std::string printed;
  while (reader->Read(&output)) {
    if (output.has_exit()) exit = output.exit();
    absl::StrAppend(&printed, output.stdout_data(), output.stderr_data());
    printed = End(std::move(printed), kMaxMessage);
  }
  STILL_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  drill.message = CleanLines(absl::StripTrailingAsciiWhitespace(printed), kMaxMessage);
  if (exit.timed_out()) {
    return absl::DeadlineExceededError(
        absl::StrCat("the check ran longer than ", absl::FormatDuration(options.check_timeout), " and was killed"));
  }
  drill.exit_code = exit.signal() != 0 ? 128 + exit.signal() : exit.exit_code();
  if (*drill.exit_code == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the check ended with exit code ", *drill.exit_code,
                                                    drill.message.empty() ? "" : ": ", drill.message));
}

// Everything that says something about the snapshot.
absl::Status Try(store::Repository& repository, const session::SessionRegistry& sessions, const DrillOptions& options,
                 const manifestpb::Snapshot& snapshot, DrillRecord& drill) {
  const absl::Duration begun = Clock::Real().Monotonic();
  STILL_RETURN_IF_ERROR(RestoreSnapshot(repository, sessions,
                                        {.snapshot = snapshot.id(),
                                         .sessions = {drill.place},
                                         .cold = options.cold,
                                         .trial = true,
                                         .patience = options.patience,
                                         .progress = options.progress})
                            .status());
  STILL_ASSIGN_OR_RETURN(auto session, sessions.Connect(drill.place));
  STILL_RETURN_IF_ERROR(ExpectAgent(*session, options.patience.answer));
  drill.restored = Clock::Real().Monotonic() - begun;
  if (options.check.empty()) return absl::OkStatus();
  options.progress({.stage = "check"});
  return RunCheck(*session, options, drill);
}

}  // namespace

absl::StatusOr<DrillRecord> RunDrill(store::Repository& repository, store::Book& book,
                                     const session::SessionRegistry& sessions, const DrillOptions& options) {
  STILL_RETURN_IF_ERROR(SweepDrills(book, sessions));
  STILL_ASSIGN_OR_RETURN(manifestpb::Snapshot snapshot, FindSnapshot(repository, options.snapshot));
  STILL_ASSIGN_OR_RETURN(ThrowAwaySession place, ThrowAwaySession::Reserve(sessions, kPrefix));
  DrillRecord drill = {.snapshot_id = snapshot.id(),
                       .snapshot_name = snapshot.name(),
                       .session = snapshot.session(),
                       .place = place.name(),
                       .started = Clock::Real().Now(),
                       .check = options.check};
  // Before anything is restored: a drill that is killed leaves a row all the same.
  STILL_ASSIGN_OR_RETURN(drill.id, book.AddDrill(drill));
  absl::Status tried = Try(repository, sessions, options, snapshot, drill);
  drill.state = DrillState::kPassed;
  if (!tried.ok()) Fail(drill, tried);
  drill.ended = Clock::Real().Now();
  // Recorded before the lock goes: whoever sweeps must find no row that seems to run.
  absl::Status recorded = book.UpdateDrill(drill);
  STILL_RETURN_IF_ERROR(FirstError(recorded, place.End()));
  return drill;
}

absl::Status SweepDrills(store::Book& book, const session::SessionRegistry& sessions) {
  std::vector<DrillRecord> drills;
  return SweepThrowAwaySessions(sessions, [&](const std::string& name) -> absl::Status {
    if (drills.empty()) {
      STILL_ASSIGN_OR_RETURN(drills, book.ListDrills(kMaxDrills));
    }
    for (DrillRecord& drill : drills) {
      if (drill.place != name || drill.state != DrillState::kRunning) continue;
      drill.state = DrillState::kAbandoned;
      drill.ended = Clock::Real().Now();
      drill.message = "ended before it was over";
      return book.UpdateDrill(drill);
    }
    return absl::OkStatus();  // Of another repository, or it ended before its row was made.
  });
}

}  // namespace still::snapshot
