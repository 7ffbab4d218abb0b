#include "store/book/book.h"

#include <filesystem>
#include <utility>

#include "base/file.h"
#include "store/book/schema.h"
#include "store/sqlite/migrate.h"
#include "store/sqlite/sqlite.h"

namespace still::store {

Book::Book(std::string path, std::unique_ptr<Database> writer, std::unique_ptr<Database> reader)
    : path_(std::move(path)), writer_(std::move(writer)), reader_(std::move(reader)) {}

Book::~Book() = default;

absl::StatusOr<std::unique_ptr<Book>> Book::Open(const BookOptions& options) {
  STILL_RETURN_IF_ERROR(Annotate(MakeDirectories(std::filesystem::path(options.path).parent_path().string()), "book"));
  STILL_ASSIGN_OR_RETURN(Database writer, Database::Open(options.path, kBookKind, options.busy_timeout));
  STILL_RETURN_IF_ERROR(Migrate(writer));
  STILL_ASSIGN_OR_RETURN(Database reader, Database::Open(options.path, kBookKind, options.busy_timeout));
  return std::unique_ptr<Book>(new Book(options.path, std::make_unique<Database>(std::move(writer)),
                                        std::make_unique<Database>(std::move(reader))));
}

absl::Status Book::Change(Statement& change) {
  STILL_RETURN_IF_ERROR(change.Run());
  return writer_->CheckNotReplaced();
}

absl::StatusOr<Statement> Book::Select(const char* sql) {
  STILL_RETURN_IF_ERROR(reader_->CheckNotReplaced());
  return reader_->Prepare(sql);
}

absl::Status Book::CheckNotReplaced() {
  absl::MutexLock lock(&reading_);
  return reader_->CheckNotReplaced();
}

absl::Status Book::Remember(absl::string_view key, absl::string_view value) {
  absl::MutexLock lock(&writing_);
  return RememberLocked(key, value);
}

absl::Status Book::RememberAll(const std::map<std::string, std::string>& values) {
  if (values.empty()) return absl::OkStatus();
  absl::MutexLock lock(&writing_);
  STILL_RETURN_IF_ERROR(writer_->Execute("BEGIN IMMEDIATE"));
  absl::Status written;
  for (const auto& [key, value] : values) {
    written = RememberLocked(key, value);
    if (!written.ok()) break;
  }
  if (written.ok()) written = writer_->Execute("COMMIT");
  if (!written.ok()) (void)writer_->Execute("ROLLBACK");  // Fails only when it is undone already.
  return written;
}

absl::Status Book::RememberLocked(absl::string_view key, absl::string_view value) {
  if (value.empty()) {
    STILL_ASSIGN_OR_RETURN(Statement forget, writer_->Prepare("DELETE FROM remembered WHERE key = ?"));
    STILL_RETURN_IF_ERROR(forget.Bind(key));
    return Change(forget);
  }
  STILL_ASSIGN_OR_RETURN(Statement put, writer_->Prepare("INSERT INTO remembered (key, value) VALUES (?, ?) "
                                                         "ON CONFLICT (key) DO UPDATE SET value = excluded.value"));
  STILL_RETURN_IF_ERROR(put.Bind(key, value));
  return Change(put);
}

absl::StatusOr<std::map<std::string, std::string>> Book::Remembered() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, Select("SELECT key, value FROM remembered"));
  std::map<std::string, std::string> all;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return all;
    all[select.Bytes(0)] = select.Bytes(1);
  }
}

absl::Status Book::Check() {
  absl::MutexLock lock(&reading_);
  return reader_->CheckIntegrity();
}

std::string BookPath(absl::string_view state) { return JoinPath(state, "book.db"); }

}  // namespace still::store
