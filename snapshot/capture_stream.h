// CaptureStream: the caller's end of BeginCapture (proto/session.proto). A thread reads the session's events as they
// come; the rest of the pipeline waits for the ones it needs. While it lives the capture lives; destroying it without
// End() makes the session abandon the capture. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.grpc.pb.h"

namespace still::snapshot {

// A session that is well says something at each step. The longest is the freeze of a guest that hangs: two minutes with its
// write-back and its hooks (session/guest/frozen_guest.h). One that is silent for longer hangs itself.
inline constexpr absl::Duration kSessionSilence = absl::Minutes(3);

class CaptureStream {
 public:
  struct Options {
    std::string session;  // Its name, for errors.
    // Hears the name of each step of the window as it begins.
    std::function<void(const std::string&)> on_step = [](const std::string&) {};
    // Beyond what the request allows: the lease and the longest pause.
    absl::Duration silence = kSessionSilence;
  };

  // `control` must outlive the stream.
  static std::unique_ptr<CaptureStream> Begin(sessionpb::SessionControl::Stub& control,
                                              const sessionpb::BeginCaptureRequest& request, Options options);
  ~CaptureStream();

  // DEADLINE_EXCEEDED: the session was silent for too long; it is noticed within twice that time.
  absl::StatusOr<sessionpb::CapturePrepared> WaitPrepared();
  // The same; a session whose `moved` grows, bytes that came by another way, is not silent.
  absl::Status WaitPinned(const std::function<uint64_t()>& moved = [] { return uint64_t{0}; });
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
  CaptureStream(sessionpb::SessionControl::Stub& control, Options options)
      : control_(control), options_(std::move(options)) {}
  void ReadLoop();
  // Until `came`, a failure or the end.
  absl::Status Wait(const std::function<bool()>& came, const std::function<uint64_t()>& moved)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Silent(const std::string& step) const;
  void Handle(sessionpb::CaptureEvent event);

  sessionpb::SessionControl::Stub& control_;
  const Options options_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<sessionpb::CaptureEvent>> reader_;
  mutable absl::Mutex mutex_;
  uint64_t heard_ ABSL_GUARDED_BY(mutex_) = 0;  // Events.
  std::string step_ ABSL_GUARDED_BY(mutex_);    // The last that was heard of.
  std::optional<sessionpb::CapturePrepared> prepared_ ABSL_GUARDED_BY(mutex_);
  bool pinned_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<sessionpb::ThawHooks> thaw_hooks_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  sessionpb::CapturePinned pinned_event_;  // Written once, before pinned_ is set.
  std::thread thread_;
};

}  // namespace still::snapshot
