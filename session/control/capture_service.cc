#include "session/control/capture_service.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "base/bounded_queue.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "base/unix_socket.h"
#include "session/capture/critical_window.h"

namespace still::session {
namespace {

constexpr absl::Duration kSinkTimeout = absl::Seconds(10);
// The guest's writes to memory that is not yet saved wait for the stream: a reader that takes nothing for this long has
// lost its capture (issue: a stuck drain is cancelled within a second).
constexpr absl::Duration kMemoryStallLimit = absl::Seconds(1);
constexpr absl::Duration kVanishedCheck = absl::Milliseconds(50);
constexpr absl::Duration kFaultPoll = absl::Milliseconds(20);
// How often the guest is asked whether its thaw hooks have ended, and how long it may take to answer.
constexpr absl::Duration kMaxHooksPause = absl::Seconds(2);
constexpr absl::Duration kHooksCallTimeout = absl::Seconds(1);
constexpr absl::Duration kDefaultFreezeLease = absl::Seconds(10);
constexpr absl::Duration kDefaultHookTimeout = absl::Seconds(10);
constexpr absl::Duration kLongestMaxPause = absl::Minutes(10);

FreezeOptions FreezeOptionsOf(const sessionpb::BeginCaptureRequest& request) {
  FreezeOptions options;
  options.lease = request.freeze_lease_ms() > 0 ? absl::Milliseconds(request.freeze_lease_ms()) : kDefaultFreezeLease;
  options.hook_timeout =
      request.hook_timeout_ms() > 0 ? absl::Milliseconds(request.hook_timeout_ms()) : kDefaultHookTimeout;
  options.hook_policy = request.hook_policy();
  options.skip_presync = request.skip_presync();
  return options;
}

absl::StatusOr<CaptureOptions> CaptureOptionsOf(const sessionpb::BeginCaptureRequest& request) {
  CaptureOptions options{.memory = request.memory(),
                         .repository_id = request.repository_id(),
                         .stop_for_memory = request.memory_policy() == sessionpb::MEMORY_STOP,
                         .track_memory = request.memory() && request.track_memory(),
                         .base_memory = request.base_memory(),
                         .pin_space_limit = request.pin_space_limit()};
  options.base_bitmaps.assign(request.base_bitmaps().begin(), request.base_bitmaps().end());
  if (request.max_pause_ms() > 0) options.max_pause = absl::Milliseconds(request.max_pause_ms());
  if (options.max_pause > kLongestMaxPause) {
    return absl::InvalidArgumentError(absl::StrCat("a pause of ", absl::FormatDuration(options.max_pause), "; at most ",
                                                   absl::FormatDuration(kLongestMaxPause), " are allowed"));
  }
  return options;
}

// Empty when it can be saved as asked for.
std::string WhyNoMemory(const Capabilities& can, const CaptureOptions& options) {
  if (!can.memory) return "this hypervisor cannot save memory";
  if (can.background_memory || options.stop_for_memory || can.stopped_memory_pause <= options.max_pause) return "";
  return absl::StrCat("memory can only be saved while the machine stands still (", can.background_memory_reason,
                      "), for about ", absl::FormatDuration(absl::Ceil(can.stopped_memory_pause, absl::Seconds(1))),
                      ", and it may stand still for ", absl::FormatDuration(options.max_pause),
                      " (--max-pause; or ask for it: --memory stop)");
}

sessionpb::CaptureEvent PhaseEvent(const std::string& step, absl::Duration start, absl::Duration end) {
  sessionpb::CaptureEvent event;
  event.mutable_phase()->set_name(step);
  event.mutable_phase()->set_start_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(start)));
  event.mutable_phase()->set_end_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(end)));
  return event;
}

// Writes events from a thread of its own: a caller that reads slowly, or not at all, must not hold a frozen guest.
class EventSender {
 public:
  explicit EventSender(grpc::ServerWriter<sessionpb::CaptureEvent>& writer)
      : thread_([this, &writer] {
          while (auto event = events_.Pop()) writer.Write(*event);  // A caller who has left is noticed by its context.
        }) {}
  ~EventSender() {
    events_.Close();
    thread_.join();
  }
  void Send(sessionpb::CaptureEvent event) { events_.Push(std::move(event)); }

