// A thin, typed layer over SQLite for the two databases of store/, catalog and book: one connection, statements that
// clean up after themselves, and error codes as Status. Everything that varies is bound, never spliced into SQL.
//
//   STILL_ASSIGN_OR_RETURN(Statement select, db.Prepare("SELECT size FROM pack WHERE name = ?"));
//   STILL_RETURN_IF_ERROR(select.Bind(Blob(name)));
//   STILL_ASSIGN_OR_RETURN(bool found, select.Step());
//
// Not thread-safe: whoever owns a Database serialises its use. Errors: UNAVAILABLE another process kept it locked for
// longer than the busy timeout; DATA_LOSS the file is damaged (the message says what to do); RESOURCE_EXHAUSTED the
// disk is full; ALREADY_EXISTS a unique value is taken; FAILED_PRECONDITION a row that is referred to is missing, or
// the file was replaced while it was open.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/status.h"

namespace still::store {

// What a database of ours is: how messages name it, what mends it, and how its schema came about.
struct DatabaseKind {
  const char* noun;
  const char* mend;        // What to do about a damaged one; ends the sentence "..., ".
  int64_t application_id;  // SQLite's file format, "The Database Header".
  // migrations[n] leads from version n (user_version) to n + 1, the first of them from nothing to 1. They are never
  // edited once released: what a version looked like is frozen, and each has a golden file in tests/golden.
  absl::Span<const char* const> migrations;
};

struct DatabaseFile {
  const DatabaseKind* kind;
  std::string path;
};

// Bytes, as opposed to text.
struct Blob {
  explicit Blob(absl::string_view bytes) : bytes(bytes) {}
  absl::string_view bytes;
};

class Statement {
 public:
  Statement(sqlite3_stmt* statement, const DatabaseFile* file) : statement_(statement), file_(file) {}
  Statement(Statement&& other) noexcept
      : statement_(std::exchange(other.statement_, nullptr)), file_(other.file_), bound_(other.bound_) {}
  Statement& operator=(Statement&&) = delete;
  Statement(const Statement&) = delete;
  // Ready for its next use: what was bound is forgotten, locks are given up.
  ~Statement();

  // Values for the statement's question marks, in order. Text and bytes must live until the statement is done.
  template <typename... Values>
  absl::Status Bind(const Values&... values) {
    absl::Status status;
    ((status.ok() ? void(status = BindNext(values)) : void()), ...);
    return status;
  }
  // True: there is a row to look at. False: done.
  absl::StatusOr<bool> Step();
  // For statements that give no rows.
  absl::Status Run();
  // Runs it and makes it ready for other values.
  absl::Status RunAndReset();

  int64_t Int(int column) const { return sqlite3_column_int64(statement_, column); }
  bool IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
  std::string Bytes(int column) const;  // Of text or blob.
  std::optional<absl::Time> TimeAt(int column) const;

 private:
  absl::Status BindNext(int64_t value);
  absl::Status BindNext(absl::string_view text);
  absl::Status BindNext(const Blob& blob);
  absl::Status BindNext(std::optional<int64_t> value);
  absl::Status BindNext(const std::optional<absl::Time>& time);  // Nanoseconds since the epoch.
  absl::Status BindNext(std::nullopt_t);

  sqlite3_stmt* statement_;
  const DatabaseFile* file_;
  int bound_ = 0;
};

class Database {
 public:
  // Opens or makes the file, with mode 0600, in WAL mode, synced at each commit, foreign keys on. `kind` must live as
  // long as the program. The file itself may be no symbolic link; its directory may be reached by some.
  static absl::StatusOr<Database> Open(const std::string& path, const DatabaseKind& kind, absl::Duration busy_timeout);
  Database(Database&& other) noexcept
      : db_(std::exchange(other.db_, nullptr)),
        file_(std::move(other.file_)),
        identity_(other.identity_),
        cache_(std::move(other.cache_)) {}
  Database& operator=(Database&&) = delete;
  Database(const Database&) = delete;
  ~Database();

  // `sql` must be a constant that lives as long as the program: statements are kept by its address.
  absl::StatusOr<Statement> Prepare(const char* sql);
  // Constant SQL without values, possibly several statements.
  absl::Status Execute(const char* sql);
  absl::StatusOr<int64_t> QueryInt(const char* sql);
  int64_t last_insert_id() const { return sqlite3_last_insert_rowid(db_); }
  int64_t changes() const { return sqlite3_changes64(db_); }
  const std::string& path() const { return file_->path; }
  const DatabaseKind& kind() const { return *file_->kind; }
  // FAILED_PRECONDITION when another file, or none, now has this path: what is read here is old, what is written is lost.
  absl::Status CheckNotReplaced() const;
  // OK, or DATA_LOSS with what SQLite finds wrong. Reads the whole file.
  absl::Status CheckIntegrity();

 private:
  struct Identity {
    uint64_t device = 0;
    uint64_t inode = 0;
    bool operator==(const Identity&) const = default;
  };
  Database(sqlite3* db, std::unique_ptr<const DatabaseFile> file) : db_(db), file_(std::move(file)) {}
  absl::Status Configure(absl::Duration busy_timeout);
  absl::StatusOr<Identity> Identify() const;

  sqlite3* db_;
  std::unique_ptr<const DatabaseFile> file_;  // At a fixed address: statements refer to it.
  Identity identity_;
  absl::flat_hash_map<const char*, sqlite3_stmt*> cache_;
};

}  // namespace still::store
