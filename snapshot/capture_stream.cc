#include "snapshot/capture_stream.h"

#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/grpc_status.h"

namespace still::snapshot {
namespace {

// A dead socket is seen by us before the session's word about its cause arrives.
constexpr absl::Duration kFailureGrace = absl::Seconds(5);
constexpr absl::Duration kReleaseTimeout = absl::Seconds(20);
constexpr absl::Duration kEndTimeout = absl::Seconds(60);

absl::Status StatusOf(const sessionpb::CaptureFailed& failed) {
  std::string message = failed.message();
  if (!failed.guest_running()) absl::StrAppend(&message, " (the guest could not be seen running again)");
  if (!failed.guest_thawed()) absl::StrAppend(&message, " (the guest could not be seen thawed; its lease thaws it)");
  return absl::Status(static_cast<absl::StatusCode>(failed.code()), message);
}

}  // namespace

std::unique_ptr<CaptureStream> CaptureStream::Begin(sessionpb::SessionControl::Stub& control,
                                                    const sessionpb::BeginCaptureRequest& request, Options options) {
  options.silence += absl::Milliseconds(request.freeze_lease_ms()) + absl::Milliseconds(request.max_pause_ms());
  auto stream = absl::WrapUnique(new CaptureStream(control, std::move(options)));
  stream->reader_ = control.BeginCapture(&stream->context_, request);
  stream->thread_ = std::thread([s = stream.get()] { s->ReadLoop(); });
  return stream;
}

CaptureStream::~CaptureStream() {
  {
    // A session that has reported a failure is taking its pins away; another capture is welcome when it has.
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) mutex_.AwaitWithTimeout(absl::Condition(&closed_), kReleaseTimeout);
  }
  context_.TryCancel();
  thread_.join();
}

void CaptureStream::ReadLoop() {
  sessionpb::CaptureEvent event;
  while (reader_->Read(&event)) Handle(std::move(event));
  absl::Status status = FromGrpc(reader_->Finish());
  absl::MutexLock lock(&mutex_);
  if (failure_.ok()) failure_ = status;
  closed_ = true;
}

void CaptureStream::Handle(sessionpb::CaptureEvent event) {
  absl::ReleasableMutexLock lock(&mutex_);
  ++heard_;
  if (event.has_phase()) {
    if (event.phase().end_ns() != 0) return;
    step_ = event.phase().name();
    lock.Release();
    options_.on_step(event.phase().name());
  } else if (event.has_prepared()) {
    prepared_ = event.prepared();
  } else if (event.has_pinned()) {
    pinned_event_ = event.pinned();
    pinned_ = true;
  } else if (event.has_thaw_hooks()) {
    thaw_hooks_ = event.thaw_hooks();
  } else if (event.has_failed()) {
    failure_ = StatusOf(event.failed());
  }
}

absl::Status CaptureStream::Wait(const std::function<bool()>& came, const std::function<uint64_t()>& moved) {
  uint64_t heard_before = 0;
  uint64_t moved_before = moved();
  for (;;) {
    std::string step;
    bool silent;
    {
      absl::MutexLock lock(&mutex_);
      auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return came() || !failure_.ok() || closed_; };
      if (mutex_.AwaitWithTimeout(absl::Condition(&over), options_.silence)) {
        if (!failure_.ok()) return failure_;
        return came() ? absl::OkStatus() : absl::UnavailableError("the session ended the capture without a word");
      }
      silent = heard_ == std::exchange(heard_before, heard_);
      step = step_;
    }
    const uint64_t moved_now = moved();
    if (std::exchange(moved_before, moved_now) == moved_now && silent) return Silent(step);
  }
}

absl::Status CaptureStream::Silent(const std::string& step) const {
  return absl::DeadlineExceededError(absl::StrCat(
      "session ", options_.session, " began the capture and then said nothing for ",
      absl::FormatDuration(options_.silence), step.empty() ? "" : absl::StrCat(", in step ", step),
      "; the capture is given up, and the session undoes it when it works again; look whether its still-session was "
      "stopped (`still ps`), or end it with `still stop --force ",
      options_.session, "`"));
}

absl::StatusOr<sessionpb::CapturePrepared> CaptureStream::WaitPrepared() {
  auto came = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return prepared_.has_value(); };
  STILL_RETURN_IF_ERROR(Wait(came, [] { return uint64_t{0}; }));
  absl::MutexLock lock(&mutex_);
  return *prepared_;
}

absl::Status CaptureStream::WaitPinned(const std::function<uint64_t()>& moved) {
  return Wait([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return pinned_; }, moved);
}

std::optional<sessionpb::ThawHooks> CaptureStream::WaitThawHooks(absl::Duration limit) {
  absl::MutexLock lock(&mutex_);
  auto told = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return thaw_hooks_.has_value() || !failure_.ok() || closed_;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&told), limit);
  return thaw_hooks_;
}

absl::Status CaptureStream::FailureOr(const absl::Status& seen) {
  absl::MutexLock lock(&mutex_);
  auto known = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !failure_.ok() || closed_; };
  if (!seen.ok()) mutex_.AwaitWithTimeout(absl::Condition(&known), kFailureGrace);
  return failure_.ok() ? seen : failure_;
}

absl::Status CaptureStream::End(bool committed) {
  sessionpb::EndCaptureRequest request;
  {
    absl::MutexLock lock(&mutex_);
    if (!prepared_.has_value()) return absl::FailedPreconditionError("the capture never began");
    request.set_capture_id(prepared_->capture_id());
  }
  request.set_committed(committed);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kEndTimeout));
  sessionpb::EndCaptureResponse response;
  return FromGrpc(control_.EndCapture(&context, request, &response));
}

}  // namespace still::snapshot