 private:
  // One capture sends two events a step and a handful more: the queue never fills.
  static constexpr size_t kMaxEvents = 64;
  BoundedQueue<sessionpb::CaptureEvent> events_{kMaxEvents};
  std::thread thread_;
};

}  // namespace

struct CaptureService::Active {
  std::string id;
  grpc::ServerContext* context;
  std::unique_ptr<VmCapture> capture;
  EventSender* events;
  bool memory = false;
  std::atomic<bool> in_window = true;
  uint32_t pending_thaw_hooks = 0;

  absl::Mutex mutex;
  bool ended ABSL_GUARDED_BY(mutex) = false;  // EndCapture was called, or Abort.
  bool committed ABSL_GUARDED_BY(mutex) = false;
  bool aborted ABSL_GUARDED_BY(mutex) = false;
  bool released ABSL_GUARDED_BY(mutex) = false;
  absl::Status release_status ABSL_GUARDED_BY(mutex);

  bool Vanished() {
    absl::MutexLock lock(&mutex);
    return aborted || context->IsCancelled();
  }
};

void CaptureService::DelayIfAsked(const std::string& step) const {
  if (fault_file_.empty()) return;
  absl::StatusOr<std::string> text = ReadFile(fault_file_, 256);
  if (!text.ok()) return;
  std::pair<std::string, std::string> fault = absl::StrSplit(absl::StripSuffix(*text, "\n"), absl::MaxSplits(':', 1));
  int milliseconds = 0;
  if (fault.first != step || !absl::SimpleAtoi(fault.second, &milliseconds)) return;
  LogWarning("fault: step delayed", {{"step", step}, {"milliseconds", milliseconds}});
  const absl::Duration end = Clock::Real().Monotonic() + absl::Milliseconds(milliseconds);
  while (Clock::Real().Monotonic() < end && ReadFile(fault_file_, 256).value_or("") == *text) {
    Clock::Real().Sleep(std::min(kFaultPoll, end - Clock::Real().Monotonic()));
  }
}

std::string CaptureService::active() const {
  absl::MutexLock lock(&mutex_);
  return active_ == nullptr ? "" : active_->id;
}

bool CaptureService::window_open() const {
  absl::MutexLock lock(&mutex_);
  return active_ != nullptr && active_->in_window;
}

absl::Status CaptureService::Begin(grpc::ServerContext& context, const sessionpb::BeginCaptureRequest& request,
                                   grpc::ServerWriter<sessionpb::CaptureEvent>& writer) {
  EventSender events(writer);
  auto active = std::make_shared<Active>();
  active->id = RandomUuid();
  active->context = &context;
  active->events = &events;
  {
    absl::MutexLock lock(&mutex_);
    if (active_ != nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("session ", session_.config().name(), " is already being captured; wait for that to end"));
    }
    active_ = active;
  }
  absl::Status status = Window(*active, request);
  active->in_window = false;
  if (status.ok()) status = Drain(*active);
  if (!status.ok()) events.Send(FailureEvent(status));
  bool committed;
  {
    absl::MutexLock lock(&active->mutex);
    committed = status.ok() && active->committed;
  }
  absl::Status released = absl::OkStatus();
  if (active->capture != nullptr) {
    released = session_.executor().Run([&] { return active->capture->Release(committed); });
    active->capture.reset();
  }
  if (!released.ok()) LogError("capture not released cleanly", {{"error", released.ToString()}});
  {
    absl::MutexLock lock(&active->mutex);
    active->released = true;
    active->release_status = released;
  }
  absl::MutexLock lock(&mutex_);
  active_ = nullptr;
  return status;
}

absl::StatusOr<OwnedFd> CaptureService::AcceptMemorySink(Active& active, const std::string& no_memory_reason) {
  sessionpb::CaptureEvent event;
  event.mutable_prepared()->set_capture_id(active.id);
  event.mutable_prepared()->set_no_memory_reason(no_memory_reason);
  if (!active.memory) {
    active.events->Send(std::move(event));
    return OwnedFd();
  }
  std::string path = JoinPath(session_.directory(), "memory.sock");
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, ListenUnix(path, 1));
  absl::Cleanup remove = [&path] { RemoveFile(path).IgnoreError(); };
  event.mutable_prepared()->set_memory_socket(path);
  event.mutable_prepared()->set_memory_format(session_.machine().device_state_format());
  active.events->Send(std::move(event));
  return AcceptWithin(listening.get(), kSinkTimeout, "the caller's connection for the memory stream");
}

