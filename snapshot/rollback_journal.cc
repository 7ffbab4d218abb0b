#include "snapshot/rollback_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "snapshot/disk_swap.h"

namespace still::snapshot {
namespace {

constexpr size_t kMaxJournal = 1 << 20;
constexpr char kStarted[] = "started";
constexpr char kSafety[] = "-safety";

struct JournalEntry {
  std::string tag;
  std::vector<std::string> disks;
  bool started = false;
};

std::string Folder(const session::SessionRegistry& sessions) { return JoinPath(sessions.root(), "rollbacks"); }

std::string Beside(const session::SessionRegistry& sessions, const std::string& session, absl::string_view kind,
                   const std::string& tag) {
  return absl::StrCat(sessions.root(), "/sessions/.", session, ".", kind, "-", tag);
}

// "TAG\tDISK\tDISK...\n", the paths C-escaped, and then perhaps "started\n". nullopt when nothing was made yet: a line
// that is cut off was never acknowledged.
std::optional<JournalEntry> ParseJournal(const std::string& text) {
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.size() < 2) return std::nullopt;
  std::vector<std::string> fields = absl::StrSplit(lines[0], '\t');
  JournalEntry entry{.tag = fields[0], .started = lines.size() > 2 && lines[1] == kStarted};
  for (size_t i = 1; i < fields.size(); ++i) {
    std::string path;
    if (absl::CUnescape(fields[i], &path)) entry.disks.push_back(std::move(path));
  }
  return entry;
}

// The lock on the journal of this session, or nullopt when somebody has it.
absl::StatusOr<std::optional<OwnedFd>> LockJournal(const std::string& path, int flags) {
  for (;;) {
    STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(path, O_RDWR | O_APPEND | flags));
    if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return std::nullopt;
      return ErrnoStatus(errno, absl::StrCat("lock ", path));
    }
    struct stat info {};
    if (::fstat(file.get(), &info) != 0) return ErrnoStatus(errno, path);
    if (info.st_nlink > 0) return file;  // Else its owner has removed it in between.
  }
}

absl::Status SettleDisk(const std::string& path, const std::string& tag, bool started) {
  const std::string before = DiskSwap::BeforeName(path, tag);
  if (PathExists(before)) {
    STILL_RETURN_IF_ERROR(started ? RemoveFile(before) : Rename(before, path));
    STILL_RETURN_IF_ERROR(SyncDirectory(std::filesystem::path(path).parent_path().string()));
  }
  return RemoveFile(DiskSwap::StagedName(path, tag));
}

absl::Status SettleDirectory(const session::SessionRegistry& sessions, const std::string& session,
                             const JournalEntry& entry) {
  const std::string before = Beside(sessions, session, "before-rollback", entry.tag);
  if (PathExists(before)) {
    if (!entry.started) {
      STILL_RETURN_IF_ERROR(RemoveTree(sessions.Directory(session)));
      STILL_RETURN_IF_ERROR(Rename(before, sessions.Directory(session)));
    }
    STILL_RETURN_IF_ERROR(RemoveTree(before));
  }
  return RemoveTree(Beside(sessions, session, "rollback", entry.tag));
}

bool AnyReplaced(const session::SessionRegistry& sessions, const std::string& session, const JournalEntry& entry) {
  return PathExists(Beside(sessions, session, "before-rollback", entry.tag)) ||
         std::any_of(entry.disks.begin(), entry.disks.end(), [&](const std::string& path) {
           return PathExists(DiskSwap::BeforeName(path, entry.tag)) ||
                  PathExists(DiskSwap::BeforeName(path, entry.tag + kSafety));
         });
}

