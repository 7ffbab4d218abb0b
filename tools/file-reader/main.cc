// still-file-reader: reads the files of a disk image for a user who may not mount it. It runs twice.
//
//   still-file-reader linux.uml ARGUMENTS..   outside: starts user-mode Linux, a kernel that is an ordinary program, and ends
//                                             all of its processes, whichever way it ends itself.
//   /init                                     inside, as that kernel's first program: mounts /dev/ubda read-only, does what
//                                             /request says, writes /reply, and switches off.
//
// Inside, the root directory is one of the host (hostfs), and so is the one that files are copied to. What the guest wrote
// is thus parsed by a kernel that has no more rights than the user. Requests and replies: tools/still/user_files.cc.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "tools/still/guest_tree.h"

namespace still::cli {
namespace {

using nlohmann::json;

constexpr char kTree[] = "/tree";
constexpr char kDestination[] = "/destination";
constexpr size_t kMaxRequest = 1 << 20;

absl::Status Mount(const char* what, const char* where, const std::string& type, unsigned long flags,
                   const std::string& options) {
  // The kernel mounts some of these by itself.
  if (::mount(what, where, type.c_str(), flags, options.c_str()) == 0 || errno == EBUSY) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("mount ", type));
}

// Paths and names are bytes; in JSON they are C-escaped.
std::string TextOf(const json& request, const char* key) {
  std::string text;
  const bool there = request.contains(key) && request[key].is_string() &&
                     absl::CUnescape(request[key].get_ref<const std::string&>(), &text);
  return there ? text : std::string();
}

json ToJson(const TreeEntry& entry) {
  return {{"name", absl::CEscape(entry.name)},
          {"mode", entry.info.st_mode},
          {"uid", entry.info.st_uid},
          {"gid", entry.info.st_gid},
          {"size", entry.info.st_size},
          {"seconds", entry.info.st_mtim.tv_sec},
          {"nanoseconds", entry.info.st_mtim.tv_nsec},
          {"link_target", absl::CEscape(entry.link_target)}};
}

absl::Status Serve(const json& request, json& reply) {
  constexpr unsigned long kGuarded = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  STILL_RETURN_IF_ERROR(Mount("dev", "/dev", "devtmpfs", 0, ""));
  STILL_RETURN_IF_ERROR(Mount("proc", "/proc", "proc", 0, ""));
  STILL_RETURN_IF_ERROR(
      Mount("/dev/ubda", kTree, TextOf(request, "type"), MS_RDONLY | kGuarded, TextOf(request, "options")));
  STILL_ASSIGN_OR_RETURN(GuestTree tree, GuestTree::Open(kTree));
  const std::string path = TextOf(request, "path");
  const std::string destination = TextOf(request, "destination");
  if (destination.empty()) {
    STILL_ASSIGN_OR_RETURN(std::vector<TreeEntry> entries, tree.List(path));
    for (const TreeEntry& entry : entries) reply["entries"].push_back(ToJson(entry));
    return absl::OkStatus();
  }
  STILL_RETURN_IF_ERROR(Mount("none", kDestination, "hostfs", kGuarded, destination));
  ::umask(request.value("umask", mode_t{022}));
  absl::Status copied =
      tree.Copy({.path = path,
                 .destination = JoinPath(kDestination, TextOf(request, "as")),
                 .skipped = [&](const std::string& skipped) { reply["skipped"].push_back(absl::CEscape(skipped)); }});
  ::sync();
  return copied;
}

[[noreturn]] void RunInside() {
  json reply = {{"entries", json::array()}, {"skipped", json::array()}};
  const json request = json::parse(ReadFile("/request", kMaxRequest).value_or(""), nullptr, /*allow_exceptions=*/false);
  absl::Status done = request.is_object() ? Serve(request, reply) : absl::InternalError("no request");
  reply["code"] = static_cast<int>(done.code());
  reply["message"] = absl::CEscape(done.message());
  absl::Status written = WriteFileAtomically("/reply", reply.dump());
  if (!written.ok()) std::fprintf(stderr, "still-file-reader: %s\n", written.ToString().c_str());
  ::umount2(kTree, MNT_DETACH);
  ::reboot(RB_POWER_OFF);
  ::_exit(1);
}

// user-mode Linux has several processes, in one group. Killed by itself, its main one would leave the others.
int Supervise(char** argv) {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCHLD}) ::sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  // Instead of the SIGKILL that whoever starts us may have asked for.
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  const pid_t child = ::fork();
  if (child < 0) return 1;
  if (child == 0) {
    ::sigprocmask(SIG_UNBLOCK, &signals, nullptr);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::setsid();
    ::execvp(argv[0], argv);
    std::perror(argv[0]);
    ::_exit(127);
  }
  int how = 0;
  for (int signal = 0; ::waitpid(child, &how, WNOHANG) == 0;) {
    if (::sigwait(&signals, &signal) == 0 && signal != SIGCHLD) ::kill(child, SIGKILL);
  }
  ::kill(-child, SIGKILL);
  return WIFEXITED(how) ? WEXITSTATUS(how) : 1;
}

}  // namespace
}  // namespace still::cli

int main(int argc, char** argv) {
  if (::getpid() == 1) still::cli::RunInside();
  if (argc > 1) return still::cli::Supervise(argv + 1);
  std::fputs("Started by `still ls` and `still cp`, not by hand.\n", stderr);
  return 2;
}
