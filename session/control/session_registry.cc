#include "session/control/session_registry.h"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "base/host_identity.h"
#include "base/name_match.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "proto/grpc_status.h"
#include "session/control/launch_report.h"
#include "session/control/session_autostart.h"
#include "session/control/session_lock.h"
#include "session/machine_id.h"
#include "session/session_config.h"

namespace still::session {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
// From its recorded end to the end of its process: the hypervisor's and the disk servers' ends.
constexpr absl::Duration kEndingTimeout = absl::Seconds(10);
constexpr absl::Duration kLookForEnd = absl::Milliseconds(10);
constexpr char kStartFile[] = "start.json";

template <typename Message>
absl::StatusOr<Message> ReadJson(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(std::string text, ReadFile(path, kMaxConfigBytes));
  Message message;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  if (auto status = google::protobuf::util::JsonStringToMessage(text, &message, options); !status.ok()) {
    return absl::DataLossError(absl::StrCat(path, ": ", status.ToString()));
  }
  return message;
}

template <typename Message>
absl::Status WriteJson(const std::string& path, const Message& message) {
  std::string text;
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  if (auto status = google::protobuf::util::MessageToJsonString(message, &text, options); !status.ok()) {
    return absl::InternalError(absl::StrCat(path, ": ", status.ToString()));
  }
  return WriteFileAtomically(path, text);
}

// One that hangs is there too.
bool IsReady(const std::string& directory) { return IsListening(JoinPath(directory, "control.sock")); }

// A still-session of before the lock is known by its socket.
bool IsAlive(const std::string& directory) { return IsSessionLocked(directory) || IsReady(directory); }

std::string EndPath(const std::string& directory) { return JoinPath(directory, "end.json"); }

// How a session ended that does not serve any more. nullopt: it recorded neither its end nor its start, or it has just been
// started.
std::optional<sessionpb::SessionEnd> EndOf(const std::string& directory, bool alive) {
  if (auto end = ReadJson<sessionpb::SessionEnd>(EndPath(directory)); end.ok()) return *end;
  absl::StatusOr<sessionpb::SessionStart> start = ReadSessionStart(directory);
  if (alive || !start.ok()) return std::nullopt;
  sessionpb::SessionEnd end;
  end.set_kind(start->boot_id() == HostBootId() ? sessionpb::SessionEnd::KILLED
                                                : sessionpb::SessionEnd::HOST_RESTARTED);
  return end;
}

}  // namespace

std::string SessionRegistry::Directory(const std::string& name) const {
  return absl::StrCat(root_, "/sessions/", name);
}

absl::StatusOr<SessionPlace> SessionRegistry::Create(const std::string& name) const {
  STILL_RETURN_IF_ERROR(ValidateSessionName(name));
  STILL_RETURN_IF_ERROR(MakeDirectories(absl::StrCat(root_, "/sessions")));
  std::string directory = Directory(name);
  if (::mkdir(directory.c_str(), 0700) == 0) {
    STILL_ASSIGN_OR_RETURN(OwnedFd lock, LockSession(directory));
    return SessionPlace{.directory = std::move(directory), .lock = std::move(lock)};
  }
  if (errno != EEXIST) return ErrnoStatus(errno, absl::StrCat("mkdir ", directory));
  if (IsAlive(directory)) {
    return absl::AlreadyExistsError(absl::StrCat(
        "session ", name, IsReady(directory) ? " is running" : " is just starting or ending", "; choose another name"));
  }
  return absl::AlreadyExistsError(absl::StrCat("session ", name,
                                               " has ended but keeps its directory; remove it with `still rm ", name,
                                               "`, or choose another name"));
}

absl::StatusOr<std::vector<SessionEntry>> SessionRegistry::List() const {
  STILL_ASSIGN_OR_RETURN(Listing all, ListAll());
  return std::move(all.entries);
}

