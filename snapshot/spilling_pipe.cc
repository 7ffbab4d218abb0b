#include "snapshot/spilling_pipe.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace still::snapshot {

absl::Status SpillingPipe::Write(std::string data) {
  if (data.empty()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  if (abandoned_) return absl::OkStatus();
  Piece piece{.data = std::move(data)};
  // Once something waits in the file, memory is kept for what is read next: the file is emptied first.
  if (in_memory_ + piece.data.size() > options_.memory_limit) {
    if (absl::Status status = Spill(piece); !status.ok()) {
      closed_ = true;
      status_ = status;
      return status;
    }
  } else {
    in_memory_ += piece.data.size();
  }
  pieces_.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::Status SpillingPipe::Spill(Piece& piece) {
  if (!file_.valid()) {
    // O_TMPFILE: there is never a name to clean up.
    STILL_ASSIGN_OR_RETURN(file_, OpenFile(options_.spill_directory, O_RDWR | O_TMPFILE));
  }
  if (in_file_ + piece.data.size() > options_.spill_limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat("spill file: more than ", options_.spill_limit, " bytes are waiting"));
  }
  if (in_file_ == 0) file_end_ = 0;  // Empty again: start over instead of growing.
  STILL_RETURN_IF_ERROR(PWriteAll(file_.get(), piece.data.data(), piece.data.size(), file_end_,
                                  absl::StrCat("spill file in ", options_.spill_directory)));
  piece.file_offset = file_end_;
  piece.spilled = piece.data.size();
  file_end_ += piece.spilled;
  in_file_ += piece.spilled;
  spilled_ += piece.spilled;
  piece.data = std::string();
  return absl::OkStatus();
}

void SpillingPipe::Close(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  closed_ = true;
  status_ = std::move(status);
}

void SpillingPipe::LetGo() {
  absl::MutexLock lock(&mutex_);
  held_ = false;
}

absl::StatusOr<std::string> SpillingPipe::Read() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &SpillingPipe::ReadableLocked));
  if (pieces_.empty()) {
    if (!status_.ok()) return status_;
    return std::string();
  }
  Piece piece = std::move(pieces_.front());
  pieces_.pop_front();
  if (piece.spilled == 0) {
    in_memory_ -= piece.data.size();
    return std::move(piece.data);
  }
  // Read under the lock: the writer's next piece may reuse the file from its beginning once it is empty.
  piece.data.resize(piece.spilled);
  STILL_RETURN_IF_ERROR(PReadExactly(file_.get(), piece.data.data(), piece.spilled, piece.file_offset, "spill file"));
  in_file_ -= piece.spilled;
  return std::move(piece.data);
}

void SpillingPipe::Abandon() {
  absl::MutexLock lock(&mutex_);
  abandoned_ = true;
  pieces_.clear();
  in_memory_ = 0;
  in_file_ = 0;
}

uint64_t SpillingPipe::spilled_bytes() const {
  absl::MutexLock lock(&mutex_);
  return spilled_;
}

}  // namespace still::snapshot