absl::Status CaptureService::Window(Active& active, const sessionpb::BeginCaptureRequest& request) {
  STILL_ASSIGN_OR_RETURN(CaptureOptions options, CaptureOptionsOf(request));
  std::string no_memory;
  if (options.memory) no_memory = WhyNoMemory(session_.vm().capabilities(), options);
  if (!no_memory.empty() && request.memory_policy() != sessionpb::MEMORY_TRY) {
    return absl::FailedPreconditionError(absl::StrCat(no_memory, "; or take a snapshot of the disks only"));
  }
  active.memory = options.memory = options.memory && no_memory.empty();
  if (request.quiesce() == sessionpb::QUIESCE_REQUIRE && session_.link() == nullptr) {
    return absl::FailedPreconditionError("quiesce=require, but the session has no vsock and so no agent");
  }
  STILL_ASSIGN_OR_RETURN(OwnedFd sink, AcceptMemorySink(active, no_memory));
  Freezer freezer = session_.link() == nullptr ? nullptr : MakeGuestFreezer(*session_.link());

  absl::StatusOr<WindowReport> report;
  std::vector<PinnedDiskExport> exports;
  WindowObserver observer;
  observer.on_start = [this, &active](const std::string& step, absl::Duration now) {
    active.events->Send(PhaseEvent(step, now, absl::ZeroDuration()));
    DelayIfAsked(step);
  };
  observer.on_end = [&active](const WindowPhase& phase) {
    active.events->Send(PhaseEvent(phase.name, phase.start, phase.end));
  };
  observer.cancelled = [&active] { return active.Vanished(); };
  STILL_RETURN_IF_ERROR(session_.executor().Run([&]() -> absl::Status {
    STILL_ASSIGN_OR_RETURN(active.capture, session_.vm().PrepareCapture(options, std::move(sink)));
    CriticalWindow window(
        Clock::Real(), *active.capture, freezer,
        {.quiesce = request.quiesce(), .freeze = FreezeOptionsOf(request), .disks = session_.machine().disks()},
        observer);
    STILL_ASSIGN_OR_RETURN(report, window.Run());
    STILL_ASSIGN_OR_RETURN(exports, active.capture->ExportDisks());
    return absl::OkStatus();
  }));

  active.pending_thaw_hooks = report->pending_thaw_hooks;
  sessionpb::CaptureEvent event;
  sessionpb::CapturePinned& pinned = *event.mutable_pinned();
  *pinned.mutable_consistency() = std::move(report->consistency);
  *pinned.mutable_windows() = std::move(report->windows);
  pinned.mutable_windows()->set_no_memory_reason(no_memory);
  pinned.set_point_unix_ns(absl::ToUnixNanos(report->point));
  pinned.set_memory_point(report->memory_point);
  *pinned.mutable_machine() = session_.machine();
  for (PinnedDiskExport& disk : exports) {
    sessionpb::PinnedDisk& out = *pinned.add_disks();
    out.set_name(disk.name);
    out.set_size(disk.size);
    out.set_nbd_socket(disk.nbd_socket);
    out.set_nbd_export(disk.nbd_export);
    out.set_dirty_context(disk.dirty_context);
    out.set_full_read_reason(disk.full_read_reason);
    out.set_bitmap(disk.bitmap);
  }
  active.events->Send(std::move(event));
  return absl::OkStatus();
}

