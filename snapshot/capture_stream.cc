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
                                                    const sessionpb::BeginCaptureRequest& request,
                                                    std::function<void(const std::string&)> on_step) {
  auto stream = absl::WrapUnique(new CaptureStream(control, std::move(on_step)));
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
  if (event.has_phase()) {
    if (event.phase().end_ns() == 0) on_step_(event.phase().name());
    return;
  }
  absl::MutexLock lock(&mutex_);
  if (event.has_prepared()) {
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

absl::StatusOr<sessionpb::CapturePrepared> CaptureStream::WaitPrepared() {
  absl::MutexLock lock(&mutex_);
  auto ready = [this]()
                   ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return prepared_.has_value() || !failure_.ok() || closed_; };
  mutex_.Await(absl::Condition(&ready));
  if (prepared_.has_value() && failure_.ok()) return *prepared_;
  if (failure_.ok()) return absl::UnavailableError("the session ended the capture without a word");
  return failure_;
}

absl::Status CaptureStream::WaitPinned() {
  absl::MutexLock lock(&mutex_);
  auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return pinned_ || !failure_.ok() || closed_; };
  mutex_.Await(absl::Condition(&ready));
  if (pinned_ && failure_.ok()) return absl::OkStatus();
  if (failure_.ok()) return absl::UnavailableError("the session ended the capture without a word");
  return failure_;
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
