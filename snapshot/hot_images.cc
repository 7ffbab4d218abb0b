#include "snapshot/hot_images.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/undo.h"

namespace still::snapshot {
namespace {

constexpr char kComplete[] = ".ram";
constexpr char kPart[] = ".part";
constexpr size_t kMaxKey = 128;
constexpr absl::Duration kPoll = absl::Milliseconds(20);
// Whatever others do in between, one of these finds or makes the image.
constexpr int kMaxAttempts = 100;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool IsKey(const std::string& key) {
  return !key.empty() && key.size() <= kMaxKey && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
  });
}

absl::Status Lock(int fd, int operation, const std::string& path) {
  while (::flock(fd, operation) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return absl::UnavailableError(absl::StrCat(path, " is in use"));
    return ErrnoStatus(errno, absl::StrCat("lock ", path));
  }
  return absl::OkStatus();
}

// Only an image that can be locked alone is used by nobody.
bool IsUnused(const std::string& path) {
  auto fd = OpenFile(path, O_RDWR | O_NOFOLLOW);
  return fd.ok() && Lock(fd->get(), LOCK_EX | LOCK_NB, path).ok();
}

// False: somebody uses it, or it is gone. Unlinked while locked, so that nobody takes it up in between.
bool EvictUnused(const std::string& path) {
  auto fd = OpenFile(path, O_RDWR | O_NOFOLLOW);
  if (!fd.ok() || !Lock(fd->get(), LOCK_EX | LOCK_NB, path).ok()) return false;
  return RemoveFile(path).ok();
}

// Our own time: the kernel's would only be as fine as its tick. Only the order of eviction depends on it.
void Touch(int fd) {
  const timespec now = absl::ToTimespec(Clock::Real().Now());
  const timespec times[2] = {now, now};
  (void)::futimens(fd, times);
}

uint64_t Allocated(const struct stat& info) { return static_cast<uint64_t>(info.st_blocks) * 512; }

}  // namespace

HotImageOptions HotImageOptions::FromEnvironment() {
  HotImageOptions options;
  options.directory = Environment("STILL_HOT_DIRECTORY");
  if (options.directory.empty()) options.directory = absl::StrCat("/dev/shm/stillpoint-", ::geteuid());
  uint64_t mebibytes = 0;
  if (absl::SimpleAtoi(Environment("STILL_HOT_LIMIT"), &mebibytes)) {
    options.limit_bytes = mebibytes << 20;
  } else {
    options.limit_bytes =
        static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) / 2;
  }
  return options;
}

std::string HotImages::PathOf(const std::string& key, const char* suffix) const {
  return JoinPath(options_.directory, absl::StrCat(key, suffix));
}

// The default lies in a directory where everybody may write: somebody else's could be in our place.
absl::Status HotImages::PrepareDirectory() const {
  const std::string& path = options_.directory;
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISDIR(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is not a directory of this user alone (mode 0700); set STILL_HOT_DIRECTORY"));
  }
  struct statfs system {};
  if (::statfs(path.c_str(), &system) != 0) return ErrnoStatus(errno, path);
  if (system.f_type != TMPFS_MAGIC) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is not on a tmpfs, where a session's memory could be snapshotted again; set STILL_HOT_DIRECTORY"));
  }
  return absl::OkStatus();
}

absl::StatusOr<OwnedFd> HotImages::Open(const std::string& key, uint64_t size) const {
  const std::string path = PathOf(key, kComplete);
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDWR | O_NOFOLLOW));
  // Never waits for long: a complete image is only locked alone by whoever is about to evict it.
  STILL_RETURN_IF_ERROR(Lock(fd.get(), LOCK_SH, path));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, path);
  // Evicted between the opening and the lock: complete, but no longer shared with those who come later.
  if (info.st_nlink == 0) return absl::NotFoundError(absl::StrCat(path, " was evicted"));
  if (static_cast<uint64_t>(info.st_size) != size) {
    return absl::DataLossError(absl::StrCat(path, " has ", info.st_size, " bytes instead of ", size));
  }
  Touch(fd.get());
  return fd;
}

absl::StatusOr<HotImage> HotImages::Get(const std::string& key, uint64_t size,
                                        const std::function<absl::Status(int fd)>& fill) const {
  if (!IsKey(key)) return absl::InvalidArgumentError(absl::StrCat("hot image \"", key, "\""));
  STILL_RETURN_IF_ERROR(PrepareDirectory());
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    absl::StatusOr<OwnedFd> found = Open(key, size);
    if (found.ok()) return HotImage{.fd = *std::move(found), .filled = false};
    if (!absl::IsNotFound(found.status())) return found.status();
    absl::StatusOr<OwnedFd> part = BeginPart(key, size);
    if (absl::IsUnavailable(part.status())) {
      STILL_RETURN_IF_ERROR(WaitForPart(key));
      continue;
    }
    if (absl::IsAlreadyExists(part.status())) continue;
    STILL_RETURN_IF_ERROR(part.status());

    UndoStack undo;
    const std::string path = PathOf(key, kPart);
    undo.Push("remove unfinished hot image", [path] { return RemoveFile(path); });
    STILL_RETURN_IF_ERROR(fill(part->get()));
    if (::rename(path.c_str(), PathOf(key, kComplete).c_str()) != 0) {
      return ErrnoStatus(errno, absl::StrCat("rename ", path));
    }
    undo.Disarm();
    Touch(part->get());
    // Not atomic: it may be evicted in between. What we hold stays whole all the same.
    STILL_RETURN_IF_ERROR(Lock(part->get(), LOCK_SH, path));
    return HotImage{.fd = *std::move(part), .filled = true};
  }
  return absl::AbortedError(absl::StrCat("hot image ", key, ": others make and evict it all the time"));
}

