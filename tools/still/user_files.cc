#include "tools/still/user_files.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/absolute_path.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "base/process.h"
#include "base/undo.h"
#include "session/control/session_registry.h"

namespace still::cli {
namespace {

using nlohmann::json;

constexpr char kKernel[] = "linux.uml";
constexpr char kMemory[] = "mem=256M";  // Taken as it is used.
constexpr size_t kMaxReply = 256 << 20;
// Of a copy of any size: what hangs is the disk that it is written to, and then cp(1) would hang too.
constexpr absl::Duration kReadLimit = absl::Hours(24);
constexpr absl::Duration kAskAgain = absl::Milliseconds(100);  // Whether somebody has interrupted us.
constexpr absl::Duration kEndLimit = absl::Seconds(10);
constexpr size_t kMaxSaid = 1 << 20;
constexpr absl::string_view kPrefix = "read-";
constexpr absl::string_view kInside = "/destination/";

// A directory of ours under <state>/mounts, locked while we live.
struct Place {
  std::string path;
  OwnedFd lock;
};

absl::Status RemovePlace(const std::string& path) {
  STILL_RETURN_IF_ERROR(Unmount(JoinPath(path, "fuse")));
  return RemoveTree(path);
}

// What others left that were killed.
void SweepPlaces(const std::string& mounts) {
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(mounts);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    if (!absl::StartsWith(name, kPrefix)) continue;
    absl::StatusOr<OwnedFd> directory = OpenFile(JoinPath(mounts, name), O_RDONLY | O_DIRECTORY);
    if (!directory.ok() || ::flock(directory->get(), LOCK_EX | LOCK_NB) != 0) continue;
    // The next one tries again.
    RemovePlace(JoinPath(mounts, name)).IgnoreError();
  }
}

absl::StatusOr<Place> MakePlace(const Context& context) {
  const std::string mounts = JoinPath(context.state_directory(), "mounts");
  STILL_RETURN_IF_ERROR(MakeDirectories(mounts));
  SweepPlaces(mounts);
  Place place{.path = JoinPath(mounts, absl::StrCat(kPrefix, "XXXXXX"))};
  if (::mkdtemp(place.path.data()) == nullptr) return ErrnoStatus(errno, absl::StrCat("mkdtemp ", place.path));
  STILL_ASSIGN_OR_RETURN(place.lock, OpenFile(place.path, O_RDONLY | O_DIRECTORY));
  if (::flock(place.lock.get(), LOCK_EX | LOCK_NB) != 0) return ErrnoStatus(errno, absl::StrCat("lock ", place.path));
  for (const char* name : {"guest/dev", "guest/proc", "guest/tree", "guest/destination", "kernel"}) {
    STILL_RETURN_IF_ERROR(MakeDirectories(JoinPath(place.path, name)));
  }
  return place;
}

absl::Status CopyProgram(const std::string& from, const std::string& to) {
  std::error_code error;
  std::filesystem::copy_file(from, to, error);
  return error ? ErrnoStatus(error.value(), absl::StrCat("copy ", from)) : absl::OkStatus();
}

std::string Unescaped(const json& object, const char* key) {
  std::string text;
  if (!object.contains(key) || !object[key].is_string()) return text;
  return absl::CUnescape(object[key].get_ref<const std::string&>(), &text) ? text : std::string();
}

// Until it ends, or nobody waits any more: then all processes of it are ended first (still-file-reader).
absl::StatusOr<ProcessExit> WaitOrEnd(ChildProcess& kernel, const std::function<bool()>& go_on) {
  for (const absl::Time end = absl::Now() + kReadLimit; go_on() && absl::Now() < end;) {
    absl::StatusOr<ProcessExit> exit = kernel.Wait(kAskAgain);
    if (!absl::IsDeadlineExceeded(exit.status())) return exit;
  }
  STILL_RETURN_IF_ERROR(kernel.Kill(SIGTERM));
  STILL_RETURN_IF_ERROR(kernel.Wait(kEndLimit).status());
  return go_on() ? absl::DeadlineExceededError(absl::StrCat(kKernel, " does not come to an end"))
                 : absl::CancelledError("interrupted");
}

// Runs the kernel over the image. The words have no paths in them, which may hold spaces and commas: everything is
// reached from its working directory.
absl::Status RunKernel(const std::string& directory, const std::string& reader, const std::string& image_file,
                       const std::function<bool()>& go_on) {
  const std::string said = JoinPath(directory, "said");
  STILL_ASSIGN_OR_RETURN(OwnedFd output, OpenFile(said, O_WRONLY | O_CREAT | O_APPEND));
  STILL_ASSIGN_OR_RETURN(
      ChildProcess kernel,
      ChildProcess::Start(
          {.argv = {reader, kKernel, kMemory, "root=/dev/root", "rootfstype=hostfs", "rootflags=/proc/self/cwd/guest",
                    "rw", "init=/init", "uml_dir=kernel/", "umid=reader", absl::StrCat("ubd0r=fuse/", image_file),
                    "con=null", "ssl=null", "con0=null,fd:1", "quiet"},
           .working_directory = directory,
           .stdout_fd = output.get(),
           .stderr_fd = output.get(),
           .end_with_parent = true}));
  STILL_ASSIGN_OR_RETURN(const ProcessExit exit, WaitOrEnd(kernel, go_on));
  if (exit.exit_code == 127) {
    return absl::FailedPreconditionError(
        absl::StrCat(kKernel, " is not installed (Debian: user-mode-linux); root may say --host-kernel instead"));
  }
  if (PathExists(JoinPath(directory, "guest/reply"))) return absl::OkStatus();
  const std::string text = ReadFile(said, kMaxSaid).value_or("");
  return absl::UnavailableError(absl::StrCat(kKernel, " ended without an answer: ", absl::StripAsciiWhitespace(text)));
}

absl::StatusOr<json> ReadAsUser(const Context& context, const ImageReference& image, json request,
                                const std::function<bool()>& go_on) {
  STILL_ASSIGN_OR_RETURN(std::string reader, FindSibling("still-file-reader", "STILL_FILE_READER"));
  STILL_ASSIGN_OR_RETURN(Place place, MakePlace(context));
  UndoStack undo;  // Always: nothing of it is needed afterwards.
  undo.Push("remove what files were read through", [path = place.path] { return RemovePlace(path); });
  STILL_ASSIGN_OR_RETURN(ImageFile file, ImageFile::Start(context, {.reference = image, .directory = place.path}));
  STILL_ASSIGN_OR_RETURN(FileSystem system, FindFileSystem(file));
  request["type"] = system.type;
  request["options"] = system.options;
  STILL_RETURN_IF_ERROR(CopyProgram(reader, JoinPath(place.path, "guest/init")));
  STILL_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(place.path, "guest/request"), request.dump()));
  STILL_RETURN_IF_ERROR(RunKernel(place.path, reader, file.image(), go_on));
  STILL_ASSIGN_OR_RETURN(std::string text, ReadFile(JoinPath(place.path, "guest/reply"), kMaxReply));
  json reply = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!reply.is_object()) return absl::InternalError("still-file-reader gave no answer");
  const int code = reply.value("code", static_cast<int>(absl::StatusCode::kInternal));
  if (code != 0) return absl::Status(static_cast<absl::StatusCode>(code), Unescaped(reply, "message"));
  return reply;
}

