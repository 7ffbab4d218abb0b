#include "snapshot/throw_away_session.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "base/log.h"
#include "base/pipe.h"
#include "base/random.h"
#include "session/control/session_process.h"

namespace still::snapshot {
namespace {

constexpr absl::Duration kJanitorEnd = absl::Seconds(10);

std::string LockDirectory(const session::SessionRegistry& sessions) { return JoinPath(sessions.root(), "throw-away"); }

absl::Status EndAndRemove(const session::SessionRegistry& sessions, const std::string& name) {
  const std::string directory = sessions.Directory(name);
  // Names of throw-away sessions are never used twice, so there is no other process.
  absl::Status ended = session::EndSessionProcess(directory);
  if (!ended.ok() && !absl::IsNotFound(ended)) return Annotate(ended, name);
  return RemoveTree(directory);
}

}  // namespace

ThrowAwaySession::ThrowAwaySession(session::SessionRegistry sessions, std::string name, OwnedFd lock, OwnedFd life_line,
                                   ChildProcess janitor)
    : sessions_(std::move(sessions)),
      name_(std::move(name)),
      lock_(std::move(lock)),
      life_line_(std::move(life_line)),
      janitor_(std::move(janitor)) {}

ThrowAwaySession::~ThrowAwaySession() {
  // Moved from: there is no life line.
  if (!life_line_.valid()) return;
  if (absl::Status status = End(); !status.ok()) {
    LogWarning("throw-away session left behind", {{"session", name_}, {"error", status.ToString()}});
  }
}

absl::StatusOr<ThrowAwaySession> ThrowAwaySession::Reserve(const session::SessionRegistry& sessions,
                                                           const std::string& prefix) {
  const std::string name = absl::StrCat(prefix, "-", RandomUuid().substr(0, 8));
  STILL_RETURN_IF_ERROR(MakeDirectories(LockDirectory(sessions)));
  const std::string lock_path = JoinPath(LockDirectory(sessions), name);
  STILL_ASSIGN_OR_RETURN(OwnedFd lock, OpenFile(lock_path, O_RDWR | O_CREAT | O_EXCL));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return ErrnoStatus(errno, absl::StrCat("lock ", lock_path));

  STILL_ASSIGN_OR_RETURN(Pipe life_line, MakePipe());
  STILL_ASSIGN_OR_RETURN(std::string program, FindSibling("still", "STILL_PROGRAM"));
  ProcessOptions options;
  options.argv = {
      program, "__janitor", "--state", sessions.root(), "--life-line-fd", absl::StrCat(life_line.read_end.get()), name};
  options.inherited_fds = {life_line.read_end.get()};
  options.working_directory = "/";
  // What ends us from a terminal must not end it.
  options.new_session = true;
  STILL_ASSIGN_OR_RETURN(ChildProcess janitor, ChildProcess::Start(options));
  return ThrowAwaySession(sessions, name, std::move(lock), std::move(life_line.write_end), std::move(janitor));
}

absl::Status ThrowAwaySession::End() {
  if (ended_) return absl::OkStatus();
  STILL_RETURN_IF_ERROR(EndAndRemove(sessions_, name_));
  life_line_.Reset();
  // It finds nothing to do.
  STILL_RETURN_IF_ERROR(janitor_.Wait(kJanitorEnd).status());
  STILL_RETURN_IF_ERROR(RemoveFile(JoinPath(LockDirectory(sessions_), name_)));
  lock_.Reset();
  ended_ = true;
  return absl::OkStatus();
}

absl::Status SweepThrowAwaySessions(const session::SessionRegistry& sessions,
                                    const std::function<absl::Status(const std::string& name)>& closed) {
  const std::string directory = LockDirectory(sessions);
  if (!PathExists(directory)) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> names, ListDirectory(directory));
  absl::Status result;
  for (const std::string& name : names) {
    const std::string path = JoinPath(directory, name);
    absl::StatusOr<OwnedFd> lock = OpenFile(path, O_RDWR);
    // Gone meanwhile, or its maker lives.
    if (!lock.ok() || ::flock(lock->get(), LOCK_EX | LOCK_NB) != 0) continue;
    absl::Status swept = EndAndRemove(sessions, name);
    if (swept.ok()) swept = closed(name);
    if (swept.ok()) swept = RemoveFile(path);
    if (swept.ok()) LogInfo("throw-away session swept", {{"session", name}});
    result = FirstError(result, swept);
  }
  return result;
}

absl::Status RunJanitor(const session::SessionRegistry& sessions, const std::string& name, OwnedFd life_line) {
  char byte;
  // Nothing is ever written to it.
  while (::read(life_line.get(), &byte, 1) < 0 && errno == EINTR) {
  }
  return EndAndRemove(sessions, name);
}

}  // namespace still::snapshot
