// What keeps a repository whole and small takes and tells: Verify, Repair, Prune (store/repository.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "store/image/image_reader.h"

namespace still::store {

// done and total have no unit but their ratio.
using ProgressCallback = std::function<void(uint64_t done, uint64_t total)>;

// Bytes of an image that cannot be read any more.
struct LostRange {
  std::string snapshot_id;
  std::string snapshot_name;
  std::string image;
  ImageRange range;
};

struct VerifyOptions {
  // 0: structure only (every manifest, node and footer is there, whole and consistent). Else this share of the packs is
  // read and every block hashed, chosen at random by `seed`; 100: all.
  double read_data_percent = 0;
  uint64_t seed = 0;
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
