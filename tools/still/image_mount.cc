#include "tools/still/image_mount.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/absolute_path.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "base/secret.h"
#include "base/undo.h"
#include "session/control/session_registry.h"

namespace still::cli {
namespace {

constexpr absl::Duration kServerStart = absl::Seconds(60);  // Deriving a key takes seconds on a busy host.
constexpr absl::Duration kToolLimit = absl::Seconds(60);
constexpr absl::Duration kUnmountLimit = absl::Seconds(10);  // The loop device lets go of its file in the background.
constexpr absl::Duration kServerEnd = absl::Seconds(2);
constexpr absl::Duration kMountPoll = absl::Milliseconds(10);
constexpr int kFirstFreeFd = 10;  // The socket that nbdkit takes over gets number 3.
constexpr size_t kMaxLog = 4096;

// Read-only without replaying a journal, which would be a write. What a frozen file system had written is all there; after
// a crash-consistent snapshot the newest changes may lie in the journal alone.
const std::map<std::string, std::string>& MountOptions() {
  static const auto& options = *new std::map<std::string, std::string>{{"ext2", ""},
                                                                       {"ext3", "noload"},
                                                                       {"ext4", "noload"},
                                                                       {"xfs", "norecovery,nouuid"},
                                                                       {"btrfs", "rescue=nologreplay"},
                                                                       {"vfat", ""},
                                                                       {"iso9660", ""},
                                                                       {"squashfs", ""}};
  return options;
}

absl::StatusOr<std::string> RunTool(std::vector<std::string> argv) {
  const std::string program = argv[0];
  STILL_ASSIGN_OR_RETURN(CommandOutput output,
                         RunCommand({.argv = std::move(argv), .end_with_parent = true}, kToolLimit));
  if (output.exit.ok()) return output.stdout_text;
  std::string why(absl::StripAsciiWhitespace(output.stderr_text));
  if (why.empty()) why = absl::StrCat(program, ": ", output.exit.ToString());
  return absl::FailedPreconditionError(absl::StrReplaceAll(why, {{"\n", "; "}}));
}

// KEY=value lines of blkid; empty when it finds nothing (exit code 2).
absl::StatusOr<std::map<std::string, std::string>> Probe(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(
      CommandOutput output,
      RunCommand({.argv = {"/sbin/blkid", "-p", "-o", "export", path}, .end_with_parent = true}, kToolLimit));
  std::map<std::string, std::string> found;
  if (output.exit.signal == 0 && output.exit.exit_code == 2) return found;
  if (!output.exit.ok()) {
    return absl::UnavailableError(absl::StrCat("blkid: ", absl::StripAsciiWhitespace(output.stderr_text)));
  }
  for (absl::string_view line : absl::StrSplit(output.stdout_text, '\n', absl::SkipEmpty())) {
    std::pair<std::string, std::string> entry = absl::StrSplit(line, absl::MaxSplits('=', 1));
    found.insert(std::move(entry));
  }
  return found;
}

absl::Status NamePartitions(const std::string& path, const std::string& image) {
  absl::StatusOr<std::string> listed = RunTool({"partx", "--raw", "--noheadings", "--output", "NR,SIZE", path});
  std::vector<std::string> partitions;
  if (listed.ok()) {
    for (absl::string_view line : absl::StrSplit(*listed, '\n', absl::SkipWhitespace())) {
      std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
      if (words.size() == 2) partitions.push_back(absl::StrCat(words[0], " (", words[1], ")"));
    }
  }
  return absl::FailedPreconditionError(absl::StrCat("disk ", image,
                                                    " has partitions: ", absl::StrJoin(partitions, ", "),
                                                    "; name one, as in SNAPSHOT:", image, ":1"));
}

// FUSE's own program may do it for whoever mounted it. It knows nothing of directories where nothing is mounted.
absl::Status UnmountAsUser(const std::string& directory) {
  struct stat here {};
  struct stat above {};
  const int found = ::stat(directory.c_str(), &here);
  if (found != 0 && errno == ENOENT) return absl::OkStatus();
  const std::string parent = std::filesystem::path(directory).parent_path().string();
  // A server that is gone leaves a mount that cannot even be looked at (ENOTCONN).
  if (found == 0 && ::stat(parent.c_str(), &above) == 0 && here.st_dev == above.st_dev) return absl::OkStatus();
  return RunTool({"fusermount3", "-u", "-z", directory}).status();
}

std::string LastLine(const std::string& path) {
  std::string text = ReadFile(path, kMaxLog).value_or("");
  std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  for (std::string& line : lines) {
    if (size_t at = line.find("error: "); at != std::string::npos) return line.substr(at + 7);
  }
  return lines.empty() ? "it said nothing" : lines.back();
}

absl::StatusOr<std::string> ChooseImage(const manifestpb::Snapshot& snapshot, const std::string& wanted) {
  std::vector<std::string> disks;
  for (const manifestpb::Image& image : snapshot.images()) {
    if (image.name() == wanted) return wanted;
    if (image.role() == manifestpb::Image::ROLE_DISK) disks.push_back(image.name());
  }
  if (wanted.empty() && disks.size() == 1) return disks[0];
  const std::string there = absl::StrCat("the snapshot's disks are: ", absl::StrJoin(disks, ", "));
  if (wanted.empty()) return absl::InvalidArgumentError(absl::StrCat("name a disk, as in SNAPSHOT:vda; ", there));
  return absl::NotFoundError(absl::StrCat("no image \"", wanted, "\"; ", there));
}

struct ServerCommand {
  std::vector<std::string> argv;
  OwnedFd passphrase;
};

absl::StatusOr<ServerCommand> NbdfuseCommand(const store::RepositoryOptions& opened, const ImageReference& reference,
                                             const std::string& file) {
  STILL_ASSIGN_OR_RETURN(std::string plugin, FindSibling("nbdkit-still-plugin.so", "STILL_NBDKIT_PLUGIN"));
  ServerCommand command;
  command.argv = {"nbdfuse", file, "--socket-activation", "nbdkit", "--foreground", "--filter=readahead"};
  if (reference.partition != 0) command.argv.emplace_back("--filter=partition");
  STILL_ASSIGN_OR_RETURN(const std::string repository, AbsolutePath(opened.path));
  command.argv.insert(command.argv.end(),
                      {plugin, absl::StrCat("repository=", repository), absl::StrCat("snapshot=", reference.snapshot),
                       absl::StrCat("image=", reference.image)});
  if (reference.partition != 0) command.argv.push_back(absl::StrCat("partition=", reference.partition));
  const store::Credentials& credentials = opened.credentials;
  if (!credentials.passphrase.empty()) {
    STILL_ASSIGN_OR_RETURN(OwnedFd memory, MakeSecretFd(credentials.passphrase));
    command.passphrase = OwnedFd(::fcntl(memory.get(), F_DUPFD_CLOEXEC, kFirstFreeFd));
    if (!command.passphrase.valid()) return ErrnoStatus(errno, "duplicate the passphrase's descriptor");
    command.argv.push_back(absl::StrCat("passphrase-fd=", command.passphrase.get()));
  } else if (!credentials.key_file.empty()) {
    STILL_ASSIGN_OR_RETURN(const std::string key_file, AbsolutePath(credentials.key_file));
    command.argv.push_back(absl::StrCat("key-file=", key_file));
  }
  return command;
}

}  // namespace

absl::StatusOr<ImageReference> ParseImageReference(const std::string& text) {
  std::vector<std::string> parts = absl::StrSplit(text, ':');
  ImageReference reference{.snapshot = parts[0]};
  if (parts.size() > 1) reference.image = parts[1];
  bool good = parts.size() <= 3 && !reference.snapshot.empty() && (parts.size() < 2 || !reference.image.empty());
  if (parts.size() == 3) good &= absl::SimpleAtoi(parts[2], &reference.partition) && reference.partition > 0;
  if (good) return reference;
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\": write SNAPSHOT, SNAPSHOT:DISK or SNAPSHOT:DISK:PARTITION"));
}

