#include "session/hypervisor/qemu/engine_save.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/random.h"
#include "session/hypervisor/qemu/qemu_memory.h"
#include "session/hypervisor/qemu/ram_priming.h"

namespace still::session {
namespace {

// All that is not main memory: as in MigrationStreamOptions. The file can hold no more, whatever QEMU has become.
constexpr off_t kMaxDeviceState = 256 << 20;
// Whoever waits for the engine to arm waits in vain after this: 64 GiB of small pages take some 10 s.
constexpr absl::Duration kArmDeadline = absl::Minutes(2);

absl::StatusOr<OwnedFd> MakeDeviceStateFile() {
  OwnedFd file(::memfd_create("still-device-state", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid() || ::ftruncate(file.get(), kMaxDeviceState) != 0 ||
      ::fcntl(file.get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    return ErrnoStatus(errno, "file for the device state");
  }
  return file;
}

absl::StatusOr<std::shared_ptr<MemoryEngine>> StartEngine(QemuMachine& machine, const CaptureOptions& options) {
  // In one command, and before the memory is registered: QEMU tries whether it can protect its memory each time that
  // capabilities are set while background-snapshot is on, and cannot when somebody else does.
  STILL_RETURN_IF_ERROR(SetMigrationCapabilities(
      *machine.qmp, {{"background-snapshot", true}, {"x-ignore-shared", true}}, machine.command_deadline));
  LogPriming(PrimeRam(machine.pid, machine.memory_bytes));
  return MemoryEngine::Start(
      {.program = machine.memory->program,
       .userfaultfd = machine.memory->userfaultfd.get(),
       .range = machine.memory->range,
       .saver = {.stall_limit = options.memory_stall_limit, .leave_out = machine.leave_out_of_protection}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineSave>> EngineSave::Prepare(QemuMachine& machine, QemuMigration& migration,
                                                                const CaptureOptions& options, const OwnedFd& sink) {
  if (machine.tracked.has_value() && !machine.tracked->engine->status().ok()) {
    LogWarning("the machine's memory is not tracked any more", {{"why", machine.tracked->engine->status().ToString()}});
    machine.tracked.reset();
  }
  STILL_ASSIGN_OR_RETURN(OwnedFd device_state, MakeDeviceStateFile());
  std::shared_ptr<MemoryEngine> engine;
  if (machine.tracked.has_value()) {
    engine = machine.tracked->engine;
  } else {
    STILL_ASSIGN_OR_RETURN(engine, StartEngine(machine, options));
  }
  std::unique_ptr<EngineSave> save(
      new EngineSave(machine, migration, options, std::move(device_state), std::move(engine)));
  STILL_RETURN_IF_ERROR(save->Arm(options, sink));
  STILL_RETURN_IF_ERROR(migration.Pass(save->device_state_.get()));
  return save;
}

EngineSave::EngineSave(QemuMachine& machine, QemuMigration& migration, const CaptureOptions& options,
                       OwnedFd device_state, std::shared_ptr<MemoryEngine> engine)
    : machine_(machine), migration_(migration), device_state_(std::move(device_state)), engine_(std::move(engine)) {
  if (options.track_memory) point_ = absl::StrFormat("%016x", RandomU64());
}

absl::Status EngineSave::Arm(const CaptureOptions& options, const OwnedFd& sink) {
  STILL_ASSIGN_OR_RETURN(OwnedFd own_sink, sink.Duplicate());
  const bool tracked = machine_.tracked.has_value();
  MemorySaver::Wish wish{
      .track = tracked || options.track_memory,
      .over_image = !options.base_memory.empty() && options.base_memory == machine_.image_point,
  };
  if (tracked && !options.track_memory) {
    wish.content = MemorySaver::Content::kAllBeside;
  } else if (tracked && machine_.tracked->point == options.base_memory) {
    wish.content = MemorySaver::Content::kIncrement;
  } else if (options.track_memory && !wish.over_image) {
    full_reason_ = options.base_memory.empty() ? "no earlier snapshot of this machine keeps track of its memory"
                   : tracked                   ? "what is tracked began at another snapshot"
                                               : "the memory has not been tracked since the earlier snapshot";
  }
  STILL_RETURN_IF_ERROR(engine_->Arm(std::move(own_sink), kArmDeadline, wish));
  STILL_ASSIGN_OR_RETURN(sink_, sink.Duplicate());
  return absl::OkStatus();
}

// For every descriptor of it: an engine that goes on has one, too.
void EngineSave::EndStream() {
  if (sink_.valid()) ::shutdown(sink_.get(), SHUT_RDWR);
}

absl::Status EngineSave::Protect(absl::Duration left) {
  begun_ = true;
  return engine_->Protect(left);
}

// QEMU writes where this file's offset is: they share it.
uint64_t EngineSave::device_state_bytes() const {
  const off_t at = ::lseek(device_state_.get(), 0, SEEK_CUR);
  return at < 0 ? 0 : static_cast<uint64_t>(at);
}

absl::Status EngineSave::Await(absl::Duration stall_limit, const PauseBudget*) {
  STILL_RETURN_IF_ERROR(
      migration_.AwaitCompletion({.progress = [this] { return device_state_bytes(); },
                                  .silence_limit = std::max(2 * stall_limit, machine_.command_deadline),
                                  .check = [this] { return engine_->status(); },
                                  .on_silence = [this] { engine_->Cancel(); }}));
  const absl::Status finished = engine_->Finish(device_state_);
  whole_ = finished.ok();
  EndStream();
  return finished;
}

// It writes some 400 KB into memory, which holds nobody.
absl::Status EngineSave::End() {
  engine_->Cancel();
  return migration_.AwaitEnd([this] { return device_state_bytes(); });
}

// The engine stays where it tracks, and all that was written since its point is known.
void EngineSave::Close(bool committed) {
  if (std::exchange(closed_, true)) return;
  EndStream();
  const bool good = engine_->status().ok() && (whole_ || !begun_);
  if (good && begun_ && committed && !point_.empty()) {
    machine_.tracked = TrackedMemory{.engine = engine_, .point = point_};
    return;
  }
  // One that has not begun, and one of somebody else's, leave what is tracked as it is.
  if (good && machine_.tracked.has_value() && (!begun_ || point_.empty())) return;
  machine_.tracked.reset();
  engine_->End();
}

void EngineSave::AddTo(PauseReport& report) const {
  report.memory_method = method();
  report.reprotected_pages = engine_->figures().reprotected_pages;
  report.protecting = absl::Nanoseconds(static_cast<int64_t>(engine_->figures().protect_ns));
  report.memory_point = point_;
  report.memory_full_reason = full_reason_;
}

}  // namespace still::session
