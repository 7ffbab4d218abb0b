#include "snapshot/disk_swap.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "snapshot/file_image.h"

namespace still::snapshot {
namespace {

absl::Status SameOwnerAndMode(const std::string& as, const std::string& path) {
  struct stat info {};
  if (::stat(as.c_str(), &info) != 0) return ErrnoStatus(errno, as);
  if (::chown(path.c_str(), info.st_uid, info.st_gid) != 0) return ErrnoStatus(errno, absl::StrCat("chown ", path));
  if (::chmod(path.c_str(), info.st_mode & 07777) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path));
  return absl::OkStatus();
}

absl::Status SyncParent(const std::string& path) {
  return SyncDirectory(std::filesystem::path(path).parent_path().string());
}

}  // namespace

absl::Status Rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("rename ", from, " to ", to));
}

DiskSwap::~DiskSwap() {
  if (absl::Status back = SwapBack(); !back.ok()) LogError("a disk was not put back", {{"error", back.ToString()}});
  for (const Staged& file : files_) {
    if (absl::Status removed = RemoveFile(file.staged); !removed.ok()) {
      LogWarning("a staged disk was not removed", {{"error", removed.ToString()}});
    }
  }
}

absl::Status DiskSwap::Check(const sessionpb::DiskFile& disk) {
  struct stat info {};
  if (::stat(disk.path().c_str(), &info) != 0) return ErrnoStatus(errno, absl::StrCat("disk ", disk.path()));
  if (S_ISREG(info.st_mode)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("disk ", disk.name(), " is ", disk.path(),
                   ", which is not a regular file and cannot be replaced at once; use still restore"));
}

absl::Status DiskSwap::Stage(store::Repository& repository, const manifestpb::Snapshot& snapshot,
                             const sessionpb::DiskFile& disk, const ProgressSink& progress) {
  std::error_code error;
  // What a symbolic link names is replaced, not the link.
  const std::string path = std::filesystem::canonical(disk.path(), error).string();
  if (error) return ErrnoStatus(error.value(), absl::StrCat("disk ", disk.path()));
  const std::string tag = absl::StrFormat("%08x", RandomU64() & 0xffffffff);
  const Staged& file = files_.emplace_back(Staged{.path = path,
                                                  .staged = absl::StrCat(path, ".rollback-", tag),
                                                  .before = absl::StrCat(path, ".before-rollback-", tag)});
  STILL_RETURN_IF_ERROR(ExportImage(repository, {.snapshot = snapshot.id(),
                                                 .image = disk.name(),
                                                 .path = file.staged,
                                                 .format = disk.format(),
                                                 .progress = progress}));
  return SameOwnerAndMode(path, file.staged);
}

absl::Status DiskSwap::Swap() {
  for (Staged& file : files_) {
    absl::Status swapped = Rename(file.path, file.before);
    if (swapped.ok()) {
      file.swapped = true;
      swapped = Rename(file.staged, file.path);
    }
    if (swapped.ok()) swapped = SyncParent(file.path);
    if (!swapped.ok()) return FirstError(swapped, SwapBack());
  }
  return absl::OkStatus();
}

absl::Status DiskSwap::SwapBack() {
  absl::Status result;
  for (Staged& file : files_) {
    if (!file.swapped) continue;
    absl::Status back = Rename(file.before, file.path);
    if (back.ok()) file.swapped = false;
    result = FirstError(result, back);
  }
  return result;
}

absl::Status DiskSwap::Discard() {
  absl::Status result;
  for (Staged& file : files_) {
    if (!file.swapped) continue;
    file.swapped = false;
    result = FirstError(result, RemoveFile(file.before));
  }
  return result;
}

}  // namespace still::snapshot
