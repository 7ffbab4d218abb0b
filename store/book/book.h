// Book: what a host's schedules are, what they did, and what was told: everything of a state directory that is not about
// stored data and can be found nowhere else (docs/format/book.md). It lies in the state directory itself, so that command
// and service find the same one, whoever runs them. A repository's catalog is a cache beside it.
//
//   STILL_ASSIGN_OR_RETURN(std::unique_ptr<Book> book, Book::Open({.path = BookPath(state)}));
//   STILL_ASSIGN_OR_RETURN(int64_t run, book->AddRun({.schedule = "nightly", ...}));
//
// Every change is one statement, durable when it returns. Several processes may use one book. All calls block, for at
// most the busy timeout while another process writes; then UNAVAILABLE. DATA_LOSS: the file is damaged, and the message
// says what to do. FAILED_PRECONDITION: it was written by a newer version, or replaced while it was open.
// RESOURCE_EXHAUSTED: the disk is full. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "store/book/drill_record.h"
#include "store/book/rows.h"

namespace still::store {

class Database;
class Statement;

struct BookOptions {
  std::string path;
  absl::Duration busy_timeout = absl::Seconds(30);
};

class Book {
 public:
  // Makes the file and its directory if there are none, and brings an older one up to date.
  static absl::StatusOr<std::unique_ptr<Book>> Open(const BookOptions& options);
  ~Book();

  // Takes over what versions without a book kept in this repository's catalogs, once for each repository: the first
  // call writes down that it was done. The catalogs are left as they are. `catalogs`: files that exist
  // (KnownCatalogs()). A schedule whose name is taken already is not replaced.
  absl::Status ImportOnce(const std::string& repository_id, const std::vector<std::string>& catalogs);

  absl::Status PutSchedule(const ScheduleRow& schedule);  // Replaces the one of this name.
  absl::Status RemoveSchedule(absl::string_view name);    // NOT_FOUND.
  absl::StatusOr<std::vector<ScheduleRow>> ListSchedules();

  // Runs of schedules. Gives the run's id; `run.id` is ignored.
  absl::StatusOr<int64_t> AddRun(const RunRow& run);
  absl::Status UpdateRun(const RunRow& run);  // NOT_FOUND.
  // Newest first.
  absl::StatusOr<std::vector<RunRow>> ListRuns(const RunQuery& query);
  absl::StatusOr<std::optional<RunRow>> FindRun(int64_t id);
  // Of each schedule and session that have one: runs that stand for no occurrence have dealt with none.
  absl::StatusOr<std::vector<RunCursor>> RunCursors();
  // Forgets those that ended before `before`, but never the newest that stands for an occurrence of a schedule
  // and session: the next is counted from it.
  absl::Status TrimRuns(absl::Time before);

  // Restore drills. Gives the drill's id; `drill.id` is ignored.
  absl::StatusOr<int64_t> AddDrill(const DrillRecord& drill);
  // State, end, times, exit code and message. NOT_FOUND.
  absl::Status UpdateDrill(const DrillRecord& drill);
  // Newest first, at most `limit`.
  absl::StatusOr<std::vector<DrillRecord>> ListDrills(int64_t limit);

  // A few words that must outlive a process: which alerts were told, how far a verification got.
  absl::Status Remember(absl::string_view key, absl::string_view value);  // Empty: forget it.
  // All of them or none, in one transaction.
  absl::Status RememberAll(const std::map<std::string, std::string>& values);
  absl::StatusOr<std::map<std::string, std::string>> Remembered();

  // FAILED_PRECONDITION: another file, or none, is where this one was. Only opening it anew helps.
  absl::Status CheckNotReplaced();
  // OK, or DATA_LOSS with what SQLite finds wrong. Reads the whole file.
  absl::Status Check();

 private:
  Book(std::string path, std::unique_ptr<Database> writer, std::unique_ptr<Database> reader);
  absl::Status RememberLocked(absl::string_view key, absl::string_view value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writing_);
  // Runs a statement of writer_. FAILED_PRECONDITION when the file was replaced: the change went nowhere.
  absl::Status Change(Statement& change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writing_);

  // A statement of reader_. The same error: what it says would be old.
  absl::StatusOr<Statement> Select(const char* sql) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);

  const std::string path_;
  absl::Mutex writing_;
  std::unique_ptr<Database> writer_ ABSL_GUARDED_BY(writing_);
  absl::Mutex reading_;
  std::unique_ptr<Database> reader_ ABSL_GUARDED_BY(reading_);
};

// Where the book of a state directory lies.
std::string BookPath(absl::string_view state);

}  // namespace still::store