// The new file, locked, with room for all of it. ALREADY_EXISTS: it has just been completed. UNAVAILABLE: being filled.
absl::StatusOr<OwnedFd> HotImages::BeginPart(const std::string& key, uint64_t size) const {
  const std::string lock_path = JoinPath(options_.directory, "lock");
  STILL_ASSIGN_OR_RETURN(OwnedFd lock, OpenFile(lock_path, O_RDWR | O_CREAT | O_NOFOLLOW));
  STILL_RETURN_IF_ERROR(Lock(lock.get(), LOCK_EX, lock_path));
  const std::string path = PathOf(key, kPart);
  // In this order: one that is completed between the two questions is found by the second.
  if (PathExists(path) && !EvictUnused(path)) return absl::UnavailableError("being filled");
  if (PathExists(PathOf(key, kComplete))) return absl::AlreadyExistsError("it is there");
  STILL_RETURN_IF_ERROR(MakeRoom(size));
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW));
  STILL_RETURN_IF_ERROR(Lock(fd.get(), LOCK_EX | LOCK_NB, path));
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    absl::Status failed = ErrnoStatus(errno, absl::StrCat("size ", path));
    return FirstError(failed, RemoveFile(path));
  }
  return fd;
}

absl::Status HotImages::WaitForPart(const std::string& key) const {
  const std::string path = PathOf(key, kPart);
  const absl::Duration deadline = Clock::Real().Monotonic() + options_.wait;
  while (PathExists(path) && !IsUnused(path)) {
    if (Clock::Real().Monotonic() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("another process fills ", path, " for longer than ", absl::FormatDuration(options_.wait)));
    }
    Clock::Real().Sleep(kPoll);
  }
  return absl::OkStatus();
}

// With the lock held, so that two that make room at the same time do not both count on it.
absl::Status HotImages::MakeRoom(uint64_t size) const {
  struct statfs system {};
  if (::statfs(options_.directory.c_str(), &system) != 0) return ErrnoStatus(errno, options_.directory);
  uint64_t free = static_cast<uint64_t>(system.f_bavail) * static_cast<uint64_t>(system.f_bsize);
  STILL_ASSIGN_OR_RETURN(std::vector<HotImageInfo> images, List());
  uint64_t total = 0;
  uint64_t promised = 0;  // Of `free`, to holes that may yet be filled.
  for (const HotImageInfo& image : images) {
    total += image.size;
    promised += image.size - std::min(image.size, image.resident);
  }
  for (const HotImageInfo& image : images) {
    if (total + size <= options_.limit_bytes && promised + size <= free) return absl::OkStatus();
    if (image.in_use || !EvictUnused(PathOf(image.key, kComplete))) continue;
    total -= image.size;
    promised -= image.size - std::min(image.size, image.resident);
    free += image.resident;
  }
  if (total + size <= options_.limit_bytes && promised + size <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("no room for a memory image of ", size >> 20, " MiB in ",
                                                   options_.directory, ": ", total >> 20, " MiB of ",
                                                   options_.limit_bytes >> 20, " are in use"));
}

absl::StatusOr<std::vector<HotImageInfo>> HotImages::List() const {
  std::vector<HotImageInfo> images;
  if (!PathExists(options_.directory)) return images;
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> names, ListDirectory(options_.directory));
  for (const std::string& name : names) {
    absl::string_view key = name;
    bool complete = absl::ConsumeSuffix(&key, kComplete);
    if (!complete && !absl::ConsumeSuffix(&key, kPart)) continue;
    const std::string path = JoinPath(options_.directory, name);
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) continue;  // Evicted, or completed, a moment ago.
    images.push_back({.key = std::string(key),
                      .size = static_cast<uint64_t>(info.st_size),
                      .resident = Allocated(info),
                      .used = absl::TimeFromTimespec(info.st_mtim),
                      .in_use = !complete || !IsUnused(path)});
  }
  std::sort(images.begin(), images.end(), [](const HotImageInfo& a, const HotImageInfo& b) { return a.used < b.used; });
  return images;
}

absl::StatusOr<uint64_t> HotImages::DropUnused() const {
  STILL_ASSIGN_OR_RETURN(std::vector<HotImageInfo> images, List());
  uint64_t dropped = 0;
  for (const HotImageInfo& image : images) {
    if (!image.in_use && EvictUnused(PathOf(image.key, kComplete))) dropped += image.resident;
  }
  return dropped;
}

}  // namespace still::snapshot
