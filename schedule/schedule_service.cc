#include "schedule/schedule_service.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/host_time_zone.h"
#include "base/quantity.h"
#include "proto/grpc_status.h"
#include "schedule/lost_schedules.h"

namespace still::schedule {
namespace {

constexpr uint32_t kDefaultHistory = 50;
constexpr uint32_t kMostHistory = 100'000;

}  // namespace

absl::StatusOr<Schedule> ScheduleService::Find(const std::string& name) {
  STILL_ASSIGN_OR_RETURN(std::vector<Schedule> schedules, supervisor_.schedules().Schedules());
  std::vector<std::string> names;
  for (Schedule& schedule : schedules) {
    if (schedule.name() == name) return std::move(schedule);
    names.push_back(schedule.name());
  }
  return absl::NotFoundError(absl::StrCat("there is no schedule \"", name,
                                          "\"; there are: ", names.empty() ? "none" : absl::StrJoin(names, ", ")));
}

absl::StatusOr<schedulepb::Schedule> ScheduleService::Put(schedulepb::Schedule definition, bool replace) {
  absl::MutexLock lock(&changing_);
  absl::StatusOr<Schedule> known = Find(definition.name());
  if (replace && !known.ok()) return known.status();
  if (!replace && known.ok()) {
    return absl::AlreadyExistsError(
        absl::StrCat("schedule ", definition.name(), " exists; edit it, or remove it first"));
  }
  // What would have been due under other rules does not count.
  definition.set_counted_from_unix_ns(absl::ToUnixNanos(Clock::Real().Now()));
  STILL_ASSIGN_OR_RETURN(Schedule schedule, MakeSchedule(definition, HostTimeZone::Real().Now()));
  STILL_ASSIGN_OR_RETURN(store::ScheduleRow row, ToRow(schedule));
  STILL_RETURN_IF_ERROR(supervisor_.book().PutSchedule(row));
  supervisor_.SchedulesChanged();
  return schedule.definition;
}

grpc::Status ScheduleService::Add(grpc::ServerContext*, const schedulepb::Schedule* request,
                                  schedulepb::Schedule* response) {
  absl::StatusOr<schedulepb::Schedule> put = Put(*request, /*replace=*/false);
  if (!put.ok()) return ToGrpc(put.status());
  *response = *std::move(put);
  return grpc::Status::OK;
}

grpc::Status ScheduleService::Replace(grpc::ServerContext*, const schedulepb::Schedule* request,
                                      schedulepb::Schedule* response) {
  absl::StatusOr<schedulepb::Schedule> put = Put(*request, /*replace=*/true);
  if (!put.ok()) return ToGrpc(put.status());
  *response = *std::move(put);
  return grpc::Status::OK;
}

grpc::Status ScheduleService::Remove(grpc::ServerContext*, const schedulepb::Named* request, schedulepb::Done*) {
  absl::Status found = Find(request->name()).status();
  absl::Status removed = supervisor_.book().RemoveSchedule(request->name());
  absl::StatusOr<bool> lost = ForgetLost(supervisor_.book(), request->name());
  if (!lost.ok()) return ToGrpc(lost.status());
  if (absl::IsNotFound(removed) && *lost) removed = absl::OkStatus();
  // Also one that cannot be read; of one that is not there, Find() says which there are.
  if (absl::IsNotFound(removed) && !found.ok()) return ToGrpc(found);
  supervisor_.SchedulesChanged();
  return ToGrpc(removed);
}

grpc::Status ScheduleService::List(grpc::ServerContext*, const schedulepb::ListRequest* request,
                                   schedulepb::ScheduleList* response) {
  if (!request->name().empty()) {
    if (absl::Status found = Find(request->name()).status(); !found.ok()) return ToGrpc(found);
  }
  absl::StatusOr<std::vector<Schedule>> schedules = supervisor_.schedules().Schedules();
  if (!schedules.ok()) return ToGrpc(schedules.status());
  absl::StatusOr<std::vector<SessionState>> sessions = supervisor_.Sessions();
  if (!sessions.ok()) return ToGrpc(sessions.status());
  const absl::Time now = Clock::Real().Now();
  for (const Schedule& schedule : *schedules) {
    if (!request->name().empty() && schedule.name() != request->name()) continue;
    schedulepb::ScheduleList::Entry& entry = *response->add_schedules();
    *entry.mutable_schedule() = schedule.definition;
    std::optional<absl::Time> next;
    if (!schedule.definition.paused()) next = schedule.timing.Next(now);
    if (next.has_value()) entry.set_next_unix_ns(absl::ToUnixNanos(*next));
    for (const SessionState& session : *sessions) {
      if (schedule.per_session() && schedule.Fits(session.name)) entry.add_sessions(session.name);
    }
    if (schedule.captures()) entry.set_max_age(ShortDuration(schedule.MaxAge(now)));
    absl::StatusOr<std::vector<store::RunRow>> newest =
        supervisor_.book().ListRuns({.schedule = schedule.name(), .limit = 1});
    if (newest.ok() && !newest->empty()) *entry.mutable_newest() = ToProto(newest->front());
  }
  return grpc::Status::OK;
}

grpc::Status ScheduleService::RunNow(grpc::ServerContext*, const schedulepb::RunNowRequest* request,
                                     schedulepb::RunList* response) {
  if (absl::Status found = Find(request->name()).status(); !found.ok()) return ToGrpc(found);
  absl::StatusOr<BegunRuns> begun =
      supervisor_.RunNow(request->name(), {request->sessions().begin(), request->sessions().end()});
  if (!begun.ok()) return ToGrpc(begun.status());
  for (const store::RunRow& run : begun->runs) *response->add_runs() = ToProto(run);
  response->mutable_waiting()->Assign(begun->waiting.begin(), begun->waiting.end());
  return grpc::Status::OK;
}

grpc::Status ScheduleService::SetPaused(grpc::ServerContext*, const schedulepb::SetPausedRequest* request,
                                        schedulepb::Done*) {
  absl::StatusOr<Schedule> schedule = Find(request->name());
  if (!schedule.ok()) return ToGrpc(schedule.status());
  if (schedule->definition.paused() == request->paused()) return grpc::Status::OK;
  schedule->definition.set_paused(request->paused());
  return ToGrpc(Put(schedule->definition, /*replace=*/true).status());
}

grpc::Status ScheduleService::Check(grpc::ServerContext*, const schedulepb::CheckRequest*,
                                    schedulepb::CheckReport* response) {
  absl::StatusOr<schedulepb::CheckReport> report = supervisor_.Report();
  if (!report.ok()) return ToGrpc(report.status());
  *response = *std::move(report);
  return grpc::Status::OK;
}

grpc::Status ScheduleService::History(grpc::ServerContext*, const schedulepb::HistoryRequest* request,
                                      schedulepb::RunList* response) {
  const uint32_t limit = request->limit() == 0 ? kDefaultHistory : std::min(request->limit(), kMostHistory);
  absl::StatusOr<std::vector<store::RunRow>> runs = supervisor_.book().ListRuns(
      {.schedule = request->name(), .session = request->session(), .limit = static_cast<int64_t>(limit)});
  if (!runs.ok()) return ToGrpc(runs.status());
  for (const store::RunRow& run : *runs) *response->add_runs() = ToProto(run);
  return grpc::Status::OK;
}

}  // namespace still::schedule