absl::StatusOr<ImageFile> ImageFile::Start(const Context& context, const Options& options) {
  STILL_ASSIGN_OR_RETURN(RepositoryAccess access, context.OpenRepositoryWithAccess());
  STILL_ASSIGN_OR_RETURN(manifestpb::Snapshot snapshot, access.repository->FindSnapshot(options.reference.snapshot));
  ImageReference reference = options.reference;
  reference.snapshot = snapshot.id();
  STILL_ASSIGN_OR_RETURN(reference.image, ChooseImage(snapshot, reference.image));
  access.repository.reset();

  const std::string fuse = JoinPath(options.directory, "fuse");
  STILL_RETURN_IF_ERROR(MakeDirectories(fuse));
  const std::string path = JoinPath(fuse, reference.image);
  const std::string log_path = JoinPath(options.directory, "log");
  STILL_ASSIGN_OR_RETURN(OwnedFd log, OpenFile(log_path, O_WRONLY | O_CREAT | O_TRUNC));
  STILL_ASSIGN_OR_RETURN(ServerCommand command, NbdfuseCommand(access.options, reference, path));
  ProcessOptions process{.argv = command.argv, .working_directory = "/", .stderr_fd = log.get()};
  process.end_with_parent = !options.outlive;
  process.new_session = options.outlive;
  if (command.passphrase.valid()) process.inherited_fds = {command.passphrase.get()};
  absl::StatusOr<ChildProcess> started = ChildProcess::Start(process);
  if (absl::IsNotFound(started.status())) {
    return absl::FailedPreconditionError("nbdfuse is not installed (Debian: libnbd-bin)");
  }
  if (!started.ok()) return started.status();
  ImageFile file(*std::move(started));
  file.path_ = path;
  file.snapshot_id_ = reference.snapshot;
  file.image_ = reference.image;
  const absl::Duration deadline = Clock::Real().Monotonic() + kServerStart;
  while (!PathExists(path)) {
    if (file.server_->Wait(kMountPoll).ok()) {
      return absl::FailedPreconditionError(absl::StrCat("the image cannot be served: ", LastLine(log_path)));
    }
    if (Clock::Real().Monotonic() > deadline) return absl::DeadlineExceededError("the image is not served");
  }
  return file;
}

