// ControlService: SessionControl (proto/session.proto) for one session, on a UNIX socket. A thin shell: every call is
// translated to Session or CaptureService. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "base/status.h"
#include "proto/session.grpc.pb.h"
#include "session/control/capture_service.h"
#include "session/session.h"

namespace still::session {

class ControlService final : public sessionpb::SessionControl::Service {
 public:
  explicit ControlService(Session& session) : session_(session), captures_(session) {}

  CaptureService& captures() { return captures_; }

  grpc::Status Describe(grpc::ServerContext*, const sessionpb::DescribeRequest*,
                        sessionpb::DescribeResponse* response) override;
  grpc::Status Wait(grpc::ServerContext*, const sessionpb::WaitRequest*, sessionpb::SessionEnd* end) override;
  grpc::Status Stop(grpc::ServerContext*, const sessionpb::StopRequest*, sessionpb::SessionEnd* end) override;
  grpc::Status Exec(grpc::ServerContext*, const guestpb::ExecRequest*,
                    grpc::ServerWriter<guestpb::ExecOutput>* writer) override;
  grpc::Status Thaw(grpc::ServerContext*, const sessionpb::ThawRequest*, guestpb::ThawResponse* response) override;
  grpc::Status Resume(grpc::ServerContext*, const sessionpb::ResumeRequest*,
                      sessionpb::ResumeResponse* response) override;
  grpc::Status BeginCapture(grpc::ServerContext*, const sessionpb::BeginCaptureRequest*,
                            grpc::ServerWriter<sessionpb::CaptureEvent>* writer) override;
  grpc::Status EndCapture(grpc::ServerContext*, const sessionpb::EndCaptureRequest*,
                          sessionpb::EndCaptureResponse*) override;
  grpc::Status Hydrate(grpc::ServerContext*, const sessionpb::HydrateRequest* request,
                       sessionpb::HydrateResponse*) override;

 private:
  Session& session_;
  CaptureService captures_;
};

// Serves `service` on the UNIX socket `path` (mode 0600). The caller shuts the server down before it destroys the
// service.
absl::StatusOr<std::unique_ptr<grpc::Server>> ServeControl(ControlService& service, const std::string& path);

}  // namespace still::session
