// CaptureService: one session's captures, behind BeginCapture and EndCapture (proto/session.proto). At most one at a
// time.
//
// The caller's life line is the BeginCapture stream: when it breaks, at whatever moment, the window's guards resume and
// thaw, the memory stream is cancelled and every pin is taken away. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.grpc.pb.h"
#include "session/session.h"

namespace still::session {

class CaptureService {
 public:
  explicit CaptureService(Session& session) : session_(session) {}

  // Fault tests: waits this long before the named step of every window, so that a caller can be killed inside of it.
  void DelayStep(std::string step, absl::Duration delay);

  // Runs the capture and blocks until EndCapture, the caller's disappearance or a failure.
  absl::Status Begin(grpc::ServerContext& context, const sessionpb::BeginCaptureRequest& request,
                     grpc::ServerWriter<sessionpb::CaptureEvent>& writer);
  absl::Status End(const sessionpb::EndCaptureRequest& request);
  // Ends a capture that is under way, because the session ends.
  void Abort();
  // Empty when none is under way.
  std::string active() const;

 private:
  struct Active;

  absl::StatusOr<OwnedFd> AcceptMemorySink(Active& active);
  absl::Status Window(Active& active, const sessionpb::BeginCaptureRequest& request);
  absl::Status Drain(Active& active);
  sessionpb::CaptureEvent FailureEvent(const absl::Status& status);

  Session& session_;
  std::string delayed_step_;
  absl::Duration step_delay_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<Active> active_ ABSL_GUARDED_BY(mutex_);  // Shared by Begin and End.
};

}  // namespace still::session
