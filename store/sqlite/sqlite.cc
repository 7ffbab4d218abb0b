#include "store/sqlite/sqlite.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/file.h"

namespace still::store {
namespace {

// Nothing of ours is longer; a damaged file must not make SQLite allocate more.
constexpr int kMaxValueBytes = 64 << 20;

absl::Status SqliteStatus(int result, sqlite3* db, const DatabaseFile& file) {
  if (result == SQLITE_OK || result == SQLITE_ROW || result == SQLITE_DONE) return absl::OkStatus();
  std::string message =
      absl::StrCat(file.kind->noun, " ", file.path, ": ", db != nullptr ? sqlite3_errmsg(db) : "out of memory");
  const std::string damaged = absl::StrCat(message, "; ", file.kind->mend);
  int extended = db != nullptr ? sqlite3_extended_errcode(db) : result;
  if (extended == SQLITE_CONSTRAINT_FOREIGNKEY) return absl::FailedPreconditionError(message);
  switch (result & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
      return absl::UnavailableError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
      return absl::DataLossError(damaged);
    case SQLITE_IOERR:
      if (extended == SQLITE_IOERR_SHORT_READ) return absl::DataLossError(damaged);
      [[fallthrough]];
    case SQLITE_CANTOPEN:
      if (int error_number = db != nullptr ? sqlite3_system_errno(db) : 0; error_number != 0) {
        return ErrnoStatus(error_number, message);
      }
      return absl::DataLossError(message);
    case SQLITE_FULL:
    case SQLITE_NOMEM:
      return absl::ResourceExhaustedError(message);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return absl::PermissionDeniedError(message);
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<std::string> WithRealDirectory(const std::string& path, const DatabaseKind& kind) {
  const std::filesystem::path given(path);
  std::error_code error;
  const std::filesystem::path directory =
      std::filesystem::canonical(given.has_parent_path() ? given.parent_path() : ".", error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat(kind.noun, " ", path));
  return (directory / given.filename()).string();
}

}  // namespace

Statement::~Statement() {
  if (statement_ == nullptr) return;
  // The result repeats the last step's, which was reported then.
  (void)sqlite3_reset(statement_);
  (void)sqlite3_clear_bindings(statement_);
}

absl::StatusOr<bool> Statement::Step() {
  int result = sqlite3_step(statement_);
  if (result == SQLITE_ROW) return true;
  if (result == SQLITE_DONE) return false;
  return SqliteStatus(result, sqlite3_db_handle(statement_), *file_);
}

absl::Status Statement::Run() {
  STILL_ASSIGN_OR_RETURN(bool row, Step());
  STILL_CHECK(!row);
  return absl::OkStatus();
}

absl::Status Statement::RunAndReset() {
  STILL_RETURN_IF_ERROR(Run());
  bound_ = 0;
  return SqliteStatus(sqlite3_reset(statement_), sqlite3_db_handle(statement_), *file_);
}

std::string Statement::Bytes(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  int size = sqlite3_column_bytes(statement_, column);
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), static_cast<size_t>(size));
}

std::optional<absl::Time> Statement::TimeAt(int column) const {
  if (IsNull(column)) return std::nullopt;
  return absl::FromUnixNanos(Int(column));
}

absl::Status Statement::BindNext(int64_t value) {
  return SqliteStatus(sqlite3_bind_int64(statement_, ++bound_, value), sqlite3_db_handle(statement_), *file_);
}

absl::Status Statement::BindNext(const std::optional<absl::Time>& time) {
  return time.has_value() ? BindNext(absl::ToUnixNanos(*time)) : BindNext(std::nullopt);
}

absl::Status Statement::BindNext(std::optional<int64_t> value) {
  return value.has_value() ? BindNext(*value) : BindNext(std::nullopt);
}

absl::Status Statement::BindNext(std::nullopt_t) {
  return SqliteStatus(sqlite3_bind_null(statement_, ++bound_), sqlite3_db_handle(statement_), *file_);
}

absl::Status Statement::BindNext(absl::string_view text) {
  // An empty view may have no address, and SQLite takes that for NULL.
  const char* data = text.empty() ? "" : text.data();
  return SqliteStatus(sqlite3_bind_text64(statement_, ++bound_, data, text.size(), SQLITE_STATIC, SQLITE_UTF8),
                      sqlite3_db_handle(statement_), *file_);
}

absl::Status Statement::BindNext(const Blob& blob) {
  const char* data = blob.bytes.empty() ? "" : blob.bytes.data();
  return SqliteStatus(sqlite3_bind_blob64(statement_, ++bound_, data, blob.bytes.size(), SQLITE_STATIC),
                      sqlite3_db_handle(statement_), *file_);
}

absl::StatusOr<Database> Database::Open(const std::string& path, const DatabaseKind& kind,
                                        absl::Duration busy_timeout) {
  // SQLITE_OPEN_NOFOLLOW refuses a link anywhere in the path. Directories may be links: the administrator's, to another
  // disk. A link in the file's own place would be somebody else's.
  STILL_ASSIGN_OR_RETURN(const std::string real, WithRealDirectory(path, kind));
  // Made by us first, because SQLite would make it readable for all. A file that is there is not opened: closing it
  // again would drop the locks of every other connection of this process to it (fcntl(2);
  // sqlite.org/howtocorrupt.html, 2.2), and another process would then take its log away from under it.
  absl::Status made = OpenFile(real, O_RDWR | O_CREAT | O_EXCL, 0600).status();
  if (!made.ok() && !absl::IsAlreadyExists(made)) return Annotate(made, kind.noun);
  sqlite3* handle = nullptr;
  int result = sqlite3_open_v2(
      real.c_str(), &handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
      nullptr);
  Database db(handle, std::make_unique<const DatabaseFile>(DatabaseFile{.kind = &kind, .path = real}));
  STILL_RETURN_IF_ERROR(SqliteStatus(result, handle, *db.file_));
  STILL_RETURN_IF_ERROR(db.Configure(busy_timeout));
  STILL_ASSIGN_OR_RETURN(db.identity_, db.Identify());
  return db;
}

absl::StatusOr<Database::Identity> Database::Identify() const {
  struct stat status {};
  if (::stat(path().c_str(), &status) != 0) return ErrnoStatus(errno, absl::StrCat(kind().noun, " ", path()));
  return Identity{.device = status.st_dev, .inode = status.st_ino};
}

absl::Status Database::CheckNotReplaced() const {
  absl::StatusOr<Identity> now = Identify();
  if (now.ok() && *now == identity_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(kind().noun, " ", path(), ": the file was replaced while it was open; try again"));
}

absl::Status Database::CheckIntegrity() {
  STILL_ASSIGN_OR_RETURN(Statement check, Prepare("PRAGMA integrity_check(1)"));
  STILL_ASSIGN_OR_RETURN(bool row, check.Step());
  std::string verdict = row ? check.Bytes(0) : "no answer";
  if (verdict == "ok") return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(kind().noun, " ", path(), ": ", verdict, "; ", kind().mend));
}