absl::StatusOr<SessionRegistry::Listing> SessionRegistry::ListAll() const {
  Listing all;
  std::string directory = absl::StrCat(root_, "/sessions");
  if (!PathExists(directory)) return all;
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> names, ListDirectory(directory));
  for (const std::string& name : names) {
    if (!ValidateSessionName(name).ok()) continue;  // Not ours, or being staged.
    absl::StatusOr<SessionEntry> entry = Find(name);
    if (entry.ok()) {
      all.entries.push_back(*std::move(entry));
    } else if (!absl::IsNotFound(entry.status())) {  // One that is just being made has no session.json yet.
      all.unreadable[name] = entry.status();
    }
  }
  return all;
}

absl::StatusOr<SessionEntry> SessionRegistry::Find(const std::string& name) const {
  STILL_RETURN_IF_ERROR(ValidateSessionName(name));
  std::string directory = Directory(name);
  absl::StatusOr<sessionpb::SessionConfig> config = ReadSessionConfig(directory);
  if (absl::IsNotFound(config.status())) {
    std::vector<std::string> names = Names();
    names.erase(std::remove(names.begin(), names.end(), name), names.end());  // One that is just being made.
    return NoSuchName("session", name, names);
  }
  if (!config.ok()) return config.status();
  SessionEntry entry{.name = name, .directory = directory, .config = *std::move(config)};
  entry.ready = IsReady(directory);
  entry.alive = entry.ready || IsSessionLocked(directory);
  if (!entry.ready) entry.end = EndOf(directory, entry.alive);
  return entry;
}

absl::StatusOr<std::string> SessionRegistry::Resolve(const std::string& name) const {
  return ResolveName("session", name, Names());
}

std::vector<std::string> SessionRegistry::Names() const {
  absl::StatusOr<std::vector<std::string>> listed = ListDirectory(absl::StrCat(root_, "/sessions"));
  if (!listed.ok()) return {};  // None was ever made.
  // What is being put in a session's place (snapshot/rollback.h) is none yet.
  std::erase_if(*listed, [](const std::string& name) { return !ValidateSessionName(name).ok(); });
  return *std::move(listed);
}

absl::Status SessionRegistry::Remove(const std::string& name) const {
  STILL_RETURN_IF_ERROR(ValidateSessionName(name));
  std::string directory = Directory(name);
  if (!PathExists(directory)) return Find(name).status();
  // One that has recorded its end is gone in a moment.
  if (!IsReady(directory) && PathExists(EndPath(directory))) (void)AwaitGone(name, kEndingTimeout);
  if (IsAlive(directory)) {
    return absl::FailedPreconditionError(
        absl::StrCat("session ", name, IsReady(directory) ? " is running" : " is just starting or ending",
                     "; stop it first: still stop ", name));
  }
  // Held while it goes, so that nobody starts it again in between.
  absl::StatusOr<OwnedFd> lock = LockSession(directory);
  if (!lock.ok() && !absl::IsNotFound(lock.status())) return lock.status();
  return RemoveTree(directory);
}

