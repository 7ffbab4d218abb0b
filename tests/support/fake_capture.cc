#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "tests/support/fake_vm_state.h"
#include "tests/support/migration_stream_builder.h"

namespace still::testing {
namespace {

using session::PausedVm;
using session::PauseReport;
using session::PinnedDiskExport;

constexpr uint64_t kPage = 4096;
constexpr absl::Duration kTick = absl::Milliseconds(5);

std::string MemoryStream(const std::string& memory, const std::string& device_state) {
  MigrationStreamBuilder stream;
  stream.Header().StartRam({{"pc.ram", memory.size()}}).EndSection().Part();
  const std::string zero(kPage, '\0');
  for (uint64_t at = 0; at < memory.size(); at += kPage) {
    absl::string_view page = absl::string_view(memory).substr(at, kPage);
    if (page == zero) {
      stream.Zero("pc.ram", at);
    } else {
      stream.Page("pc.ram", at, page);
    }
  }
  stream.EndSection().Device("fake", device_state).Finish();
  return stream.bytes();
}

class FakeCapture : public session::VmCapture {
 public:
  FakeCapture(std::shared_ptr<FakeVm::State> state, const session::CaptureOptions& options, OwnedFd sink)
      : state_(std::move(state)), options_(options), sink_(std::move(sink)) {
    absl::MutexLock lock(&state_->mutex);
    for (FakeVm::State::Disk& disk : state_->disks) {
      Pinned pinned{.name = disk.name};
      for (const auto& [name, bitmap] : options_.base_bitmaps) {
        if (name != disk.name) continue;
        if (disk.bitmaps.contains(bitmap)) pinned.base = bitmap;
        if (pinned.base.empty()) pinned.full_read_reason = absl::StrCat("bitmap ", bitmap, " is not on this disk");
      }
      if (state_->capabilities.incremental_disk && !disk.read_only) {
        pinned.bitmap = absl::StrCat("fake-", state_->next_bitmap++);
        disk.bitmaps[pinned.bitmap] = {};
      }
      disks_.push_back(std::move(pinned));
    }
  }
  ~FakeCapture() override { (void)Release(false); }  // It fails only when told to, and then nobody looks.

  absl::StatusOr<PausedVm> Pause() override;
  absl::Status PinDisks(const PausedVm& paused) override;
  absl::StatusOr<PauseReport> SaveStateAndResume(PausedVm paused) override;
  absl::StatusOr<std::vector<PinnedDiskExport>> ExportDisks() override;
  absl::Status WaitForMemory(absl::Duration stall_limit) override;
  uint64_t memory_bytes_written() const override { return written_; }
  absl::Status Release(bool committed) override;
  void Cancel() override;

 private:
  struct Pinned {
    std::string name;
    std::string content;
    std::string base;
    std::string full_read_reason;
    std::string bitmap;
  };

  absl::Status Enter(const std::string& call) {
    if (cancelled_) return absl::CancelledError("the capture was cancelled");
    return state_->Enter(call);
  }
  void WriteStream(const std::string& stream);

