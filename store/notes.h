// Notes: the small objects that say something about a pack or a snapshot, which themselves never change
// (docs/format/repository.md, "Notes"). A note that cannot be read never costs data: its pack waits, its snapshot is
// kept.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "store/repository_state.h"

namespace still::store {

inline constexpr char kCondemnedPrefix[] = "condemned/";
inline constexpr char kHoldPrefix[] = "holds/";
inline constexpr char kForgottenPrefix[] = "forgotten/";

// Of prune: that a pack is unused, and since when. The catalog's row says the same.
std::string CondemnedObject(const PackName& pack);
absl::Status Condemn(RepositoryState& state, const PackName& pack, absl::Time when);
absl::Status Acquit(RepositoryState& state, const PackName& pack);
// DATA_LOSS; NOT_FOUND.
absl::StatusOr<absl::Time> ReadCondemned(const RepositoryState& state, const std::string& object);

// That a snapshot was forgotten, and when: written before its manifest is deleted, so that one that is gone without it has vanished.
std::string ForgottenObject(absl::string_view snapshot_id);
absl::Status PutForgotten(RepositoryState& state, const std::vector<std::string>& snapshot_ids, absl::Time when);
absl::StatusOr<bool> IsForgotten(const RepositoryState& state, absl::string_view snapshot_id);
// DATA_LOSS; NOT_FOUND.
absl::StatusOr<absl::Time> ReadForgotten(const RepositoryState& state, const std::string& object);

// Of users: whether a snapshot is held, whatever its manifest's label "hold" says.
struct Hold {
  bool held = false;
  std::string reason;  // At most kMaxHoldReason bytes.
};
inline constexpr size_t kMaxHoldReason = 1024;
std::string HoldObject(absl::string_view snapshot_id);
absl::Status PutHold(RepositoryState& state, absl::string_view snapshot_id, const Hold& hold);
// DATA_LOSS; NOT_FOUND: the manifest's label decides.
absl::StatusOr<Hold> ReadHold(const RepositoryState& state, absl::string_view snapshot_id);
// Gives the snapshot the label "hold", or takes it away, as its note says. One that cannot be read holds.
absl::Status ApplyHold(const RepositoryState& state, stillpoint::manifest::v1::Snapshot& snapshot);
// The same for several, reading only what is there.
absl::Status ApplyHolds(const RepositoryState& state, std::vector<stillpoint::manifest::v1::Snapshot>& snapshots);

}  // namespace still::store
