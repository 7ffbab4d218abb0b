#include "snapshot/memory_drain.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/unix_socket.h"
#include "session/hypervisor/memory_stream.h"
#include "snapshot/background.h"

namespace still::snapshot {
namespace {

constexpr size_t kPieceBytes = 256 << 10;
// In it a stream at full speed fills a good part of a piece, and not yet the smallest socket (200 KiB).
constexpr absl::Duration kGatheringTime = absl::Microseconds(150);
// How much may wait for the guest to be thawed before we begin to work on it; less than the pipe holds in memory.
constexpr size_t kHoldBytes = 48 << 20;
// QEMU's device state with 16 MiB of video memory is 17 MiB; more than this is not a device state.
constexpr size_t kMaxDeviceState = 256 << 20;
// A stream is as long as the guest's memory and some; what waits on disk is bounded by the largest memory we allow.
constexpr uint64_t kSpillLimit = uint64_t{16} << 40;

class Receiver final : public session::MemoryStreamReceiver {
 public:
  Receiver(const MemoryDrain::OpenImage& open_image, DrainedMemory& result)
      : open_image_(open_image), result_(result) {}

  absl::Status OnMemorySize(uint64_t size) override {
    result_.ram_bytes = size;
    absl::StatusOr<std::unique_ptr<store::ImageWriter>> image = open_image_(size);
    if (!image.ok()) return Remember(image.status());
    image_ = *std::move(image);
    return absl::OkStatus();
  }
  absl::Status OnIncrement() override { return Remember(image_->KeepParent(0, result_.ram_bytes)); }
  absl::Status OnPages(uint64_t offset, absl::string_view data) override {
    return Remember(image_->Write(offset, data));
  }
  absl::Status OnZeroPage(uint64_t offset) override { return Remember(image_->WriteZeros(offset, store::kBlockBytes)); }
  absl::Status OnDeviceState(absl::string_view data) override {
    if (result_.device_state.size() + data.size() > kMaxDeviceState) {
      return absl::ResourceExhaustedError(absl::StrCat("device state of more than ", kMaxDeviceState, " bytes"));
    }
    result_.device_state.append(data.data(), data.size());
    return absl::OkStatus();
  }
  absl::Status Finish() {
    if (image_ == nullptr) return absl::DataLossError("the memory stream holds no memory");
    return Remember(image_->Finish());
  }
  // What the repository answered, if that was an error.
  const absl::Status& repository_status() const { return repository_status_; }

 private:
  absl::Status Remember(absl::Status status) {
    if (!status.ok()) repository_status_ = status;
    return status;
  }

  const MemoryDrain::OpenImage& open_image_;
  DrainedMemory& result_;
  absl::Status repository_status_;
  std::unique_ptr<store::ImageWriter> image_;
};

}  // namespace

MemoryDrain::MemoryDrain(OwnedFd stream, std::string format, std::string spill_directory, OpenImage open_image,
                         absl::Duration patience)
    : stream_(std::move(stream)),
      format_(std::move(format)),
      open_image_(std::move(open_image)),
      patience_(patience),
      pipe_({.spill_limit = kSpillLimit, .hold_limit = kHoldBytes, .spill_directory = std::move(spill_directory)}),
      reader_([this] { ReadLoop(); }),
      parser_([this] {
        EnterBackground();
        status_ = Parse();
      }) {}

MemoryDrain::~MemoryDrain() {
  Cancel();
  if (reader_.joinable()) reader_.join();
  if (parser_.joinable()) parser_.join();
}

void MemoryDrain::Cancel() {
  // Shut down, not closed: the reader may be in read(2) on it.
  ::shutdown(stream_.get(), SHUT_RDWR);
}

void MemoryDrain::ReadLoop() {
  absl::StatusOr<size_t> got = 0;
  do {
    std::string piece(kPieceBytes, '\0');
    got = ReadPiece(piece);
    if (!got.ok()) break;
    bytes_read_ += *got;
    piece.resize(*got);
    if (absl::Status status = pipe_.Write(std::move(piece)); !status.ok()) {
      FailBecauseOfUs(status);
      Cancel();  // The hypervisor notices, and the session gives the capture up.
      return;
    }
  } while (*got > 0);
  pipe_.Close(got.status());
}

absl::Status MemoryDrain::AwaitBytes() {
  for (;;) {
    const bool owed = let_go_;
    absl::Status there = WaitReadable(stream_.get(), patience_, "the memory stream");
    if (!absl::IsDeadlineExceeded(there)) return there;
    if (!owed) continue;
    return absl::DeadlineExceededError(
        absl::StrCat("the memory stream has brought nothing for ", absl::FormatDuration(patience_),
                     ": the hypervisor or its still-session hangs; look whether one of them was stopped"));
  }
}

// As much as there is after a short wait, and at least a byte; 0 at the end. Few full pieces are cheaper than many that
// hold a page each.
absl::StatusOr<size_t> MemoryDrain::ReadPiece(std::string& piece) {
  STILL_RETURN_IF_ERROR(AwaitBytes());
  size_t filled = 0;
  bool waited = false;
  while (filled < piece.size()) {
    ssize_t got = ::recv(stream_.get(), piece.data() + filled, piece.size() - filled, filled == 0 ? 0 : MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) {
      if (std::exchange(waited, true)) break;
      Clock::Real().Sleep(kGatheringTime);
      continue;
    }
    if (got < 0) return ErrnoStatus(errno, "read the memory stream");
    if (got == 0) break;  // Seen again by the next call, when this one has something to return.
    filled += static_cast<size_t>(got);
  }
  return filled;
}

absl::Status MemoryDrain::Parse() {
  Receiver receiver(open_image_, result_);
  std::string piece;
  size_t taken = 0;
  auto source = [&](char* out, size_t size) -> absl::StatusOr<size_t> {
    if (taken == piece.size()) {
      STILL_ASSIGN_OR_RETURN(piece, pipe_.Read());
      taken = 0;
    }
    size_t part = std::min(size, piece.size() - taken);
    std::memcpy(out, piece.data() + taken, part);
    taken += part;
    bytes_parsed_ += part;
    return part;
  };
  absl::Status status = session::SplitMemoryStream(format_, source, receiver);
  if (status.ok()) status = receiver.Finish();
  if (!status.ok()) {
    FailBecauseOfUs(receiver.repository_status());
    pipe_.Abandon();
    Cancel();
  }
  return status;
}

void MemoryDrain::FailBecauseOfUs(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  own_failure_.Update(status);
}

absl::Status MemoryDrain::own_failure() const {
  absl::MutexLock lock(&mutex_);
  return own_failure_;
}

absl::StatusOr<DrainedMemory> MemoryDrain::Finish() {
  parser_.join();
  reader_.join();
  if (!status_.ok()) return status_;
  result_.bytes_read = bytes_read_;
  result_.bytes_spilled = pipe_.spilled_bytes();
  return std::move(result_);
}

}  // namespace still::snapshot
