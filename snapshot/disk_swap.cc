#include "snapshot/disk_swap.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
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

std::string DiskSwap::StagedName(const std::string& path, const std::string& tag) {
  return absl::StrCat(path, ".rollback-", tag);
}

std::string DiskSwap::BeforeName(const std::string& path, const std::string& tag) {
  return absl::StrCat(path, ".before-rollback-", tag);
}

absl::StatusOr<std::string> DiskSwap::RealPath(const sessionpb::DiskFile& disk) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::canonical(disk.path(), error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("disk ", disk.path()));
  return path.string();
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
  STILL_ASSIGN_OR_RETURN(const std::string path, RealPath(disk));
  const Staged& file =
      files_.emplace_back(Staged{.path = path, .staged = StagedName(path, tag_), .before = BeforeName(path, tag_)});
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