absl::Status CaptureService::Drain(Active& active) {
  absl::Status memory = absl::OkStatus();
  absl::Notification memory_done;
  std::thread memory_watcher([&] {
    if (active.memory) {
      memory = active.capture->WaitForMemory(kMemoryStallLimit);
      sessionpb::CaptureEvent event;
      event.mutable_memory_streamed()->set_bytes(active.capture->memory_bytes_written());
      if (memory.ok()) active.events->Send(std::move(event));
    }
    memory_done.Notify();
  });
  absl::Cleanup join = [&] {
    if (!memory_done.HasBeenNotified()) active.capture->Cancel();
    memory_watcher.join();
  };
  absl::Duration hooks_pause = kVanishedCheck;
  absl::Duration hooks_next = Clock::Real().Monotonic();
  for (;;) {
    if (active.pending_thaw_hooks > 0 && Clock::Real().Monotonic() >= hooks_next) {
      if (TellThawHooks(active)) active.pending_thaw_hooks = 0;
      hooks_pause = std::min(2 * hooks_pause, kMaxHooksPause);
      hooks_next = Clock::Real().Monotonic() + hooks_pause;
    }
    if (memory_done.HasBeenNotified() && !memory.ok()) return memory;
    STILL_RETURN_IF_ERROR(active.capture->CheckPins());
    if (session_.WaitFor(absl::ZeroDuration()).has_value()) {
      return absl::AbortedError("the session ended while it was being captured");
    }
    absl::MutexLock lock(&active.mutex);
    auto ended = [&active]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(active.mutex) { return active.ended; };
    if (active.mutex.AwaitWithTimeout(absl::Condition(&ended), kVanishedCheck)) return absl::OkStatus();
    if (active.context->IsCancelled()) return absl::CancelledError("the caller of the capture has gone");
  }
}

bool CaptureService::TellThawHooks(Active& active) {
  absl::StatusOr<std::shared_ptr<GuestClient>> client = session_.link()->Client(kHooksCallTimeout);
  if (!client.ok()) return false;
  absl::StatusOr<guestpb::QuiesceStatusResponse> status = (*client)->QuiesceStatus(kHooksCallTimeout);
  if (!status.ok() || status->thaw_hooks_pending() > 0) return false;
  sessionpb::CaptureEvent event;
  for (const guestpb::HookResult& hook : status->thaw_hooks()) {
    if (hook.exit_code() != 0) {
      LogWarning("thaw hook failed", {{"hook", hook.path()}, {"exit", hook.exit_code()}, {"output", hook.output()}});
    }
    KeepHook(hook, *event.mutable_thaw_hooks()->add_hooks());
    if (event.thaw_hooks().hooks_size() == kMaxHooksKept) break;
  }
  active.events->Send(std::move(event));
  return true;
}

sessionpb::CaptureEvent CaptureService::FailureEvent(const absl::Status& status) {
  LogWarning("capture failed", {{"session", session_.config().name()}, {"error", status.ToString()}});
  sessionpb::CaptureEvent event;
  sessionpb::CaptureFailed& failed = *event.mutable_failed();
  failed.set_code(static_cast<int>(status.code()));
  failed.set_message(std::string(status.message()));
  absl::StatusOr<bool> paused = session_.vm().IsPaused();
  failed.set_guest_running(paused.ok() && !*paused);
  failed.set_guest_thawed(true);
  if (session_.link() != nullptr && session_.link()->ever_connected()) {
    absl::StatusOr<std::shared_ptr<GuestClient>> client = session_.link()->Client(absl::Seconds(1));
    absl::StatusOr<guestpb::QuiesceStatusResponse> quiesce =
        client.ok() ? (*client)->QuiesceStatus(absl::Seconds(2)) : client.status();
    failed.set_guest_thawed(quiesce.ok() && quiesce->state() == guestpb::THAWED);
  }
  return event;
}

absl::Status CaptureService::End(const sessionpb::EndCaptureRequest& request) {
  std::shared_ptr<Active> active;
  {
    absl::MutexLock lock(&mutex_);
    active = active_;
  }
  if (active == nullptr || active->id != request.capture_id()) {
    return absl::NotFoundError(absl::StrCat("capture ", request.capture_id(), " is not under way (any more)"));
  }
  absl::MutexLock lock(&active->mutex);
  active->ended = true;
  active->committed = request.committed();
  auto released = [&active]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(active->mutex) { return active->released; };
  active->mutex.Await(absl::Condition(&released));
  return active->release_status;
}

void CaptureService::Abort() {
  absl::MutexLock lock(&mutex_);
  if (active_ == nullptr) return;
  absl::MutexLock active_lock(&active_->mutex);
  active_->aborted = true;
  active_->ended = true;
}

}  // namespace still::session
