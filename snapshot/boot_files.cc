#include "snapshot/boot_files.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "base/undo.h"

namespace still::snapshot {
namespace {

// Longer than anybody takes between writing a file and linking it.
constexpr absl::Duration kUnusedFor = absl::Minutes(10);

absl::Status WriteFresh(const std::string& path, const std::function<absl::Status(int fd)>& write) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDWR | O_CREAT | O_EXCL));
  STILL_RETURN_IF_ERROR(Annotate(write(fd.get()), path));
  // What is under a shared name after a power cut must be whole.
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", path));
  if (::fchmod(fd.get(), 0400) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path));
  return absl::OkStatus();
}

}  // namespace

absl::Status BootFiles::LinkTo(const std::string& key, const std::string& path,
                               const std::function<absl::Status(int fd)>& write) const {
  const std::string shared = JoinPath(directory_, key);
  if (::link(shared.c_str(), path.c_str()) == 0) return absl::OkStatus();
  if (errno == ENOENT) {
    STILL_RETURN_IF_ERROR(Add(key, write));
    if (::link(shared.c_str(), path.c_str()) == 0) return absl::OkStatus();
  }
  if (errno == EEXIST) return ErrnoStatus(errno, absl::StrCat("link ", path));
  LogDebug("a boot file is not shared", {{"path", path}, {"errno", errno}});
  return WriteFresh(path, write);
}

absl::Status BootFiles::Add(const std::string& key, const std::function<absl::Status(int fd)>& write) const {
  STILL_RETURN_IF_ERROR(MakeDirectories(directory_, 0700));
  RemoveUnused();
  const std::string partial = JoinPath(directory_, absl::StrFormat(".%016x", RandomU64()));
  UndoStack undo;
  undo.Push("remove unfinished boot file", [partial] { return RemoveFile(partial); });
  STILL_RETURN_IF_ERROR(WriteFresh(partial, write));
  const std::string shared = JoinPath(directory_, key);
  // In the place of what another restore has made meanwhile: it is the same.
  if (::rename(partial.c_str(), shared.c_str()) != 0) return ErrnoStatus(errno, absl::StrCat("rename to ", shared));
  undo.Disarm();
  return SyncDirectory(directory_);
}

void BootFiles::RemoveUnused() const {
  const absl::Time old = Clock::Real().Now() - kUnusedFor;
  for (const std::string& name : ListDirectory(directory_).value_or(std::vector<std::string>())) {
    const std::string path = JoinPath(directory_, name);
    struct stat info {};
    // The last change of the inode is the last time that a session was linked to it or let go of it.
    if (::lstat(path.c_str(), &info) != 0 || info.st_nlink > 1 || absl::TimeFromTimespec(info.st_ctim) > old) continue;
    if (absl::Status removed = RemoveFile(path); !removed.ok()) {
      LogWarning("an unused boot file was not removed", {{"error", removed.ToString()}});
    }
  }
}

}  // namespace still::snapshot
