// CatalogBook: the scheduler's book, kept in a repository's catalog. Thread-safe.
#pragma once

#include "schedule/scheduler.h"
#include "store/catalog/catalog.h"

namespace still::schedule {

class CatalogBook final : public RunBook {
 public:
  // `catalog` must outlive it. `local`: the zone of schedules that name none.
  CatalogBook(store::Catalog& catalog, absl::TimeZone local) : catalog_(catalog), local_(local) {}

  // One that cannot be read is logged and left out: the others go on.
  absl::StatusOr<std::vector<Schedule>> Schedules() override;
  absl::StatusOr<int64_t> AddRun(const store::CatalogRun& run) override { return catalog_.AddRun(run); }
  absl::Status UpdateRun(const store::CatalogRun& run) override { return catalog_.UpdateRun(run); }
  absl::StatusOr<std::optional<store::CatalogRun>> FindRun(int64_t id) override { return catalog_.FindRun(id); }
  absl::StatusOr<std::vector<store::CatalogRun>> Running() override;
  absl::StatusOr<std::vector<store::RunCursor>> Cursors() override { return catalog_.RunCursors(); }
  absl::Status Remember(const std::string& key, const std::string& value) override {
    return catalog_.Remember(key, value);
  }
  absl::StatusOr<std::map<std::string, std::string>> Remembered() override { return catalog_.Remembered(); }

 private:
  store::Catalog& catalog_;
  const absl::TimeZone local_;
};

}  // namespace still::schedule
