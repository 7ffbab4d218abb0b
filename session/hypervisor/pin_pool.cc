#include "session/hypervisor/pin_pool.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/log.h"
#include "base/process.h"

namespace still::session {
namespace {

constexpr absl::string_view kPinPrefix = "capture-";
constexpr absl::string_view kSuffix = ".fleece";
constexpr absl::string_view kUnfinished = ".new";  // Behind the suffix, until its lock is held.
constexpr uint64_t kStatBlock = 512;               // stat(2), st_blocks.
constexpr absl::Duration kToolLimit = absl::Minutes(1);

std::vector<std::string> PinFilesIn(const std::string& directory) {
  std::vector<std::string> paths;
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(directory);
  if (!names.ok()) return paths;  // A file among the directories, or a session that has ended meanwhile.
  for (const std::string& name : *names) {
    if (absl::StartsWith(name, kPinPrefix) && absl::EndsWith(name, kSuffix)) paths.push_back(JoinPath(directory, name));
  }
  return paths;
}

bool IsHeld(const std::string& path) {
  absl::StatusOr<OwnedFd> file = OpenFile(path, O_RDONLY);
  return file.ok() && ::flock(file->get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

uint64_t BytesOf(const std::vector<std::string>& paths) {
  uint64_t bytes = 0;
  for (const std::string& path : paths) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) bytes += static_cast<uint64_t>(info.st_blocks) * kStatBlock;
  }
  return bytes;
}

absl::Status RemoveUnheld(const std::vector<std::string>& paths) {
  absl::Status result;
  for (const std::string& path : paths) {
    if (!IsHeld(path)) result = FirstError(result, RemoveFile(path));
  }
  return result;
}

// In the file that is there, whose lock and owner stay.
absl::Status MakeQcow2(const std::string& path, uint64_t size) {
  STILL_ASSIGN_OR_RETURN(CommandOutput output,
                         RunCommand({.argv = {"qemu-img", "create", "-q", "-f", "qcow2", path, absl::StrCat(size)},
                                     .end_with_parent = true},
                                    kToolLimit));
  if (output.exit.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("qemu-img create: ", absl::StripSuffix(output.stderr_text, "\n")));
}

}  // namespace

absl::StatusOr<PinPool::File> PinPool::Make(const std::string& name, uint64_t size) const {
  File file{.path = JoinPath(directory_, absl::StrCat(kPinPrefix, name, kSuffix))};
  const std::string unfinished = absl::StrCat(file.path, kUnfinished);
  STILL_ASSIGN_OR_RETURN(file.lock, OpenFile(unfinished, O_RDWR | O_CREAT | O_TRUNC));
  // It gets its name only now: others remove what nobody holds.
  if (::flock(file.lock.get(), LOCK_EX) != 0) return ErrnoStatus(errno, absl::StrCat("lock ", unfinished));
  if (::ftruncate(file.lock.get(), static_cast<off_t>(size)) != 0) {
    if (errno != EFBIG) return ErrnoStatus(errno, absl::StrCat("make ", unfinished));
    STILL_RETURN_IF_ERROR(MakeQcow2(unfinished, size));
    file.qcow2 = true;
  }
  if (::rename(unfinished.c_str(), file.path.c_str()) != 0) return ErrnoStatus(errno, absl::StrCat("make ", file.path));
  return file;
}

uint64_t PinPool::own_bytes() const { return BytesOf(PinFilesIn(directory_)); }

absl::Status PinPool::Check() const {
  const uint64_t own = own_bytes();
  uint64_t all = own;
  uint64_t most = 0;
  if (!sessions_.empty()) {
    STILL_ASSIGN_OR_RETURN(std::vector<std::string> sessions, ListDirectory(sessions_));
    for (const std::string& session : sessions) {
      const std::string directory = JoinPath(sessions_, session);
      if (directory == directory_) continue;
      std::vector<std::string> files = PinFilesIn(directory);
      if (absl::Status removed = RemoveUnheld(files); !removed.ok()) {
        LogWarning("what an ended capture kept stays", {{"session", session}, {"error", removed.ToString()}});
      }
      std::erase_if(files, [](const std::string& path) { return !IsHeld(path); });
      const uint64_t bytes = BytesOf(files);
      all += bytes;
      most = std::max(most, bytes);
    }
  }
  uint64_t limit = limit_;
  if (limit == 0) {
    struct statvfs space {};
    if (::statvfs(directory_.c_str(), &space) != 0) return ErrnoStatus(errno, directory_);
    limit = (space.f_bavail * space.f_frsize + all) / 2;
  }
  if (all <= limit || own < most) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the guests have overwritten ", all >> 20,
                   " MiB since the points of the snapshots that this host is ", "taking, more than the ", limit >> 20,
                   " MiB that may be kept for all of them; this guest most: ", own >> 20, " MiB"));
}

absl::Status PinPool::Sweep() const { return RemoveUnheld(PinFilesIn(directory_)); }

}  // namespace still::session