absl::Status Database::Configure(absl::Duration busy_timeout) {
  int64_t busy_ms = std::min<int64_t>(absl::ToInt64Milliseconds(busy_timeout), std::numeric_limits<int>::max());
  sqlite3_busy_timeout(db_, static_cast<int>(busy_ms));
  sqlite3_limit(db_, SQLITE_LIMIT_LENGTH, kMaxValueBytes);
  // The file may have been tampered with: no SQL of its schema is trusted, and it cannot be used to alter itself.
  sqlite3_db_config(db_, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(db_, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  return Execute(
      "PRAGMA journal_mode = WAL;"
      "PRAGMA synchronous = FULL;"
      "PRAGMA foreign_keys = ON;"
      "PRAGMA cell_size_check = ON;"
      "PRAGMA temp_store = MEMORY;");
}

Database::~Database() {
  for (auto& [sql, statement] : cache_) sqlite3_finalize(statement);
  // Fails only for statements that are still open: our bug.
  if (db_ != nullptr) STILL_CHECK(sqlite3_close(db_) == SQLITE_OK);
}

absl::StatusOr<Statement> Database::Prepare(const char* sql) {
  sqlite3_stmt*& statement = cache_[sql];
  if (statement == nullptr) {
    int result = sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (result != SQLITE_OK) {
      cache_.erase(sql);
      return SqliteStatus(result, db_, *file_);
    }
  }
  STILL_CHECK(!sqlite3_stmt_busy(statement));
  return Statement(statement, file_.get());
}

absl::Status Database::Execute(const char* sql) {
  return SqliteStatus(sqlite3_exec(db_, sql, nullptr, nullptr, nullptr), db_, *file_);
}

absl::StatusOr<int64_t> Database::QueryInt(const char* sql) {
  STILL_ASSIGN_OR_RETURN(Statement select, Prepare(sql));
  STILL_ASSIGN_OR_RETURN(bool row, select.Step());
  return row ? select.Int(0) : 0;
}

}  // namespace still::store
