#include "snapshot/export_place.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absolute_path.h"
#include "base/file.h"
#include "base/log.h"
#include "base/move_into_place.h"

namespace still::snapshot {
namespace {

constexpr char kSuffix[] = ".still-partial";

// Whether the open file is still the one of that name: whoever removed it did so with the lock held.
bool StillNamed(int fd, const std::string& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(fd, &open) == 0 && ::lstat(path.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
         open.st_ino == named.st_ino;
}

absl::Status MakeNew(const std::string& partial, ExportPlace::Kind kind) {
  if (kind == ExportPlace::Kind::kFile) return OpenFile(partial, O_RDWR | O_CREAT | O_EXCL).status();
  return ::mkdir(partial.c_str(), 0700) == 0 ? absl::OkStatus() : ErrnoStatus(errno, absl::StrCat("mkdir ", partial));
}

absl::Status RemoveLeftover(const std::string& partial) {
  LogInfo("what an export left that did not end is removed", {{"path", partial}});
  return RemoveTree(partial);
}

}  // namespace

ExportPlace::ExportPlace(std::string path, std::string partial, Kind kind, OwnedFd fd)
    : path_(std::move(path)), partial_(std::move(partial)), kind_(kind), fd_(std::move(fd)) {}

absl::StatusOr<std::unique_ptr<ExportPlace>> ExportPlace::Make(const std::string& path, Kind kind) {
  STILL_ASSIGN_OR_RETURN(std::string absolute, AbsolutePath(path));
  while (absolute.size() > 1 && absolute.back() == '/') absolute.pop_back();
  const std::string partial = absl::StrCat(absolute, kSuffix);
  for (;;) {
    if (PathExists(absolute)) {
      return absl::AlreadyExistsError(absl::StrCat(path, " exists; choose another place or remove it"));
    }
    const absl::Status made = MakeNew(partial, kind);
    if (!made.ok() && !absl::IsAlreadyExists(made)) return made;
    const int flags = kind == Kind::kFile ? O_RDWR : O_RDONLY | O_DIRECTORY;
    absl::StatusOr<OwnedFd> fd = OpenFile(partial, flags | O_NOFOLLOW);
    if (absl::IsNotFound(fd.status())) continue;  // Just removed.
    if (!fd.ok()) return fd.status();
    if (::flock(fd->get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat("flock ", partial));
      return absl::UnavailableError(absl::StrCat(path, ": another export is writing it (", partial, "); try later"));
    }
    if (!StillNamed(fd->get(), partial)) continue;
    if (made.ok()) {
      return std::unique_ptr<ExportPlace>(new ExportPlace(std::move(absolute), partial, kind, *std::move(fd)));
    }
    STILL_RETURN_IF_ERROR(RemoveLeftover(partial));
  }
}

ExportPlace::~ExportPlace() {
  if (finished_) return;
  absl::Status removed = kind_ == Kind::kFile ? RemoveFile(partial_) : RemoveTree(partial_);
  // The next export to this place removes it.
  if (!removed.ok()) LogWarning("an unfinished export stays", {{"path", partial_}, {"error", removed.ToString()}});
}

absl::Status ExportPlace::Finish() {
  if (::fsync(fd_.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", partial_));
  STILL_RETURN_IF_ERROR(MoveIntoPlace(partial_, path_));
  finished_ = true;
  return SyncDirectory(ParentDirectory(path_));
}

absl::StatusOr<bool> ExtendFile(int fd, const std::string& path, uint64_t size) {
  if (::ftruncate(fd, static_cast<off_t>(size)) == 0) return true;
  if (errno == EFBIG) return false;
  return ErrnoStatus(errno, absl::StrCat("extend ", path));
}

absl::Status ExtendFileOrExplain(int fd, const std::string& path, uint64_t size) {
  STILL_ASSIGN_OR_RETURN(const bool extended, ExtendFile(fd, path, size));
  if (extended) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(path, ": this file system, or a limit of this process, has no file of ", size,
                   " bytes; export it as qcow2, or to a file system that has (xfs)"));
}

}  // namespace still::snapshot
