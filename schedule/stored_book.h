// StoredBook: the scheduler's book, kept in the state directory (store/book). Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/host_time_zone.h"
#include "schedule/scheduler.h"
#include "store/book/book.h"
#include "store/repository.h"

namespace still::schedule {

class StoredBook final : public RunBook {
 public:
  // Both must outlive it. `local`: the zone of schedules that name none.
  StoredBook(store::Book& book, HostTimeZone& local) : book_(book), local_(local) {}

  // One that cannot be read is left out: the others go on.
  absl::StatusOr<std::vector<Schedule>> Schedules() override ABSL_LOCKS_EXCLUDED(mutex_);
  std::map<std::string, std::string> Unusable() const override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<int64_t> AddRun(const store::RunRow& run) override { return book_.AddRun(run); }
  absl::Status UpdateRun(const store::RunRow& run) override { return book_.UpdateRun(run); }
  absl::StatusOr<std::optional<store::RunRow>> FindRun(int64_t id) override { return book_.FindRun(id); }
  absl::StatusOr<std::vector<store::RunRow>> Running() override;
  absl::StatusOr<std::vector<store::RunCursor>> Cursors() override { return book_.RunCursors(); }
  absl::Status Remember(const std::string& key, const std::string& value) override {
    return book_.Remember(key, value);
  }
  absl::Status RememberAll(const std::map<std::string, std::string>& values) override {
    return book_.RememberAll(values);
  }
  absl::StatusOr<std::map<std::string, std::string>> Remembered() override { return book_.Remembered(); }

 private:
  store::Book& book_;
  HostTimeZone& local_;
  mutable absl::Mutex mutex_;
  std::map<std::string, std::string> unusable_ ABSL_GUARDED_BY(mutex_);
};

// The book of a state directory, with what a version without one kept in this repository's catalog.
absl::StatusOr<std::unique_ptr<store::Book>> OpenBook(const std::string& state, const std::string& repository_path,
                                                      const store::Repository& repository);
// Into the book, once: what a version without one kept in this repository's catalog.
absl::Status TakeOverFromCatalog(store::Book& book, const std::string& repository_path,
                                 const store::Repository& repository);

}  // namespace still::schedule