ImageFile::ImageFile(ImageFile&& other) noexcept
    : server_(std::exchange(other.server_, std::nullopt)),
      path_(std::move(other.path_)),
      snapshot_id_(std::move(other.snapshot_id_)),
      image_(std::move(other.image_)) {}

ImageFile::~ImageFile() {
  if (!server_.has_value()) return;
  // It ends when its file is unmounted. Not by a signal: it would wait for the loop device, which lets go of the file in
  // the background. What does not end is killed with the object.
  Unmount(std::filesystem::path(path_).parent_path().string()).IgnoreError();
  server_->Wait(kServerEnd).IgnoreError();
}

void ImageFile::Release() {
  server_->Release();
  server_.reset();
}

absl::StatusOr<std::string> FileSystemType(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(auto found, Probe(path));
  return found["TYPE"];
}

absl::StatusOr<FileSystem> FindFileSystem(const ImageFile& image) {
  STILL_ASSIGN_OR_RETURN(auto found, Probe(image.path()));
  const std::string type = found["TYPE"];
  if (type.empty() && !found["PTTYPE"].empty()) return NamePartitions(image.path(), image.image());
  auto options = MountOptions().find(type);
  if (options == MountOptions().end()) {
    return absl::FailedPreconditionError(
        type.empty() ? absl::StrCat("no file system was found on ", image.image())
                     : absl::StrCat(image.image(), " holds ", type, ", which is not mounted on hosts"));
  }
  return FileSystem{.type = type, .options = options->second};
}

absl::Status MountFileSystem(const ImageFile& image, const std::string& directory) {
  if (::geteuid() != 0) return absl::PermissionDeniedError("mounting needs root");
  STILL_ASSIGN_OR_RETURN(FileSystem system, FindFileSystem(image));
  std::string options = "ro,loop,nosuid,nodev,noexec";
  if (!system.options.empty()) absl::StrAppend(&options, ",", system.options);
  return RunTool({"mount", "-t", system.type, "-o", options, image.path(), directory}).status();
}

absl::Status Unmount(const std::string& directory) {
  const absl::Duration deadline = Clock::Real().Monotonic() + kUnmountLimit;
  while (::umount2(directory.c_str(), UMOUNT_NOFOLLOW) != 0) {
    if (errno == EINVAL || errno == ENOENT) return absl::OkStatus();  // Nothing is mounted there (any more).
    if (errno == EPERM) return UnmountAsUser(directory);
    if (errno != EBUSY || Clock::Real().Monotonic() > deadline)
      return ErrnoStatus(errno, absl::StrCat("umount ", directory));
    Clock::Real().Sleep(kMountPoll);
  }
  return absl::OkStatus();
}

}  // namespace still::cli
