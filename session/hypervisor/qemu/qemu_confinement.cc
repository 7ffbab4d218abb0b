#include "session/hypervisor/qemu/qemu_confinement.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/log.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "session/hypervisor/qemu/qemu_probe.h"
#include "session/vsock/preload_library.h"

namespace still::session {
namespace {

// Users are numbers from here on. No range of systemd's or shadow's has them (systemd, docs/UIDS-GIDS.md), and with our own
// process id on top no two that run have the same.
constexpr uid_t kFirstUser = 1'900'000'000;
constexpr absl::Duration kTrialLimit = absl::Seconds(20);
constexpr char kUserfaultfd[] = "/dev/userfaultfd";
constexpr char kUserfaultfdForAll[] = "/proc/sys/vm/unprivileged_userfaultfd";
constexpr char kKvm[] = "/dev/kvm";
constexpr mode_t kThroughForGroup = 0710;  // Through it, but no list of what is there.

std::string DescriptorName(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

// Whether a QEMU that is not root has a way to protect its guest's memory from writing.
bool MayUseUserfaultfd() {
  const absl::StatusOr<std::string> for_all = ReadFile(kUserfaultfdForAll, 16);
  return (for_all.ok() && absl::StartsWith(*for_all, "1")) || OpenFile(kUserfaultfd, O_RDWR).ok();
}

bool Holds(int capability) {
  const std::string status = ReadFile("/proc/thread-self/status", 1 << 16).value_or("");
  uint64_t held = 0;
  for (absl::string_view line : absl::StrSplit(status, '\n')) {
    if (absl::ConsumePrefix(&line, "CapEff:\t") && absl::SimpleHexAtoi(line, &held)) return held >> capability & 1;
  }
  return false;
}

// Empty when root has what giving files to another user's process and ending it take, which it lacks in many containers.
std::string MissingCapability() {
  for (const auto& [number, name] : {std::pair(CAP_CHOWN, "CAP_CHOWN"), std::pair(CAP_KILL, "CAP_KILL")}) {
    if (!Holds(number)) return absl::StrCat("root has no ", name, " here");
  }
  return "";
}

// Looking into another user's process. Priming (ram_priming.h) needs it too, but only a pause gets longer without.
bool CannotSeeTheGuardOf(const VmConfig& config) { return ReachesANetwork(config) && !Holds(CAP_SYS_PTRACE); }

// Empty when `test` with these words holds for the user.
std::string WhyNot(const ProcessUser& user, std::vector<std::string> words, absl::string_view otherwise) {
  words.insert(words.begin(), "test");
  absl::StatusOr<CommandOutput> tried = RunCommand({.argv = std::move(words), .user = user}, kTrialLimit);
  if (!tried.ok()) return absl::StrCat("no process can become another user here: ", tried.status().message());
  return tried->exit.ok() ? "" : std::string(otherwise);
}

}  // namespace

QemuUser ChooseQemuUser(const std::string& binary) {
  if (::geteuid() != 0) return {.reason = "QEMU runs as this user"};
  if (const char* wanted = std::getenv("STILL_QEMU_AS_ROOT"); wanted != nullptr && *wanted != '\0') {
    return {.reason = "STILL_QEMU_AS_ROOT is set"};
  }
  absl::StatusOr<std::string> library = FindPreloadLibrary();
  if (!library.ok()) return {.reason = std::string(library.status().message())};
  if (std::string missing = MissingCapability(); !missing.empty()) return {.reason = std::move(missing)};
  if (!MayUseUserfaultfd()) {
    return {.reason =
                absl::StrCat("without ", kUserfaultfd, " (Linux 6.1) only root gets snapshots in the background")};
  }
  absl::StatusOr<std::string> program = FindQemu(binary);
  if (!program.ok()) return {.reason = std::string(program.status().message())};
  const auto number = kFirstUser + static_cast<uid_t>(::getpid());
  const ProcessUser user{.uid = number, .gid = number};
  std::string why = WhyNot(user, {"-r", *library}, absl::StrCat(*library, " may not be read by every user"));
  if (why.empty()) why = WhyNot(user, {"-x", *program}, absl::StrCat(*program, " may not be executed by every user"));
  if (!why.empty()) return {.reason = why};
  return {.user = user};
}

absl::StatusOr<QemuConfinement> QemuConfinement::Create(const std::string& binary, const VmConfig& config,
                                                        int directory_fd) {
  QemuConfinement none;
  none.backing_.resize(config.disks.size());
  QemuUser chosen = ChooseQemuUser(binary);
  if (chosen.user.has_value() && CannotSeeTheGuardOf(config)) {
    chosen = {.reason = "root has no CAP_SYS_PTRACE here, to see that the network's guard is loaded"};
  }
  if (!chosen.user.has_value()) {
    if (::geteuid() == 0) LogWarning("QEMU runs as root", {{"why", chosen.reason}});
    return none;
  }
  QemuConfinement confined;
  confined.user_ = chosen.user;
  confined.directory_fd_ = directory_fd;
  STILL_ASSIGN_OR_RETURN(confined.library_, FindPreloadLibrary());
  absl::Status given = confined.GiveFiles(config);
  if (absl::IsUnimplemented(given)) {
    LogWarning("QEMU runs as root", {{"why", given.message()}});
    return none;
  }
  STILL_RETURN_IF_ERROR(given);
  return confined;
}

std::string QemuConfinement::directory_name() const { return DescriptorName(directory_fd_); }

void QemuConfinement::AddTo(ProcessOptions& process) const {
  if (!user_.has_value()) return;
  process.user = user_;
  for (const OwnedFd& fd : given_) process.inherited_fds.push_back(fd.get());
  process.inherited_fds.push_back(directory_fd_);
  auto& variables = process.environment;
  variables.insert(variables.end(), environment_.begin(), environment_.end());
  Preload(library_, variables);
}

void QemuConfinement::HandedOver() {
  given_.clear();
  ram_.Reset();
}

absl::Status QemuConfinement::GiveFiles(const VmConfig& config) {
  STILL_RETURN_IF_ERROR(GiveDisks(config));
  for (const std::string& path : {config.kernel, config.initrd, config.firmware}) {
    if (absl::StartsWith(path, "/")) STILL_RETURN_IF_ERROR(Give(path, O_RDONLY));
  }
  if (config.incoming.has_value()) STILL_RETURN_IF_ERROR(GiveRam(config));
  STILL_RETURN_IF_ERROR(GiveDevices(config));
  return OpenDirectory(config);
}

absl::Status QemuConfinement::GiveDisks(const VmConfig& config) {
  for (const DiskConfig& disk : config.disks) {
    const bool lazy = !disk.backing_export.empty();
    std::vector<BackingImage>& chain = backing_.emplace_back();
    STILL_RETURN_IF_ERROR(Give(disk.path, disk.read_only && !lazy ? O_RDONLY : O_RDWR));
    if (lazy || disk.format != "qcow2") continue;
    STILL_ASSIGN_OR_RETURN(chain, BackingChainOf(disk.path));
    for (const BackingImage& image : chain) STILL_RETURN_IF_ERROR(Give(image.path, O_RDONLY));
  }
  return absl::OkStatus();
}

absl::Status QemuConfinement::Give(const std::string& path, int flags) {
  if (names_.contains(path)) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(path, flags));
  names_[path] = DescriptorName(file.get());
  given_.push_back(std::move(file));
  return absl::OkStatus();
}

// A hot image is shared by all machines that were started from it, so QEMU may read it; its private mapping may be written to. The
// lock that says that it is in use is one of the new descriptor, too.
absl::Status QemuConfinement::GiveRam(const VmConfig& config) {
  const IncomingState& incoming = *config.incoming;
  if (incoming.share_ram) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(ram_, OpenFile(DescriptorName(incoming.ram.get()), O_RDONLY));
  if (::flock(ram_.get(), LOCK_SH | LOCK_NB) != 0) return ErrnoStatus(errno, "lock the memory image");
  return absl::OkStatus();
}

absl::Status QemuConfinement::GiveDevices(const VmConfig& config) {
  if (config.accelerator == "kvm") {
    STILL_RETURN_IF_ERROR(Give(kKvm, O_RDWR));
    environment_.emplace_back("STILL_KVM_FD", absl::StrCat(given_.back().get()));
  }
  // Not access(2): in a container it allows what the device's policy then refuses.
  if (OpenFile(kUserfaultfd, O_RDWR).ok()) {
    STILL_RETURN_IF_ERROR(Give(kUserfaultfd, O_RDWR));
    environment_.emplace_back("STILL_USERFAULTFD_DEVICE", names_.at(kUserfaultfd));
  }
  return absl::OkStatus();
}

// The session's directory stays root's. QEMU may go through it, to the sockets that are its own; control.sock is not.
absl::Status QemuConfinement::OpenDirectory(const VmConfig& config) {
  struct stat info {};
  if (::stat(config.directory.c_str(), &info) != 0) return ErrnoStatus(errno, config.directory);
  if ((info.st_mode & S_IXOTH) == 0) {
    if (::chown(config.directory.c_str(), static_cast<uid_t>(-1), user_->gid) != 0 ||
        ::chmod(config.directory.c_str(), kThroughForGroup) != 0) {
      return ErrnoStatus(errno, absl::StrCat("open ", config.directory, " for QEMU"));
    }
  }
  std::vector<std::string> sockets;
  if (config.vsock.has_value()) sockets = config.vsock->sockets;
  for (const DiskConfig& disk : config.disks) {
    if (!disk.backing_export.empty()) sockets.push_back(JoinPath(config.directory, disk.backing_socket));
  }
  for (const std::string& socket : sockets) {
    if (::chown(socket.c_str(), user_->uid, user_->gid) != 0) return ErrnoStatus(errno, absl::StrCat("give ", socket));
  }
  return absl::OkStatus();
}

}  // namespace still::session
