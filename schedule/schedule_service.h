// ScheduleService: ScheduleControl (proto/schedule.proto) over a Supervisor: in stilld on its socket, in the command in its
// own process when there is no daemon. A thin shell. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/synchronization/mutex.h"
#include "proto/schedule.grpc.pb.h"
#include "schedule/supervisor.h"

namespace still::schedule {

class ScheduleService final : public schedulepb::ScheduleControl::Service {
 public:
  explicit ScheduleService(Supervisor& supervisor) : supervisor_(supervisor) {}

  grpc::Status Add(grpc::ServerContext*, const schedulepb::Schedule* request, schedulepb::Schedule* response) override;
  grpc::Status Replace(grpc::ServerContext*, const schedulepb::Schedule* request,
                       schedulepb::Schedule* response) override;
  grpc::Status Remove(grpc::ServerContext*, const schedulepb::Named* request, schedulepb::Done*) override;
  grpc::Status List(grpc::ServerContext*, const schedulepb::ListRequest* request,
                    schedulepb::ScheduleList* response) override;
  grpc::Status RunNow(grpc::ServerContext*, const schedulepb::RunNowRequest* request,
                      schedulepb::RunList* response) override;
  grpc::Status SetPaused(grpc::ServerContext*, const schedulepb::SetPausedRequest* request, schedulepb::Done*) override;
  grpc::Status Check(grpc::ServerContext*, const schedulepb::CheckRequest* request,
                     schedulepb::CheckReport* response) override;
  grpc::Status History(grpc::ServerContext*, const schedulepb::HistoryRequest* request,
                       schedulepb::RunList* response) override;

 private:
  absl::StatusOr<Schedule> Find(const std::string& name);
  absl::StatusOr<schedulepb::Schedule> Put(schedulepb::Schedule definition, bool replace);

  Supervisor& supervisor_;
  absl::Mutex changing_;  // Held from looking at a schedule to storing it.
};

}  // namespace still::schedule
