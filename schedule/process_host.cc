#include "schedule/process_host.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/secret.h"
#include "proto/grpc_status.h"
#include "schedule/machines.h"
#include "session/control/describe_all.h"
#include "session/session_config.h"
#include "snapshot/machine.h"

namespace still::schedule {
namespace {

// A session answers at once or hangs; recovery must get on.
constexpr absl::Duration kAskTimeout = absl::Seconds(5);
constexpr std::chrono::seconds kHealTimeout(30);
constexpr size_t kLongestPid = 32;

// Whether somebody holds the lock of this file.
bool Locked(const std::string& path) {
  absl::StatusOr<OwnedFd> file = OpenFile(path, O_RDWR);
  return file.ok() && ::flock(file->get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

// One that did not end on purpose ought to run: its runs fail, and somebody is told.
SessionState StateOf(const session::SessionEntry& entry) {
  SessionState state{.name = entry.name, .running = true};
  if (entry.alive || !entry.end.has_value()) return state;
  state.running = !session::EndedOnPurpose(*entry.end);
  if (entry.end->kind() != sessionpb::SessionEnd::STOPPED) state.ended = session::DescribeEnd(*entry.end);
  return state;
}

absl::StatusOr<sessionpb::DescribeResponse> Ask(sessionpb::SessionControl::Stub& control) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(Clock::Real().Now() + kAskTimeout));
  sessionpb::DescribeResponse state;
  STILL_RETURN_IF_ERROR(FromGrpc(control.Describe(&context, {}, &state)));
  return state;
}

}  // namespace

ProcessHost::~ProcessHost() {
  for (auto& [id, child] : children_) child.Release();
}

std::string ProcessHost::Directory() const { return JoinPath(options_.state, "runs"); }
std::string ProcessHost::LockPath(int64_t run) const { return JoinPath(Directory(), absl::StrCat(run)); }

absl::StatusOr<std::vector<SessionState>> ProcessHost::Sessions() {
  STILL_ASSIGN_OR_RETURN(session::SessionRegistry::Listing all, registry_.ListAll());
  const std::map<std::string, SessionWatch::Told> told = watch_.LastTold();
  std::vector<SessionState> states;
  for (const session::SessionEntry& entry : all.entries) {
    if (absl::StartsWith(entry.name, session::kDrillPrefix)) continue;
    states.push_back(StateOf(entry));
    auto at = told.find(entry.name);
    if (!entry.ready || at == told.end()) continue;
    states.back().held = at->second.held;
    states.back().resets = at->second.resets;
  }
  for (const auto& [name, why] : all.unreadable) {
    if (absl::StartsWith(name, session::kDrillPrefix)) continue;
    states.push_back({.name = name, .running = true, .unreadable = std::string(why.message())});
  }
  std::sort(states.begin(), states.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return states;
}

absl::StatusOr<std::map<std::string, Newest>> ProcessHost::NewestGood(const std::set<std::string>& sessions) {
  if (repository_ == nullptr) return absl::UnavailableError("the repository is not open");
  std::map<std::string, snapshot::MachineIdentity> machines;
  for (const std::string& session : sessions) {
    absl::StatusOr<snapshot::MachineIdentity> machine = snapshot::FindMachine(registry_, session);
    // Of one that cannot be read nothing is known but its name, and that is told.
    machines[session] =
        machine.ok() ? *std::move(machine)
                     : snapshot::MachineIdentity{.host = here_, .machine_id = "", .session_id = "", .name = session};
  }
  STILL_ASSIGN_OR_RETURN(auto snapshots, repository_->Summaries());
  return NewestByLevel(*snapshots, machines);
}

absl::Status ProcessHost::Start(const Schedule&, const store::RunRow& run) {
  STILL_RETURN_IF_ERROR(MakeDirectories(Directory()));
  STILL_ASSIGN_OR_RETURN(OwnedFd lock, OpenFile(LockPath(run.id), O_RDWR | O_CREAT | O_TRUNC));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return ErrnoStatus(errno, absl::StrCat("lock ", LockPath(run.id)));
  ProcessOptions options{.argv = options_.command, .working_directory = "/", .inherited_fds = {lock.get()}};
  options.argv.push_back(absl::StrCat(run.id));
  OwnedFd secret;
  if (!options_.passphrase.empty()) {
    STILL_ASSIGN_OR_RETURN(secret, MakeSecretFd(options_.passphrase));
    options.argv.insert(options.argv.end(), {"--secret-fd", absl::StrCat(secret.get())});
    options.inherited_fds.push_back(secret.get());
  }
  options.new_session = true;
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(options);
  if (!child.ok()) return Annotate(child.status(), "starting the run");
  const std::string pid = absl::StrCat(child->pid());
  children_.emplace(run.id, *std::move(child));
  // For a later process that must end it; the lock says whether it is still true.
  if (absl::Status noted = WriteAll(lock.get(), pid.data(), pid.size(), LockPath(run.id)); !noted.ok()) {
    // It runs: to call it failed would begin a second one beside it.
    LogWarning("a later process could not end this run", {{"run", run.id}, {"error", noted.ToString()}});
  }
  return absl::OkStatus();
}

bool ProcessHost::Alive(int64_t run) {
  auto child = children_.find(run);
  if (child != children_.end()) {
    if (!child->second.Wait(absl::ZeroDuration()).ok()) return true;
    children_.erase(child);
  }
  if (Locked(LockPath(run))) return true;
  // Only a mark; the next sweep takes it too.
  (void)RemoveFile(LockPath(run));
  return false;
}

void ProcessHost::Stop(int64_t run) {
  auto child = children_.find(run);
  if (child != children_.end()) {
    if (absl::Status status = child->second.Kill(SIGKILL); !status.ok()) {
      LogWarning("a run does not end", {{"run", run}, {"error", status.ToString()}});
    }
    return;
  }
  absl::StatusOr<std::string> text = ReadFile(LockPath(run), kLongestPid);
  int pid = 0;
  // While the lock is held its owner lives, so that the number is still its own.
  if (text.ok() && absl::SimpleAtoi(*text, &pid) && pid > 1 && Locked(LockPath(run))) ::kill(pid, SIGKILL);
}

absl::StatusOr<int> ProcessHost::HealSessions() {
  STILL_ASSIGN_OR_RETURN(std::vector<session::SessionEntry> entries, registry_.List());
  std::vector<std::string> names;
  for (const session::SessionEntry& entry : entries) {
    if (entry.ready) names.push_back(entry.name);
  }
  // All at once: those that hang must not keep the others waiting one after the other.
  auto states = session::DescribeAll(registry_, names, kAskTimeout);
  int healed = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    absl::StatusOr<bool> status = states[i].ok() ? HealSession(names[i], *states[i]) : states[i].status();
    if (!status.ok()) {
      LogError("session not healed", {{"session", names[i]}, {"error", status.status().ToString()}});
    } else if (*status) {
      ++healed;
    }
  }
  return healed;
}

// First what is paused: an agent whose machine stands still answers nobody.
absl::StatusOr<bool> ProcessHost::HealSession(const std::string& name, sessionpb::DescribeResponse state) {
  bool paused = state.state() == sessionpb::DescribeResponse::PAUSED;
  // With a capture under way, its own guards see to everything; what holds a guest for its disks lets it go on again.
  if (!state.active_capture().empty() || (paused && !state.disk_trouble().empty())) return false;
  const bool frozen = state.agent().connected() && state.agent().quiesce_state() == guestpb::FROZEN;
  if (!paused && !frozen) return false;
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<sessionpb::SessionControl::Stub> control, registry_.Connect(name));
  if (paused) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kHealTimeout);
    sessionpb::ResumeResponse response;
    STILL_RETURN_IF_ERROR(Annotate(FromGrpc(control->Resume(&context, {}, &response)), "it is paused"));
    paused = response.was_paused();
    LogWarning("session was found paused and goes on", {{"session", name}});
    STILL_ASSIGN_OR_RETURN(state, Ask(*control));
  }
  if (!state.agent().connected() || state.agent().quiesce_state() != guestpb::FROZEN) return paused;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kHealTimeout);
  guestpb::ThawResponse response;
  STILL_RETURN_IF_ERROR(Annotate(FromGrpc(control->Thaw(&context, {}, &response)), "it is frozen"));
  LogWarning("session was found frozen and is thawed", {{"session", name}});
  return true;
}

absl::Status ProcessHost::SweepLocks() {
  if (!PathExists(Directory())) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> names, ListDirectory(Directory()));
  for (const std::string& name : names) {
    const std::string path = JoinPath(Directory(), name);
    if (!Locked(path)) STILL_RETURN_IF_ERROR(RemoveFile(path));
  }
  return absl::OkStatus();
}

}  // namespace still::schedule