absl::Status SessionRegistry::AwaitGone(const std::string& name, absl::Duration timeout) const {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  while (IsAlive(Directory(name))) {
    if (Clock::Real().Monotonic() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("session ", name, " did not end within ", absl::FormatDuration(timeout)));
    }
    Clock::Real().Sleep(kLookForEnd);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<sessionpb::SessionControl::Stub>> SessionRegistry::Connect(
    const std::string& name) const {
  STILL_ASSIGN_OR_RETURN(SessionEntry entry, Find(name));
  if (!entry.ready) {
    const bool starting = entry.alive && !entry.end.has_value();
    return absl::UnavailableError(absl::StrCat("session ", name, starting ? " is just starting" : " is not running",
                                               entry.end.has_value() ? ": " + DescribeEnd(*entry.end) : ""));
  }
  return sessionpb::SessionControl::NewStub(grpc::CreateChannel(
      absl::StrCat("unix:", JoinPath(Directory(name), "control.sock")), grpc::InsecureChannelCredentials()));
}

absl::Status SessionRegistry::End(const std::string& name, absl::Duration timeout) const {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<sessionpb::SessionControl::Stub> stub, Connect(name));
  // Whoever listens on the socket is still-session itself. Held as a descriptor: its number may be used again.
  STILL_ASSIGN_OR_RETURN(OwnedFd connection, ConnectUnix(JoinPath(Directory(name), "control.sock")));
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return ErrnoStatus(errno, "SO_PEERCRED");
  OwnedFd process(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
  if (!process.valid()) return ErrnoStatus(errno, absl::StrCat("pidfd of session ", name));
  connection.Reset();

  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  sessionpb::SessionEnd end;
  // What counts is that the process ends; it may do so before it has answered.
  grpc::Status asked = stub->Stop(&context, {}, &end);
  absl::Status gone = WaitReadable(process.get(), deadline - Clock::Real().Monotonic(), "the session's end");
  if (gone.ok()) return absl::OkStatus();
  return asked.ok() ? gone : FromGrpc(asked);
}

absl::StatusOr<sessionpb::LaunchReport> SessionRegistry::Launch(const sessionpb::SessionConfig& given,
                                                                LaunchOptions options) const {
  std::string directory = Directory(given.name());
  OwnedFd own_lock;
  if (options.lock_fd < 0) {
    STILL_ASSIGN_OR_RETURN(own_lock, LockSession(directory));
    options.lock_fd = own_lock.get();
  }
  // Of an earlier life.
  STILL_RETURN_IF_ERROR(RemoveFile(EndPath(directory)));
  sessionpb::SessionConfig config = given;
  if (config.machine_id().empty()) {
    STILL_ASSIGN_OR_RETURN(HostIdentity host, ReadHostIdentity(root_));
    config.set_machine_id(StartedMachineId(host, config));
  }
  STILL_RETURN_IF_ERROR(WriteJson(JoinPath(directory, "session.json"), config));
  STILL_ASSIGN_OR_RETURN(std::string program, FindSibling("still-session", "STILL_SESSION_PROGRAM"));
  std::string log_path = JoinPath(directory, "session.log");
  STILL_ASSIGN_OR_RETURN(OwnedFd log, OpenFile(log_path, O_WRONLY | O_CREAT | O_APPEND));
  STILL_ASSIGN_OR_RETURN(SocketPair report, MakeReportSocket());

  ProcessOptions process;
  if (options.own_unit) process.argv = ScopeCommand(config);
  process.argv.insert(process.argv.end(), {program, "--directory", directory});
  auto pass = [&process](const char* option, int fd) {
    if (fd < 0) return;
    process.argv.insert(process.argv.end(), {option, absl::StrCat(fd)});
    process.inherited_fds.push_back(fd);
  };
  pass("--report-fd", report.second.get());
  pass("--lock-fd", options.lock_fd);
  pass("--ram-fd", options.ram_fd);
  pass("--disk-secret-fd", options.disk_secret_fd);
  process.working_directory = "/";
  process.stderr_fd = log.get();
  process.new_session = true;
  STILL_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(process));
  report.second.Reset();

  absl::StatusOr<sessionpb::LaunchReport> ready = AwaitReport(report.first.get(), options.timeout, options.on_step);
  if (!ready.ok()) {
    // It ends by itself after its report, and records its end; what hangs is killed with `child`.
    report.first.Reset();
    (void)child.Wait(kEndingTimeout);
    if (!absl::IsInternal(ready.status())) return ready.status();
    return absl::InternalError(absl::StrCat(ready.status().message(), "; look at ", log_path));
  }
  child.Release();
  return ready;
}

absl::StatusOr<sessionpb::SessionConfig> ReadSessionConfig(const std::string& directory) {
  return ReadJson<sessionpb::SessionConfig>(JoinPath(directory, "session.json"));
}

std::string HostBootId() {
  absl::StatusOr<std::string> id = ReadFile("/proc/sys/kernel/random/boot_id", kMaxConfigBytes);
  return id.ok() ? std::string(absl::StripTrailingAsciiWhitespace(*id)) : "";
}

absl::StatusOr<sessionpb::SessionStart> ReadSessionStart(const std::string& directory) {
  return ReadJson<sessionpb::SessionStart>(JoinPath(directory, kStartFile));
}

absl::Status WriteSessionStart(const std::string& directory, const sessionpb::SessionStart& start) {
  return WriteJson(JoinPath(directory, kStartFile), start);
}

absl::Status WriteSessionEnd(const std::string& directory, const sessionpb::SessionEnd& end) {
  return WriteJson(EndPath(directory), end);
}

}  // namespace still::session
