#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "base/undo.h"

namespace still {

absl::StatusOr<OwnedFd> OpenFile(const std::string& path, int flags, mode_t mode) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return ErrnoStatus(errno, absl::StrCat("open ", path));
  return OwnedFd(fd);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t limit) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDONLY));
  std::string content;
  char buffer[16384];
  for (;;) {
    ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (got == 0) return content;
    if (content.size() + static_cast<size_t>(got) > limit) {
      return absl::ResourceExhaustedError(absl::StrCat("read ", path, ": longer than ", limit, " bytes"));
    }
    content.append(buffer, static_cast<size_t>(got));
  }
}

absl::Status ReadExactly(int fd, void* out, size_t size, absl::string_view what) {
  auto* next = static_cast<char*>(out);
  while (size > 0) {
    ssize_t got = ::read(fd, next, size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", what));
    if (got == 0) return absl::DataLossError(absl::StrCat("read ", what, ": ends ", size, " bytes early"));
    next += got;
    size -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, const void* data, size_t size, absl::string_view what) {
  const auto* next = static_cast<const char*>(data);
  while (size > 0) {
    ssize_t put = ::write(fd, next, size);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return ErrnoStatus(errno, absl::StrCat("write ", what));
    next += put;
    size -= static_cast<size_t>(put);
  }
  return absl::OkStatus();
}

absl::Status PReadExactly(int fd, void* out, size_t size, uint64_t offset, absl::string_view what) {
  auto* next = static_cast<char*>(out);
  while (size > 0) {
    ssize_t got = ::pread(fd, next, size, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", what, " at ", offset));
    if (got == 0)
      return absl::DataLossError(absl::StrCat("read ", what, " at ", offset, ": ends ", size, " bytes early"));
    next += got;
    offset += static_cast<uint64_t>(got);
    size -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status PWriteAll(int fd, const void* data, size_t size, uint64_t offset, absl::string_view what) {
  const auto* next = static_cast<const char*>(data);
  while (size > 0) {
    ssize_t put = ::pwrite(fd, next, size, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return ErrnoStatus(errno, absl::StrCat("write ", what, " at ", offset));
    next += put;
    offset += static_cast<uint64_t>(put);
    size -= static_cast<size_t>(put);
  }
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDONLY | O_DIRECTORY));
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", path));
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view content, mode_t mode) {
  std::string temporary = absl::StrCat(path, ".", absl::Hex(RandomU64()), ".tmp");
  UndoStack undo;
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(temporary, O_WRONLY | O_CREAT | O_EXCL, mode));
  undo.Push("remove temporary file", [temporary] { return RemoveFile(temporary); });
  STILL_RETURN_IF_ERROR(WriteAll(fd.get(), content.data(), content.size(), temporary));
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", temporary));
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rename ", temporary, " to ", path));
  }
  undo.Disarm();
  std::filesystem::path parent = std::filesystem::path(path).parent_path();
  return SyncDirectory(parent.empty() ? "." : parent.string());
}

absl::Status MakeDirectories(const std::string& path, mode_t mode) {
  std::filesystem::path made;
  for (const std::filesystem::path& part : std::filesystem::path(path)) {
    made /= part;
    if (::mkdir(made.c_str(), mode) == 0 || errno == EEXIST || errno == EISDIR) continue;
    // A parent that exists on a read-only or forbidden file system answers EROFS or EACCES instead of EEXIST.
    int error_number = errno;
    struct stat status {};
    if (::stat(made.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) continue;
    return ErrnoStatus(error_number, absl::StrCat("mkdir ", made.string()));
  }
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  if (!S_ISDIR(status.st_mode)) return ErrnoStatus(ENOTDIR, absl::StrCat("mkdir ", path));
  return absl::OkStatus();
}

absl::Status RemoveTree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("remove ", path));
  return absl::OkStatus();
}

absl::Status RemoveFile(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, absl::StrCat("unlink ", path));
  return absl::OkStatus();
}

bool PathExists(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

absl::StatusOr<uint64_t> FileSize(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  return static_cast<uint64_t>(status.st_size);
}

absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) {
  DIR* directory = ::opendir(path.c_str());
  if (directory == nullptr) return ErrnoStatus(errno, absl::StrCat("open directory ", path));
  std::vector<std::string> names;
  errno = 0;
  while (dirent* entry = ::readdir(directory)) {
    absl::string_view name(entry->d_name);
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  int error_number = errno;
  ::closedir(directory);
  if (error_number != 0) return ErrnoStatus(error_number, absl::StrCat("read directory ", path));
  std::sort(names.begin(), names.end());
  return names;
}

std::string JoinPath(absl::string_view left, absl::string_view right) {
  if (left.empty()) return std::string(right);
  if (absl::EndsWith(left, "/")) return absl::StrCat(left, right);
  return absl::StrCat(left, "/", right);
}

}  // namespace still
