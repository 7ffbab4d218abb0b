#include "session/vsock/preload_library.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/fd.h"
#include "base/file.h"

namespace still::session {
namespace {

constexpr char kLibrary[] = "libstill-vsock.so";
constexpr char kPreload[] = "LD_PRELOAD";

absl::StatusOr<std::vector<std::string>> Candidates() {
  if (const char* chosen = std::getenv("STILL_VSOCK_LIBRARY"); chosen != nullptr && *chosen != '\0') {
    return std::vector<std::string>{chosen};
  }
  char program[4096];
  ssize_t size = ::readlink("/proc/self/exe", program, sizeof program);
  if (size <= 0 || static_cast<size_t>(size) == sizeof program) return ErrnoStatus(errno, "readlink /proc/self/exe");
  std::string path(program, static_cast<size_t>(size));
  std::string directory = path.substr(0, path.rfind('/'));
  return std::vector<std::string>{JoinPath(directory, kLibrary),
                                  JoinPath(directory, absl::StrCat("../lib/stillpoint/", kLibrary))};
}

}  // namespace

absl::StatusOr<std::string> FindPreloadLibrary() {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> candidates, Candidates());
  for (const std::string& candidate : candidates) {
    if (!PathExists(candidate)) continue;
    char* real = ::realpath(candidate.c_str(), nullptr);
    if (real == nullptr) return ErrnoStatus(errno, absl::StrCat("realpath ", candidate));
    std::string path(real);
    std::free(real);
    // The separators of LD_PRELOAD; it has no way to quote them.
    if (path.find_first_of(": ") != std::string::npos) {
      return absl::FailedPreconditionError(
          absl::StrCat("vsock library ", path, ": no colon or space may be in its path; move it"));
    }
    return path;
  }
  return absl::FailedPreconditionError(absl::StrCat("vsock library not found at ", absl::StrJoin(candidates, " or "),
                                                    "; set STILL_VSOCK_LIBRARY to where ", kLibrary, " is"));
}

std::pair<std::string, std::string> PreloadVariable(const std::string& library) {
  const char* others = std::getenv(kPreload);
  if (others == nullptr || *others == '\0') return {kPreload, library};
  return {kPreload, absl::StrCat(library, ":", others)};
}

void Preload(const std::string& library, std::vector<std::pair<std::string, std::string>>& environment) {
  const bool there = std::any_of(environment.begin(), environment.end(), [](auto& v) { return v.first == kPreload; });
  if (!there) environment.push_back(PreloadVariable(library));
}

absl::Status CheckPreloaded(pid_t pid, const std::string& library) {
  constexpr size_t kMaxMaps = 16 << 20;
  STILL_ASSIGN_OR_RETURN(std::string maps, ReadFile(absl::StrCat("/proc/", pid, "/maps"), kMaxMaps));
  if (absl::StrContains(maps, library)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the hypervisor has not loaded ", library, "; is it a static or a set-user-id program?"));
}

bool UserfaultfdNeedsLibrary() {
  OwnedFd direct(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)));
  return !direct.valid() && errno == EPERM && OpenFile("/dev/userfaultfd", O_RDWR).ok();
}

}  // namespace still::session
