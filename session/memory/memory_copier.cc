// The part of MemorySaver that copies what is to be saved, and sends it.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/file.h"
#include "session/memory/memory_saver.h"

namespace still::session {
namespace {

constexpr uint64_t kChunkPages = 512;  // Lifted together behind the copier: a large page stays one.
constexpr uint64_t kRunPages = 64;     // What a write that meets the copier waits for at most.
constexpr int kCopierNice = 5;         // It has time (docs/qemu.md, "Who gets the processors").

bool IsZero(const char* bytes, size_t size) { return bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0; }

}  // namespace

// How many pages from `begin` on are the caller's now, to be copied.
uint64_t MemorySaver::Claim(uint64_t begin, uint64_t end) {
  uint64_t count = 0;
  for (uint8_t wanted = kWanted;
       begin + count < end && states_.load()[begin + count].compare_exchange_strong(wanted, kBeingCopied);
       wanted = kWanted) {
    ++count;
  }
  return count;
}

absl::Status MemorySaver::CopyAll() {
  STILL_RETURN_IF_ERROR(sink_->WriteHeader(protection_.bytes(), increment_ || over_image_));
  std::string buffer(kRunPages * kPageBytes, '\0');
  // What was written to just before the point is about to be written to again.
  for (const PageRun& run : hot_) {
    const uint64_t run_end = run.page + run.count;
    for (uint64_t begin = run.page; begin < run_end; begin += kChunkPages) {
      STILL_RETURN_IF_ERROR(CopyAndLift(begin, std::min(begin + kChunkPages, run_end), buffer));
    }
  }
  SetThreadNice(kCopierNice);
  for (uint64_t begin = 0; begin < pages(); begin += kChunkPages) {
    STILL_RETURN_IF_ERROR(CopyAndLift(begin, std::min(begin + kChunkPages, pages()), buffer));
  }
  return absl::OkStatus();
}

// With tracking it stays protected: a write is to be noted, and waits for nothing more.
absl::Status MemorySaver::CopyAndLift(uint64_t begin, uint64_t end, std::string& buffer) {
  STILL_RETURN_IF_ERROR(CheckAlive());
  if (over_image_) STILL_RETURN_IF_ERROR(LeaveOutImage(begin, end));
  STILL_RETURN_IF_ERROR(CopyChunk(begin, end, buffer));
  const PageStates* const states = states_;
  for (uint64_t i = begin; i < end; ++i) {
    while (states[i].load(std::memory_order_acquire) == kBeingCopied) {
      STILL_RETURN_IF_ERROR(CheckAlive());
      STILL_RETURN_IF_ERROR(EmitPieces());  // Whoever has the page may wait for room.
      ::sched_yield();
    }
  }
  STILL_RETURN_IF_ERROR(CheckAlive());
  if (!track_) STILL_RETURN_IF_ERROR(protection_.Lift(begin * kPageBytes, (end - begin) * kPageBytes));
  return EmitPieces();
}

// A page that is the image's now was so at the point, too. One that is written to meanwhile is the answering thread's before it
// stops being so.
absl::Status MemorySaver::LeaveOutImage(uint64_t begin, uint64_t end) {
  STILL_ASSIGN_OR_RETURN(const std::vector<bool> own, memory_.OwnPages(begin, end - begin));
  for (uint64_t i = begin; i < end; ++i) {
    uint8_t wanted = kWanted;
    if (!own[i - begin]) states_.load()[i].compare_exchange_strong(wanted, kSaved);
  }
  return absl::OkStatus();
}

absl::Status MemorySaver::CopyChunk(uint64_t begin, uint64_t end, std::string& buffer) {
  PageStates* const states = states_;
  for (uint64_t i = begin; i < end;) {
    const uint64_t count = Claim(i, std::min(i + kRunPages, end));
    if (count == 0) {
      ++i;
      continue;
    }
    const absl::Status read = memory_.Read(i * kPageBytes, buffer.data(), count * kPageBytes);
    for (uint64_t k = i; k < i + count; ++k) states[k].store(kSaved, std::memory_order_release);
    STILL_RETURN_IF_ERROR(read);
    STILL_RETURN_IF_ERROR(Emit(i, buffer.data(), count));
    i += count;
  }
  return absl::OkStatus();
}

// Zero pages are left out where all memory is sent: else they may have been something else before.
absl::Status MemorySaver::Emit(uint64_t page, const char* bytes, uint64_t count) {
  auto is_zero = [&](uint64_t i) { return !increment_ && !over_image_ && IsZero(bytes + i * kPageBytes, kPageBytes); };
  for (uint64_t i = 0; i < count;) {
    if (is_zero(i)) {
      ++i;
      continue;
    }
    uint64_t next = i + 1;
    while (next < count && !is_zero(next)) ++next;
    STILL_RETURN_IF_ERROR(sink_->WriteRecord(PageRecord::kPages, (page + i) * kPageBytes, bytes + i * kPageBytes,
                                             static_cast<uint32_t>((next - i) * kPageBytes)));
    i = next;
  }
  board_.bytes_written = sink_->bytes();
  return absl::OkStatus();
}

absl::Status MemorySaver::EmitPieces() {
  std::vector<Piece> pieces;
  {
    std::lock_guard<std::mutex> lock(pieces_mutex_);
    pieces.swap(pieces_);
    pieces_bytes_ = 0;
  }
  pieces_room_.notify_all();
  for (const Piece& piece : pieces) {
    STILL_RETURN_IF_ERROR(Emit(piece.page, piece.bytes.data(), piece.bytes.size() / kPageBytes));
  }
  return absl::OkStatus();
}

absl::Status MemorySaver::SendDeviceState(const OwnedFd& device_state) {
  const off_t size = ::lseek(device_state.get(), 0, SEEK_CUR);
  if (size < 0) return ErrnoStatus(errno, "device state");
  std::string bytes(kMaxRecordBytes, '\0');
  for (uint64_t at = 0; at < static_cast<uint64_t>(size);) {
    const auto part = static_cast<uint32_t>(std::min<uint64_t>(bytes.size(), static_cast<uint64_t>(size) - at));
    STILL_RETURN_IF_ERROR(PReadExactly(device_state.get(), bytes.data(), part, at, "device state"));
    STILL_RETURN_IF_ERROR(sink_->WriteRecord(PageRecord::kDeviceState, 0, bytes.data(), part));
    at += part;
  }
  STILL_RETURN_IF_ERROR(sink_->WriteRecord(PageRecord::kEnd, 0, nullptr, 0));
  board_.bytes_written = sink_->bytes();
  return absl::OkStatus();
}

}  // namespace still::session