TreeEntry ToEntry(const json& entry) {
  TreeEntry out{.name = Unescaped(entry, "name"), .link_target = Unescaped(entry, "link_target")};
  out.info.st_mode = entry.value("mode", mode_t{0});
  out.info.st_uid = entry.value("uid", uid_t{0});
  out.info.st_gid = entry.value("gid", gid_t{0});
  out.info.st_size = entry.value("size", off_t{0});
  out.info.st_mtim = {.tv_sec = entry.value("seconds", time_t{0}), .tv_nsec = entry.value("nanoseconds", 0L)};
  return out;
}

mode_t Umask() {
  const mode_t mask = ::umask(077);
  ::umask(mask);
  return mask;
}

}  // namespace

absl::StatusOr<std::vector<TreeEntry>> ListAsUser(const Context& context, const ImageReference& image,
                                                  const std::string& path) {
  STILL_ASSIGN_OR_RETURN(json reply, ReadAsUser(context, image, {{"path", absl::CEscape(path)}}, [] { return true; }));
  std::vector<TreeEntry> entries;
  for (const json& entry : reply["entries"]) entries.push_back(ToEntry(entry));
  return entries;
}

absl::Status CopyAsUser(const Context& context, const ImageReference& image, const TreeCopy& copy) {
  // Links of the host mean nothing inside: it gets a real directory, and perhaps a new name in it.
  STILL_ASSIGN_OR_RETURN(const std::string absolute, AbsolutePath(copy.destination));
  std::filesystem::path target = absolute;
  if (!target.has_filename()) target = target.parent_path();
  std::error_code error;
  std::string as;
  if (!std::filesystem::is_directory(target, error)) {
    as = target.filename().string();
    target = target.parent_path();
  }
  const std::string directory = std::filesystem::canonical(target, error).string();
  if (error) return ErrnoStatus(error.value(), target.string());
  absl::StatusOr<json> reply = ReadAsUser(context, image,
                                          {{"path", absl::CEscape(copy.path)},
                                           {"destination", absl::CEscape(directory)},
                                           {"as", absl::CEscape(as)},
                                           {"umask", Umask()}},
                                          copy.go_on);
  const std::vector<std::pair<absl::string_view, std::string>> outside = {{kInside, absl::StrCat(directory, "/")}};
  if (!reply.ok()) {
    return absl::Status(reply.status().code(), absl::StrReplaceAll(reply.status().message(), outside));
  }
  for (const json& left_out : (*reply)["skipped"]) {
    std::string name;
    if (!left_out.is_string() || !absl::CUnescape(left_out.get_ref<const std::string&>(), &name)) continue;
    copy.skipped(absl::StrReplaceAll(name, outside));
  }
  return absl::OkStatus();
}

}  // namespace still::cli