  const std::shared_ptr<FakeVm::State> state_;
  const session::CaptureOptions options_;
  OwnedFd sink_;
  std::vector<Pinned> disks_;
  bool pinned_ = false;
  bool released_ = false;
  absl::Duration paused_at_;
  std::unique_ptr<NbdServer> server_;
  std::thread writer_;
  std::atomic<uint64_t> written_ = 0;
  std::atomic<bool> cancelled_ = false;
  std::atomic<bool> give_up_ = false;
  std::atomic<bool> done_ = false;
  absl::Status writer_status_;  // Valid once done_.
};

absl::StatusOr<PausedVm> FakeCapture::Pause() {
  STILL_RETURN_IF_ERROR(Enter("Pause"));
  paused_at_ = Clock::Real().Monotonic();
  absl::MutexLock lock(&state_->mutex);
  state_->running = false;
  return PausedVm([state = state_] { return state->ResumeVcpus(); });
}

absl::Status FakeCapture::PinDisks(const PausedVm&) {
  STILL_RETURN_IF_ERROR(Enter("PinDisks"));
  absl::MutexLock lock(&state_->mutex);
  for (Pinned& disk : disks_) disk.content = state_->FindDisk(disk.name)->content;
  pinned_ = true;
  return absl::OkStatus();
}

absl::StatusOr<PauseReport> FakeCapture::SaveStateAndResume(PausedVm paused) {
  absl::Status entered = Enter("SaveStateAndResume");
  std::string stream;
  if (entered.ok() && options_.memory) {
    absl::MutexLock lock(&state_->mutex);
    stream = MemoryStream(state_->memory, state_->device_state);
  }
  absl::Status resumed = paused.Resume();
  if (!entered.ok() || !resumed.ok()) return FirstError(entered, resumed);
  PauseReport report{
      .paused = Clock::Real().Monotonic() - paused_at_, .commands = {"stop", "pin", "resume"}, .memory_method = "none"};
  if (options_.memory) {
    report.memory_method = state_->capabilities.background_memory ? "background" : "stopped";
    writer_ = std::thread([this, stream = std::move(stream)] { WriteStream(stream); });
  }
  return report;
}

void FakeCapture::WriteStream(const std::string& stream) {
  uint64_t stall, give_up_after;
  {
    absl::MutexLock lock(&state_->mutex);
    stall = state_->stall_memory_after;
    give_up_after = state_->break_memory_after;
  }
  auto write = [&]() -> absl::Status {
    while (written_ < stream.size()) {
      {
        absl::MutexLock lock(&state_->mutex);
        if (state_->ended) return absl::UnavailableError("the hypervisor is gone");
      }
      if (give_up_) return absl::CancelledError("the memory stream was cancelled");
      if (written_ >= give_up_after) return absl::AbortedError("the hypervisor gave the memory stream up");
      uint64_t end = std::min<uint64_t>({stream.size(), stall, give_up_after, written_ + (64u << 10)});
      ssize_t sent = 0;
      if (end > written_) {
        sent = ::send(sink_.get(), stream.data() + written_, end - written_, MSG_NOSIGNAL | MSG_DONTWAIT);
      }
      if (sent < 0 && errno != EAGAIN) return ErrnoStatus(errno, "write the memory stream");
      if (sent > 0) written_ += static_cast<uint64_t>(sent);
      if (sent <= 0) Clock::Real().Sleep(kTick);
    }
    return absl::OkStatus();
  };
  writer_status_ = write();
  sink_.Reset();
  done_ = true;
}

absl::StatusOr<std::vector<PinnedDiskExport>> FakeCapture::ExportDisks() {
  STILL_RETURN_IF_ERROR(Enter("ExportDisks"));
  std::string socket = JoinPath(state_->directory, "nbd.sock");
  std::vector<NbdExport> served;
  std::vector<PinnedDiskExport> exports;
  absl::MutexLock lock(&state_->mutex);
  for (const Pinned& pinned : disks_) {
    const FakeVm::State::Disk& disk = *state_->FindDisk(pinned.name);
    NbdExport one{.name = pinned.name,
                  .content = pinned.content,
                  .fail_reads_from = disk.fail_reads_from,
                  .hang_reads_from = disk.hang_reads_from};
    if (auto base = disk.bitmaps.find(pinned.base); base != disk.bitmaps.end()) {
      one.dirty_context = absl::StrCat("qemu:dirty-bitmap:", pinned.base);
      one.dirty = base->second;
    }
    exports.push_back({.name = pinned.name,
                       .size = pinned.content.size(),
                       .nbd_socket = socket,
                       .nbd_export = pinned.name,
                       .dirty_context = one.dirty_context,
                       .full_read_reason = pinned.full_read_reason,
                       .bitmap = pinned.bitmap});
    served.push_back(std::move(one));
  }
  STILL_ASSIGN_OR_RETURN(server_, NbdServer::Start(socket, std::move(served)));
  return exports;
}

absl::Status FakeCapture::WaitForMemory(absl::Duration stall_limit) {
  STILL_RETURN_IF_ERROR(Enter("WaitForMemory"));
  if (!options_.memory) return absl::FailedPreconditionError("no memory was asked for");
  uint64_t seen = written_;
  absl::Duration moved_at = Clock::Real().Monotonic();
  absl::Status stopped;
  while (!done_) {
    absl::Duration now = Clock::Real().Monotonic();
    if (seen != written_) {
      seen = written_;
      moved_at = now;
    }
    if (cancelled_) stopped = absl::CancelledError("the capture was cancelled");
    if (now - moved_at >= stall_limit) stopped = absl::DeadlineExceededError("the memory stream did not move");
    if (!stopped.ok()) {
      give_up_ = true;
      break;
    }
    Clock::Real().Sleep(std::min(kTick, stall_limit));
  }
  writer_.join();
  return stopped.ok() ? writer_status_ : stopped;
}

absl::Status FakeCapture::Release(bool committed) {
  if (std::exchange(released_, true)) return absl::OkStatus();
  absl::Status entered = state_->Enter(committed ? "Release(committed)" : "Release(abandoned)");
  give_up_ = true;
  if (writer_.joinable()) writer_.join();
  sink_.Reset();
  server_.reset();
  absl::MutexLock lock(&state_->mutex);
  for (const Pinned& pinned : disks_) {
    auto& bitmaps = state_->FindDisk(pinned.name)->bitmaps;
    // Committed: only the new one stays. Abandoned: only the new one goes.
    std::erase_if(bitmaps, [&](const auto& entry) { return (entry.first == pinned.bitmap) != committed; });
  }
  state_->capture_active = false;
  return entered.code() == absl::StatusCode::kUnavailable ? absl::OkStatus() : entered;
}

void FakeCapture::Cancel() {
  (void)state_->Enter("Cancel");  // Only logged.
  cancelled_ = true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<session::VmCapture>> PrepareFakeCapture(std::shared_ptr<FakeVm::State> state,
                                                                       const session::CaptureOptions& options,
                                                                       OwnedFd memory_sink) {
  if (options.memory != memory_sink.valid()) {
    return absl::InvalidArgumentError("a memory sink must be given exactly when memory is asked for");
  }
  {
    absl::MutexLock lock(&state->mutex);
    if (!state->running) return absl::FailedPreconditionError("the VM is paused; resume it first");
    if (state->capture_active) return absl::FailedPreconditionError("another capture of this VM is running");
    state->capture_active = true;
  }
  return std::unique_ptr<session::VmCapture>(
      std::make_unique<FakeCapture>(std::move(state), options, std::move(memory_sink)));
}

}  // namespace still::testing
