// What keeps a repository whole and small takes and tells: Verify, Repair, Prune (store/repository.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "store/image/image_reader.h"

namespace still::store {

// A snapshot with this label is held: kept whatever a policy says, and removed by nothing. The label may be given when
// it is taken, or later (Repository::HoldSnapshot).
inline constexpr absl::string_view kHoldLabel = "hold";

// done and total have no unit but their ratio.
using ProgressCallback = std::function<void(uint64_t done, uint64_t total)>;

// Bytes of an image that cannot be read any more.
struct LostRange {
  std::string snapshot_id;
  std::string snapshot_name;
  std::string image;
  ImageRange range;
};

// A snapshot that was there and is not any more, though nobody has forgotten it.
struct VanishedSnapshot {
  std::string id;
  std::string name;
  std::string session;
  std::string host;
  absl::Time noticed;
};

// One of `count` parts of a repository's data. A pack belongs to the same one for ever, so runs over index 0 to count -
// 1 together read everything, whatever is added or rewritten meanwhile (what is rewritten is checked by that). A
// scheduler counts its runs and gives run % count.
struct VerifySlice {
  uint32_t index = 0;
  uint32_t count = 0;  // 0: no slice.
};

// The structure is always verified: every manifest, node and footer is there, whole and consistent. Of the data, packs
// are read whole and every block of them is hashed: a share, a slice, or none. INVALID_ARGUMENT if both are given, or
// are out of range.
struct VerifyOptions {
  double read_data_percent = 0;  // To 100; chosen at random by `seed`.
  uint64_t seed = 0;
  VerifySlice read_slice;
  ProgressCallback progress;
};

struct VerifyReport {
  uint64_t snapshots = 0;
  uint64_t nodes = 0;
  uint64_t packs = 0;
  uint64_t blocks_read = 0;
  std::vector<std::string> problems;  // One sentence each; empty: all is well.
  std::vector<LostRange> lost;
  bool ok() const { return problems.empty(); }
};

struct RepairOptions {
  bool dry_run = false;
  ProgressCallback progress;
};

struct RepairReport {
  std::vector<std::string> actions;  // What was done, or would be.
  std::vector<LostRange> lost;       // In the snapshots that are still listed; they read as DATA_LOSS there.
};

struct PruneOptions {
  bool dry_run = false;
  // Packs are deleted when they have been unused for this long.
  absl::Duration grace = absl::Hours(24);
  // Rewrite packs of which less than this is still used.
  double min_live_fraction = 0.5;
  ProgressCallback progress;
};

struct PruneReport {
  uint64_t live_blocks = 0;
  uint64_t dead_blocks = 0;
  uint64_t packs_condemned = 0;
  uint64_t packs_rewritten = 0;  // Also counted as condemned.
  uint64_t packs_deleted = 0;
  uint64_t bytes_deleted = 0;
  uint64_t bytes_written = 0;
  // Condemned packs that stay for now: in their grace period, or because somebody else uses the repository.
  uint64_t packs_waiting = 0;
  uint64_t bytes_waiting = 0;
};

}  // namespace still::store
