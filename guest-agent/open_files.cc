#include "guest-agent/open_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "guest-agent/bounded_call.h"
#include "guest-agent/mount_namespaces.h"

namespace still::agent {
namespace {

// A big database has tens of thousands; each costs about two microseconds.
constexpr size_t kMaxFiles = 262144;
// Of all processes: some 600,000 mappings, and about a second.
constexpr size_t kMaxMappingBytes = 64 << 20;

// 0 or errno. ENOENT: there is no such descriptor or mapping any more.
int NoteTarget(const std::string& link, const std::string& proc, const std::string& pid, OpenForWriting& found) {
  struct statx target {};
  if (::statx(AT_FDCWD, link.c_str(), AT_STATX_DONT_SYNC, STATX_TYPE, &target) != 0) return errno;
  const DeviceId device{target.stx_rdev_major, target.stx_rdev_minor};
  const DeviceId file_system{target.stx_dev_major, target.stx_dev_minor};
  if (S_ISBLK(target.stx_mode) && !found.devices.contains(device)) {
    found.devices[device] = DescribeProcess(proc, pid);
  } else if (S_ISREG(target.stx_mode) && !found.file_systems.contains(file_system)) {
    found.file_systems[file_system] = DescribeProcess(proc, pid);
  }
  return 0;
}

// The lines of a process's table of mappings, one after the other: it may be longer than our memory.
absl::Status ForEachMapping(const std::string& path, size_t& bytes_left,
                            absl::FunctionRef<absl::Status(absl::string_view line)> take) {
  OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  // A process that has ended and a kernel thread map nothing. Where a security module keeps a process from us, its
  // descriptors are not seen either.
  if (!fd.valid() && (errno == ENOENT || errno == ESRCH || errno == EACCES || errno == EPERM)) return absl::OkStatus();
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
  std::string text;
  char buffer[16384];
  for (ssize_t size; (size = ::read(fd.get(), buffer, sizeof buffer)) != 0;) {
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (static_cast<size_t>(size) > bytes_left) return absl::ResourceExhaustedError("more than the agent looks at");
    bytes_left -= static_cast<size_t>(size);
    text.append(buffer, static_cast<size_t>(size));
    size_t begin = 0;
    for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      STILL_RETURN_IF_ERROR(take(absl::string_view(text).substr(begin, end - begin)));
    }
    text.erase(0, begin);
  }
  return absl::OkStatus();
}

// "00400000-00401000 rw-s 00000000 00:05 97 /dev/sda" (proc_pid_maps(5)); its link in map_files has no leading zeros.
// Empty: nothing reaches a file or a disk through it.
std::string WritableSharedRange(absl::string_view line) {
  const size_t end = line.find(' ');
  if (end == absl::string_view::npos || line.size() < end + 5) return "";
  if (line[end + 2] != 'w' || line[end + 4] != 's') return "";
  absl::string_view range = line.substr(0, end);
  const size_t dash = range.find('-');
  if (dash == absl::string_view::npos) return "";
  auto number = [](absl::string_view digits) {
    return digits.substr(std::min(digits.find_first_not_of('0'), digits.size()));
  };
  return absl::StrCat(number(range.substr(0, dash)), "-", number(range.substr(dash + 1)));
}

absl::Status NoteMappings(const std::string& proc, const std::string& pid, size_t& bytes_left, OpenForWriting& found) {
  const std::string directory = absl::StrCat(proc, "/", pid);
  return ForEachMapping(JoinPath(directory, "maps"), bytes_left, [&](absl::string_view line) {
    const std::string range = WritableSharedRange(line);
    if (range.empty()) return absl::OkStatus();
    const std::string link = absl::StrCat(directory, "/map_files/", range);
    const int error = NoteTarget(link, proc, pid, found);
    // Unmapped meanwhile, or nothing but memory.
    return error == 0 || error == ENOENT ? absl::OkStatus() : ErrnoStatus(error, absl::StrCat("look at ", link));
  });
}

// Which process is being looked at, for whoever gives up waiting. Shared with the thread that looks.
struct Place {
  absl::Mutex mutex;
  std::string pid ABSL_GUARDED_BY(mutex);
};

OpenForWriting LookAtMappings(const std::string& proc, Place& place) {
  OpenForWriting found;
  bool truncated = false;
  size_t bytes_left = kMaxMappingBytes;
  for (const std::string& pid : ListProcesses(proc, truncated)) {
    {
      absl::MutexLock lock(&place.mutex);
      place.pid = pid;
    }
    absl::Status status = NoteMappings(proc, pid, bytes_left, found);
    if (status.ok() || !PathExists(absl::StrCat(proc, "/", pid))) continue;  // Or it has ended meanwhile.
    found.incomplete = absl::StrCat("the mappings of ", DescribeProcess(proc, pid), ": ", status.message());
    if (absl::IsResourceExhausted(status)) break;
  }
  if (truncated) found.incomplete = absl::StrCat("the guest has more than ", kMaxProcesses, " processes");
  return found;
}

}  // namespace

void OpenForWriting::Add(OpenForWriting other) {
  devices.merge(other.devices);
  file_systems.merge(other.file_systems);
  if (incomplete.empty()) incomplete = std::move(other.incomplete);
}

OpenForWriting FindOpenForWriting(const std::string& proc) {
  OpenForWriting found;
  bool truncated = false;
  size_t files = 0;
  for (const std::string& pid : ListProcesses(proc, truncated)) {
    std::string directory = absl::StrCat(proc, "/", pid, "/fd");
    // A process that has ended has nothing open; a kernel thread neither.
    std::vector<std::string> names = ListDirectory(directory).value_or(std::vector<std::string>());
    files += names.size();
    if (files > kMaxFiles) {
      truncated = true;
      break;
    }
    for (const std::string& name : names) {
      const std::string link = JoinPath(directory, name);
      struct stat mode {};
      // The link's own permissions are the descriptor's. What cannot be looked at has been closed meanwhile.
      if (::lstat(link.c_str(), &mode) == 0 && (mode.st_mode & S_IWUSR) != 0) (void)NoteTarget(link, proc, pid, found);
    }
  }
  if (truncated) found.incomplete = "more processes or open files than the agent looks at";
  return found;
}

OpenForWriting FindMappedForWriting(const std::string& proc, absl::Duration limit) {
  auto place = std::make_shared<Place>();
  absl::StatusOr<OpenForWriting> found = CallWithin<OpenForWriting>(
      limit, absl::StrCat("read the mappings below ", proc),
      [proc, place]() -> absl::StatusOr<OpenForWriting> { return LookAtMappings(proc, *place); });
  if (found.ok()) return *std::move(found);
  OpenForWriting unknown;
  absl::MutexLock lock(&place->mutex);
  unknown.incomplete = place->pid.empty()
                           ? "the mappings of a process cannot be read, since an earlier look at them"
                           : absl::StrCat("the mappings of ", DescribeProcess(proc, place->pid), ": no answer");
  return unknown;
}

}  // namespace still::agent
