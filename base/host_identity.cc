#include "base/host_identity.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "base/move_into_place.h"
#include "base/random.h"
#include "base/undo.h"

namespace still {
namespace {

constexpr size_t kIdDigits = 32;
constexpr size_t kLongestFile = 4096;

// Appears whole or not at all, and never in the place of one that somebody else made meanwhile.
absl::Status MakeId(const std::string& directory, const std::string& path) {
  STILL_RETURN_IF_ERROR(MakeDirectories(directory));
  const std::string temporary = absl::StrCat(path, ".", absl::Hex(RandomU64()), ".tmp");
  STILL_RETURN_IF_ERROR(
      WriteFileAtomically(temporary, absl::StrCat(absl::StrReplaceAll(RandomUuid(), {{"-", ""}}), "\n")));
  UndoStack undo;  // In the good case too, where it finds nothing any more.
  undo.Push("remove temporary file", [temporary] { return RemoveFile(temporary); });
  absl::Status moved = MoveIntoPlace(temporary, path);
  if (!moved.ok() && !absl::IsAlreadyExists(moved)) return moved;
  return SyncDirectory(directory);
}

}  // namespace

std::string HostName() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

absl::StatusOr<HostIdentity> ReadHostIdentity(const std::string& state_directory) {
  HostIdentity host{.id = "", .name = HostName()};
  const std::string path = JoinPath(state_directory, "host-id");
  absl::StatusOr<std::string> text = ReadFile(path, kLongestFile);
  if (absl::IsNotFound(text.status())) {
    // Whoever may not write here takes no snapshots either.
    if (!MakeId(state_directory, path).ok()) return host;
    text = ReadFile(path, kLongestFile);
  }
  if (absl::IsPermissionDenied(text.status())) return host;
  if (!text.ok()) return text.status();
  host.id = std::string(absl::StripAsciiWhitespace(*text));
  if (host.id.size() == kIdDigits && std::all_of(host.id.begin(), host.id.end(), absl::ascii_isxdigit)) return host;
  return absl::DataLossError(
      absl::StrCat(path, ": not the id of a host; put the host_id of one of its snapshots there (still show --json)"));
}

}  // namespace still
