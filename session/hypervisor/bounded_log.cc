#include "session/hypervisor/bounded_log.h"

#include <fcntl.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace still::session {
namespace {

constexpr int kContinueFlags = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW;
constexpr int kOpenFlags = kContinueFlags | O_TRUNC;

}  // namespace

absl::StatusOr<BoundedLog> BoundedLog::Create(std::string path, uint64_t limit) {
  STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(path, kOpenFlags));
  return BoundedLog(std::move(path), limit, std::move(file));
}

absl::StatusOr<BoundedLog> BoundedLog::Continue(std::string path, uint64_t limit) {
  STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(path, kContinueFlags));
  STILL_ASSIGN_OR_RETURN(uint64_t size, FileSize(path));
  BoundedLog log(std::move(path), limit, std::move(file));
  log.written_ = size;
  return log;
}

void BoundedLog::Append(absl::string_view text) {
  if (written_ + text.size() > limit_) {
    ::rename(path_.c_str(), absl::StrCat(path_, ".1").c_str());
    if (auto next = OpenFile(path_, kOpenFlags); next.ok()) {
      file_ = *std::move(next);
      written_ = 0;
    }
  }
  // While no new file can be begun, nothing more is written: the bound holds.
  if (written_ + text.size() > limit_) return;
  if (WriteAll(file_.get(), text.data(), text.size(), path_).ok()) written_ += text.size();
}

}  // namespace still::session
