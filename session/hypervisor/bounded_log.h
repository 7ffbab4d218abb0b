// BoundedLog: a log file that what writes it (a guest's serial port, a hypervisor's stderr, lines that a guest causes)
// cannot grow for ever.
// At `limit` bytes the file becomes "<path>.1" (replacing the one before) and a new one begins.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::session {

class BoundedLog {
 public:
  static constexpr uint64_t kDefaultLimit = 8u << 20;  // Hours of a chatty boot; twice this on disk at most.

  // Begins an empty file.
  static absl::StatusOr<BoundedLog> Create(std::string path, uint64_t limit = kDefaultLimit);
  // Goes on with a file that is there.
  static absl::StatusOr<BoundedLog> Continue(std::string path, uint64_t limit = kDefaultLimit);

  // On a full disk the text is lost, not the caller.
  void Append(absl::string_view text);
  // Of the file that is written now; another one after each Append that began a new file.
  int fd() const { return file_.get(); }

 private:
  BoundedLog(std::string path, uint64_t limit, OwnedFd file)
      : path_(std::move(path)), limit_(limit), file_(std::move(file)) {}

  std::string path_;
  uint64_t limit_;
  OwnedFd file_;
  uint64_t written_ = 0;
};

}  // namespace still::session
