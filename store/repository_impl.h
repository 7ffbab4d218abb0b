// The Repository: opens the parts and hands each call to the file that does it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "store/notes.h"
#include "store/repository.h"
#include "store/repository_state.h"

namespace still::store {

class RepositoryImpl final : public Repository {
 public:
  RepositoryImpl(std::unique_ptr<RepositoryState> state, KeyCost key_cost)
      : state_(std::move(state)), key_cost_(key_cost) {
    id_ = state_->config.hex_id();
  }

  const std::string& id() const override { return id_; }
  bool encrypted() const override { return state_->config.encrypted; }
  Compression compression() const override { return state_->config.compression; }
  absl::StatusOr<std::unique_ptr<SnapshotWriter>> BeginSnapshot() override;
  absl::StatusOr<std::vector<manifest::Snapshot>> ListSnapshots() override;
  absl::StatusOr<std::vector<manifest::Snapshot>> ListSnapshotsOf(absl::string_view session) override;
  absl::StatusOr<std::shared_ptr<const std::vector<SnapshotSummary>>> Summaries() override;
  absl::StatusOr<manifest::Snapshot> FindSnapshot(absl::string_view reference) override;
  absl::StatusOr<std::unique_ptr<ImageReader>> OpenImage(const manifest::Snapshot& snapshot,
                                                         absl::string_view image) override;
  absl::StatusOr<std::vector<ImageRange>> Diff(const manifest::Snapshot& a, const manifest::Snapshot& b,
                                               absl::string_view image) override;
  absl::StatusOr<RepositoryStats> Stats() override;
  absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options) override;
  absl::StatusOr<RepairReport> Repair(const RepairOptions& options) override;
  absl::StatusOr<std::vector<VanishedSnapshot>> Vanished() override;
  absl::Status Forget(const std::vector<std::string>& ids) override;
  absl::Status HoldSnapshot(const std::string& id, const std::string& reason) override;
  absl::Status ReleaseSnapshot(const std::string& id) override;
  absl::StatusOr<PruneReport> Prune(const PruneOptions& options) override;
  absl::Status RebuildCatalog() override;
  absl::StatusOr<std::vector<KeySlotInfo>> ListKeys() override;
  absl::StatusOr<std::string> AddKey(const Credentials& credentials, const std::string& label) override;
  absl::StatusOr<std::string> ChangeKey(absl::string_view key_id, const Credentials& credentials,
                                        const std::string& label) override;
  absl::Status RemoveKey(absl::string_view key_id) override;

 private:
  absl::StatusOr<std::vector<manifest::Snapshot>> Parse(const std::vector<CatalogSnapshot>& rows);
  absl::StatusOr<std::optional<CatalogSnapshot>> FindRow(const std::string& id);
  absl::Status CheckForgettable(const std::string& id);
  absl::Status ForgetSome(const std::vector<std::string>& ids);
  absl::Status SetHold(const std::string& id, const Hold& hold);
  absl::Status RequireEncryption() const;
  NewKeyOptions NewKey(const std::string& label) const {
    return {.label = label, .cost = key_cost_, .clock = &state_->clock};
  }

  const std::unique_ptr<RepositoryState> state_;
  const KeyCost key_cost_;
  std::string id_;
  absl::Mutex summarizing_;
  int64_t summarized_ ABSL_GUARDED_BY(summarizing_) = -1;  // Which version of the catalog.
  // Shared with those who read it while a newer one takes its place.
  std::shared_ptr<const std::vector<SnapshotSummary>> summaries_ ABSL_GUARDED_BY(summarizing_);
};

}  // namespace still::store
