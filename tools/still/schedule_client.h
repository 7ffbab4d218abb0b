// ScheduleClient: how `still schedule` reaches the schedules: through stilld where it runs, else by the same service in
// our own process. Not thread-safe.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/schedule.grpc.pb.h"
#include "schedule/schedule_service.h"
#include "schedule/supervisor.h"
#include "tools/still/configuration.h"
#include "tools/still/context.h"

namespace still::cli {

using ScheduleControl = ::stillpoint::schedule::v1::ScheduleControl;

class ScheduleClient {
 public:
  static absl::StatusOr<std::unique_ptr<ScheduleClient>> Connect(const Context& context);
  // Somebody takes connections where stilld would; whether it works is another question.
  static bool DaemonListens(const Context& context);

  // Calls like Call(&ScheduleControl::Stub::Add, request).
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (ScheduleControl::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                              Response*),
                                const Request& request) {
    grpc::ClientContext context;
    // Only a daemon that hangs takes so long.
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    Response response;
    grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return Failed(status);
    return response;
  }
  bool daemon() const { return supervisor_ == nullptr; }
  // Without a daemon only: the schedules themselves.
  schedule::Supervisor& supervisor() { return *supervisor_; }

 private:
  ScheduleClient() = default;
  static absl::Status Failed(const grpc::Status& status);

  std::unique_ptr<schedule::Supervisor> supervisor_;
  std::unique_ptr<schedule::ScheduleService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ScheduleControl::Stub> stub_;
};

// Who is told by commands: those whom stilld tells (its configuration file, if that can be read), and over them the
// environment's.
schedule::AnnouncerOptions ConfiguredChannels(const std::string& configuration = kConfigurationFile);

// The schedules of this host by ourselves, whether a daemon runs or not.
absl::StatusOr<std::unique_ptr<schedule::Supervisor>> OpenSupervisor(const Context& context);
// For whoever works on them: begins without a repository as stilld does, and tells at once what keeps it from working.
absl::StatusOr<std::unique_ptr<schedule::Supervisor>> OpenSupervisorInCharge(const Context& context);

// A look of our own takes seconds; one at a hard NFS mount whose server is gone never ends.
inline constexpr absl::Duration kLongestLook = absl::Minutes(2);
// Supervisor::LookForTrouble() by ourselves. When the repository or the book hangs, that is told, and the process ends.
absl::StatusOr<schedulepb::CheckReport> LookWithinLimit(const Context& context, const std::string& trouble,
                                                        absl::Duration limit = kLongestLook);
// Neither book nor repository can be had: it is told without them, each time. Gives `why`.
absl::Status TellWithoutBook(const absl::Status& why);
// The same for what a timer calls each minute: once in an hour, when somebody could be told.
absl::Status TellWithoutBookHourly(const Context& context, const absl::Status& why);

}  // namespace still::cli