absl::Status Settle(const session::SessionRegistry& sessions, const std::string& session, int journal) {
  struct stat info {};
  if (::fstat(journal, &info) != 0) return ErrnoStatus(errno, "rollback journal");
  std::string text(static_cast<size_t>(std::min<off_t>(info.st_size, kMaxJournal)), '\0');
  STILL_RETURN_IF_ERROR(PReadExactly(journal, text.data(), text.size(), 0, "rollback journal"));
  std::optional<JournalEntry> entry = ParseJournal(text);
  if (!entry.has_value()) return absl::OkStatus();
  if (!entry->started && AnyReplaced(sessions, session, *entry)) {
    // Who died may have died while it waited for the session to come up.
    absl::StatusOr<session::SessionEntry> now = sessions.Find(session);
    entry->started = now.ok() && now->ready;
    if (!entry->started && now.ok() && now->alive) {
      return absl::FailedPreconditionError(
          absl::StrCat("session ", session, " is just starting, after a rollback that was interrupted"));
    }
  }
  absl::Status result;
  for (const std::string& disk : entry->disks) {
    for (const std::string& tag : {entry->tag, entry->tag + kSafety}) {
      result = FirstError(result, SettleDisk(disk, tag, entry->started));
    }
  }
  return FirstError(result, SettleDirectory(sessions, session, *entry));
}

}  // namespace

RollbackJournal::RollbackJournal(session::SessionRegistry sessions, std::string session, OwnedFd file)
    : sessions_(std::move(sessions)),
      session_(std::move(session)),
      tag_(absl::StrFormat("%08x", RandomU64() & 0xffffffff)),
      file_(std::move(file)) {}

absl::StatusOr<RollbackJournal> RollbackJournal::Open(const session::SessionRegistry& sessions,
                                                      const std::string& session) {
  STILL_RETURN_IF_ERROR(MakeDirectories(Folder(sessions)));
  STILL_ASSIGN_OR_RETURN(std::optional<OwnedFd> file, LockJournal(JoinPath(Folder(sessions), session), O_CREAT));
  if (!file.has_value()) {
    return absl::FailedPreconditionError(absl::StrCat("another rollback of session ", session, " is under way"));
  }
  STILL_RETURN_IF_ERROR(Settle(sessions, session, file->get()));
  if (::ftruncate(file->get(), 0) != 0) return ErrnoStatus(errno, "rollback journal");
  return RollbackJournal(sessions, session, *std::move(file));
}

RollbackJournal::~RollbackJournal() {
  if (!file_.valid()) return;
  absl::Status settled = Settle(sessions_, session_, file_.get());
  if (settled.ok()) settled = RemoveFile(JoinPath(Folder(sessions_), session_));
  if (!settled.ok()) LogWarning("a rollback left something", {{"session", session_}, {"error", settled.ToString()}});
}

absl::Status RollbackJournal::Append(const std::string& line) {
  STILL_RETURN_IF_ERROR(WriteAll(file_.get(), line.data(), line.size(), "rollback journal"));
  if (::fsync(file_.get()) != 0) return ErrnoStatus(errno, "rollback journal");
  return absl::OkStatus();
}

absl::Status RollbackJournal::Begin(const std::vector<std::string>& disks) {
  std::string line = tag_;
  for (const std::string& disk : disks) absl::StrAppend(&line, "\t", absl::CEscape(disk));
  STILL_RETURN_IF_ERROR(Append(line + "\n"));
  return SyncDirectory(Folder(sessions_));
}

absl::Status RollbackJournal::Started() { return Append(absl::StrCat(kStarted, "\n")); }

std::string RollbackJournal::safety_tag() const { return tag_ + kSafety; }
std::string RollbackJournal::staging() const { return Beside(sessions_, session_, "rollback", tag_); }
std::string RollbackJournal::before() const { return Beside(sessions_, session_, "before-rollback", tag_); }

void SweepRollbacks(const session::SessionRegistry& sessions) {
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(Folder(sessions));
  if (!names.ok()) return;  // There was never one.
  for (const std::string& name : *names) {
    const std::string path = JoinPath(Folder(sessions), name);
    absl::StatusOr<std::optional<OwnedFd>> file = LockJournal(path, 0);
    if (absl::IsNotFound(file.status()) || (file.ok() && !file->has_value())) continue;  // Gone, or under way.
    absl::Status settled = file.status();
    if (settled.ok()) settled = Settle(sessions, name, (*file)->get());
    if (settled.ok()) settled = RemoveFile(path);
    LogWarning(settled.ok() ? "an interrupted rollback was settled" : "an interrupted rollback was not settled",
               {{"session", name}, {"error", settled.ToString()}});
  }
}

}  // namespace still::snapshot
