#include "session/control/control_service.h"

#include <sys/stat.h>

#include <cerrno>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "proto/grpc_status.h"
#include "session/describe_session.h"

namespace still::session {
namespace {

constexpr absl::Duration kAgentTimeout = absl::Seconds(5);
constexpr absl::Duration kDefaultThawTimeout = absl::Seconds(30);
constexpr absl::Duration kWaitSlice = absl::Milliseconds(200);

}  // namespace

grpc::Status ControlService::Describe(grpc::ServerContext*, const sessionpb::DescribeRequest*,
                                      sessionpb::DescribeResponse* response) {
  *response = DescribeSession(session_);
  response->set_active_capture(captures_.active());
  return grpc::Status::OK;
}

grpc::Status ControlService::Wait(grpc::ServerContext* context, const sessionpb::WaitRequest*,
                                  sessionpb::SessionEnd* end) {
  // In slices, so that a caller who has left frees its thread.
  while (!context->IsCancelled()) {
    if (session_.WaitFor(kWaitSlice).has_value()) {
      *end = session_.Wait();
      return grpc::Status::OK;
    }
  }
  return grpc::Status::CANCELLED;
}

grpc::Status ControlService::Stop(grpc::ServerContext*, const sessionpb::StopRequest* request,
                                  sessionpb::SessionEnd* end) {
  captures_.Abort();
  session_.Stop(absl::Milliseconds(request->grace_ms()));
  *end = session_.Wait();
  return grpc::Status::OK;
}

grpc::Status ControlService::Exec(grpc::ServerContext* context, const guestpb::ExecRequest* request,
                                  grpc::ServerWriter<guestpb::ExecOutput>* writer) {
  if (session_.link() == nullptr) {
    return ToGrpc(absl::FailedPreconditionError("the session has no vsock, so no agent to ask"));
  }
  absl::StatusOr<std::shared_ptr<GuestClient>> client = session_.link()->Client(kAgentTimeout);
  if (!client.ok()) return ToGrpc(client.status());
  auto forward = [&](const guestpb::ExecOutput& output) { return !context->IsCancelled() && writer->Write(output); };
  return ToGrpc((*client)->Exec(*request, forward, context).status());
}

grpc::Status ControlService::Thaw(grpc::ServerContext*, const sessionpb::ThawRequest* request,
                                  guestpb::ThawResponse* response) {
  if (captures_.window_open() && !request->force()) {
    return ToGrpc(absl::FailedPreconditionError(absl::StrCat(
        "a snapshot of ", session_.config().name(),
        " is being taken: it thaws the guest by itself within seconds, and the guest does so if it cannot; "
        "--force thaws now and may cost the snapshot its consistency label")));
  }
  absl::Duration timeout = request->timeout_ms() > 0 ? absl::Milliseconds(request->timeout_ms()) : kDefaultThawTimeout;
  absl::StatusOr<guestpb::ThawResponse> thaw = session_.guest_thaw().Thaw(timeout);
  if (!thaw.ok()) return ToGrpc(thaw.status());
  *response = *std::move(thaw);
  return grpc::Status::OK;
}

grpc::Status ControlService::Resume(grpc::ServerContext*, const sessionpb::ResumeRequest*,
                                    sessionpb::ResumeResponse* response) {
  // On the executor, where no window can begin meanwhile.
  return ToGrpc(session_.executor().Run([&]() -> absl::Status {
    if (!captures_.active().empty()) {
      return absl::FailedPreconditionError("a snapshot is being taken of the session, which ends its pause by itself");
    }
    Vm& vm = session_.vm();
    STILL_ASSIGN_OR_RETURN(std::optional<Standstill> standstill, vm.FindStandstill());
    if (standstill.has_value() && standstill->kind == Standstill::Kind::kHeld) {
      return absl::FailedPreconditionError("a disk that cannot be read or written holds the guest until it can");
    }
    STILL_ASSIGN_OR_RETURN(bool paused, vm.IsPaused());
    if (paused) STILL_RETURN_IF_ERROR(vm.Resume());
    response->set_was_paused(paused);
    return absl::OkStatus();
  }));
}

grpc::Status ControlService::BeginCapture(grpc::ServerContext* context, const sessionpb::BeginCaptureRequest* request,
                                          grpc::ServerWriter<sessionpb::CaptureEvent>* writer) {
  return ToGrpc(captures_.Begin(*context, *request, *writer));
}

grpc::Status ControlService::EndCapture(grpc::ServerContext*, const sessionpb::EndCaptureRequest* request,
                                        sessionpb::EndCaptureResponse*) {
  return ToGrpc(captures_.End(*request));
}

grpc::Status ControlService::Hydrate(grpc::ServerContext*, const sessionpb::HydrateRequest* request,
                                     sessionpb::HydrateResponse*) {
  session_.Hydrate(request->bytes_per_second());
  return grpc::Status::OK;
}

absl::StatusOr<std::unique_ptr<grpc::Server>> ServeControl(ControlService& service, const std::string& path) {
  STILL_RETURN_IF_ERROR(RemoveFile(path));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("unix:", path), grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", path, "; its path may be longer than the 107 bytes of a UNIX socket"));
  }
  // The directory is 0700 already; the mode protects also where somebody has opened that up.
  if (::chmod(path.c_str(), 0600) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path));
  return server;
}

}  // namespace still::session
