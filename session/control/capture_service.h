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

  // Fault tests: this file, when it is there, names a step and a delay in milliseconds ("pin_disks:1500"); every window
  // waits that long before that step, or until the file says something else, so that something can happen inside of it.
  void SetFaultFile(std::string path) { fault_file_ = std::move(path); }

  // Runs the capture and blocks until EndCapture, the caller's disappearance or a failure.
  absl::Status Begin(grpc::ServerContext& context, const sessionpb::BeginCaptureRequest& request,
                     grpc::ServerWriter<sessionpb::CaptureEvent>& writer);
  absl::Status End(const sessionpb::EndCaptureRequest& request);
  // Ends a capture that is under way, because the session ends.
  void Abort();
  // Empty when none is under way.
  std::string active() const;
  // The window of one is open, or about to be: it has frozen the guest, and will thaw it by itself.
  bool window_open() const;

 private:
  struct Active;

  // `no_memory_reason`: for the caller, when there will be none though it was asked for.
  absl::StatusOr<OwnedFd> AcceptMemorySink(Active& active, const std::string& no_memory_reason);
  absl::Status Window(Active& active, const sessionpb::BeginCaptureRequest& request);
  absl::Status Drain(Active& active);
  // Tells the caller of the thaw hooks once they have ended; true when there is no more to tell.
  bool TellThawHooks(Active& active);
  sessionpb::CaptureEvent FailureEvent(const absl::Status& status);

  void DelayIfAsked(const std::string& step) const;

  Session& session_;
  std::string fault_file_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<Active> active_ ABSL_GUARDED_BY(mutex_);  // Shared by Begin and End.
};

}  // namespace still::session
