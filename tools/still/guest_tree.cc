#include "tools/still/guest_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/absolute_path.h"
#include "base/file.h"

namespace still::cli {
namespace {

constexpr mode_t kKeptBits = 0777;
constexpr int kMaxDepth = 256;  // Each level holds two descriptors.
constexpr size_t kCopyPiece = 1 << 20;

absl::StatusOr<std::string> ReadLink(int directory, const std::string& name) {
  std::string target(PATH_MAX, '\0');
  const ssize_t size = ::readlinkat(directory, name.c_str(), target.data(), target.size());
  if (size < 0) return ErrnoStatus(errno, absl::StrCat("readlink ", name));
  target.resize(static_cast<size_t>(size));
  return target;
}

absl::StatusOr<TreeEntry> Describe(int directory, const std::string& name) {
  TreeEntry entry{.name = name};
  if (::fstatat(directory, name.c_str(), &entry.info, AT_SYMLINK_NOFOLLOW) != 0) {
    return ErrnoStatus(errno, absl::StrCat("stat ", name));
  }
  if (S_ISLNK(entry.info.st_mode)) {
    STILL_ASSIGN_OR_RETURN(entry.link_target, ReadLink(directory, name));
  }
  return entry;
}

absl::StatusOr<std::vector<std::string>> NamesIn(int directory) {
  OwnedFd own(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!own.valid()) return ErrnoStatus(errno, "open directory");
  std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(own.get()), &::closedir);
  if (stream == nullptr) return ErrnoStatus(errno, "read directory");
  own.Release();
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  if (errno != 0) return ErrnoStatus(errno, "read directory");
  std::sort(names.begin(), names.end());
  return names;
}

void KeepTimes(int directory, const std::string& name, const struct stat& info) {
  const timespec times[2] = {info.st_atim, info.st_mtim};
  // Times are a courtesy: some file systems cannot hold them.
  [[maybe_unused]] int kept = ::utimensat(directory, name.c_str(), times, AT_SYMLINK_NOFOLLOW);
}

absl::Status Interrupted(const std::string& path) {
  return absl::CancelledError(absl::StrCat("interrupted at ", path));
}

// Holes stay holes.
absl::Status CopyContent(int from, int to, off_t size, const std::string& path, const std::function<bool()>& go_on) {
  std::vector<char> piece(kCopyPiece);
  for (off_t at = 0; at < size;) {
    const off_t data = ::lseek(from, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    if (data < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    off_t end = ::lseek(from, data, SEEK_HOLE);
    if (end < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    end = std::min(end, size);
    for (at = data; at < end;) {
      if (!go_on()) return Interrupted(path);
      const auto wanted = static_cast<size_t>(std::min<off_t>(end - at, kCopyPiece));
      STILL_RETURN_IF_ERROR(PReadExactly(from, piece.data(), wanted, static_cast<uint64_t>(at), path));
      STILL_RETURN_IF_ERROR(PWriteAll(to, piece.data(), wanted, static_cast<uint64_t>(at), path));
      at += static_cast<off_t>(wanted);
    }
    at = end;
  }
  if (::ftruncate(to, size) != 0) return ErrnoStatus(errno, absl::StrCat("write ", path));
  return absl::OkStatus();
}

// One entry of directory `from` as `name` in directory `to`.
class Copier {
 public:
  explicit Copier(const TreeCopy& copy) : copy_(copy) {}

  absl::Status Copy(int from, const TreeEntry& entry, int to, const std::string& name, const std::string& path) {
    const mode_t mode = entry.info.st_mode;
    if (!copy_.go_on()) return Interrupted(path);
    if (S_ISDIR(mode)) return CopyDirectory(from, entry, to, name, path);
    if (S_ISREG(mode)) return CopyFile(from, entry, to, name, path);
    if (!S_ISLNK(mode)) {
      copy_.skipped(path);
      return absl::OkStatus();
    }
    if (::symlinkat(entry.link_target.c_str(), to, name.c_str()) != 0)
      return ErrnoStatus(errno, absl::StrCat("make ", path));
    KeepTimes(to, name, entry.info);
    return absl::OkStatus();
  }

 private:
  absl::Status CopyFile(int from, const TreeEntry& entry, int to, const std::string& name, const std::string& path) {
    OwnedFd in(::openat(from, entry.name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
    if (!in.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
    OwnedFd out(::openat(to, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                         entry.info.st_mode & kKeptBits));
    if (!out.valid()) return ErrnoStatus(errno, absl::StrCat("make ", path));
    STILL_RETURN_IF_ERROR(CopyContent(in.get(), out.get(), entry.info.st_size, path, copy_.go_on));
    KeepTimes(to, name, entry.info);
    return absl::OkStatus();
  }

  absl::Status CopyDirectory(int from, const TreeEntry& entry, int to, const std::string& name,
                             const std::string& path) {
    if (++depth_ > kMaxDepth)
      return absl::OutOfRangeError(absl::StrCat(path, ": more than ", kMaxDepth, " levels deep"));
    OwnedFd in(::openat(from, entry.name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!in.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
    // Ours to write until it is filled.
    if (::mkdirat(to, name.c_str(), 0700) != 0) return ErrnoStatus(errno, absl::StrCat("make ", path));
    OwnedFd out(::openat(to, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!out.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
    STILL_ASSIGN_OR_RETURN(std::vector<std::string> names, NamesIn(in.get()));
    for (const std::string& child : names) {
      STILL_ASSIGN_OR_RETURN(TreeEntry described, Describe(in.get(), child));
      STILL_RETURN_IF_ERROR(Copy(in.get(), described, out.get(), child, JoinPath(path, child)));
    }
    if (::fchmod(out.get(), entry.info.st_mode & kKeptBits) != 0)
      return ErrnoStatus(errno, absl::StrCat("chmod ", path));
    KeepTimes(to, name, entry.info);
    --depth_;
    return absl::OkStatus();
  }

  const TreeCopy& copy_;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<GuestTree> GuestTree::Open(const std::string& root) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(root, O_PATH | O_DIRECTORY));
  return GuestTree(std::move(fd));
}

absl::StatusOr<OwnedFd> GuestTree::Find(const std::string& path, int flags) const {
  open_how how{};
  how.flags = static_cast<uint64_t>(flags) | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  OwnedFd fd(static_cast<int>(::syscall(SYS_openat2, root_.get(), path.c_str(), &how, sizeof how)));
  if (!fd.valid()) return ErrnoStatus(errno, path);
  return fd;
}

absl::StatusOr<std::vector<TreeEntry>> GuestTree::List(const std::string& path) const {
  STILL_ASSIGN_OR_RETURN(OwnedFd found, Find(path, O_PATH));
  struct stat info {};
  if (::fstat(found.get(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISDIR(info.st_mode)) {
    return std::vector<TreeEntry>{{.name = std::filesystem::path(path).filename().string(), .info = info}};
  }
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> names, NamesIn(found.get()));
  std::vector<TreeEntry> entries;
  for (const std::string& name : names) {
    STILL_ASSIGN_OR_RETURN(TreeEntry entry, Describe(found.get(), name));
    entries.push_back(std::move(entry));
  }
  return entries;
}

absl::Status GuestTree::Copy(const TreeCopy& copy) const {
  // The last link is followed, as cp(1) does for what was named.
  STILL_ASSIGN_OR_RETURN(OwnedFd source, Find(copy.path, O_PATH));
  STILL_ASSIGN_OR_RETURN(std::string resolved, ReadLink(AT_FDCWD, absl::StrCat("/proc/self/fd/", source.get())));
  STILL_ASSIGN_OR_RETURN(std::string top, ReadLink(AT_FDCWD, absl::StrCat("/proc/self/fd/", root_.get())));
  const std::string inside(absl::StripPrefix(resolved, top));
  const std::filesystem::path in_tree = inside.empty() ? "/" : inside;
  STILL_ASSIGN_OR_RETURN(OwnedFd parent, Find(in_tree.parent_path().string(), O_PATH | O_DIRECTORY));
  const std::string source_name = in_tree == "/" ? "." : in_tree.filename().string();
  STILL_ASSIGN_OR_RETURN(TreeEntry entry, Describe(parent.get(), source_name));

  STILL_ASSIGN_OR_RETURN(const std::string absolute, AbsolutePath(copy.destination));
  std::filesystem::path target = absolute;
  if (!target.has_filename()) target = target.parent_path();
  std::error_code error;
  if (std::filesystem::is_directory(target, error)) {
    std::string name = std::filesystem::path(copy.path).filename().string();
    target /= name.empty() ? "root" : name;
  }
  STILL_ASSIGN_OR_RETURN(OwnedFd to, OpenFile(target.parent_path().string(), O_PATH | O_DIRECTORY));
  return Copier(copy).Copy(parent.get(), entry, to.get(), target.filename().string(), target.string());
}

}  // namespace still::cli
