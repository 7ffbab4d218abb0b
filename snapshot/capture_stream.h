// CaptureStream: the caller's end of BeginCapture (proto/session.proto). A thread reads the session's events as they
// come; the rest of the pipeline waits for the ones it needs. While it lives the capture lives; destroying it without
// End() makes the session abandon the capture. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.grpc.pb.h"

namespace still::snapshot {

class CaptureStream {
 public:
  // `control` must outlive the stream. `on_step` hears the name of each step of the window as it begins.
  static std::unique_ptr<CaptureStream> Begin(sessionpb::SessionControl::Stub& control,
                                              const sessionpb::BeginCaptureRequest& request,
                                              std::function<void(const std::string&)> on_step);
  ~CaptureStream();

  absl::StatusOr<sessionpb::CapturePrepared> WaitPrepared();
  absl::Status WaitPinned();
  // After WaitPinned was OK.
  const sessionpb::CapturePinned& pinned() const { return pinned_event_; }

  // What became of the guest's thaw hooks, waiting for it up to `limit`; nothing when they run on.
  std::optional<sessionpb::ThawHooks> WaitThawHooks(absl::Duration limit);

  // The failure the session has reported, waiting a moment for one that is on its way when `seen` is an error; else
  // `seen`.
  absl::Status FailureOr(const absl::Status& seen);
  // Tells the session how it went and waits until it has released everything.
  absl::Status End(bool committed);

 private:
  CaptureStream(sessionpb::SessionControl::Stub& control, std::function<void(const std::string&)> on_step)
      : control_(control), on_step_(std::move(on_step)) {}
  void ReadLoop();
  void Handle(sessionpb::CaptureEvent event);

  sessionpb::SessionControl::Stub& control_;
  const std::function<void(const std::string&)> on_step_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<sessionpb::CaptureEvent>> reader_;
  mutable absl::Mutex mutex_;
  std::optional<sessionpb::CapturePrepared> prepared_ ABSL_GUARDED_BY(mutex_);
  bool pinned_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<sessionpb::ThawHooks> thaw_hooks_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  sessionpb::CapturePinned pinned_event_;  // Written once, before pinned_ is set.
  std::thread thread_;
};

}  // namespace still::snapshot
