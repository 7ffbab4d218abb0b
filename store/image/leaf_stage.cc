#include "store/image/leaf_stage.h"

#include <fcntl.h>
#include <stdlib.h>

#include <string>

#include "base/file.h"

namespace still::store {

absl::StatusOr<StagedLeaf*> LeafStage::Get(uint64_t leaf) {
  if (auto at = in_memory_.find(leaf); at != in_memory_.end()) {
    recency_.splice(recency_.begin(), recency_, at->second.recency);
    return at->second.leaf.get();
  }
  if (in_memory_.size() >= leaves_in_memory_) STILL_RETURN_IF_ERROR(SpillOldest());
  auto staged = std::make_unique<StagedLeaf>();
  if (in_file_.contains(leaf)) {
    STILL_RETURN_IF_ERROR(
        PReadExactly(file_.get(), staged.get(), sizeof(*staged), leaf * sizeof(*staged), "leaf stage"));
    in_file_.erase(leaf);
  }
  recency_.push_front(leaf);
  InMemory& entry = in_memory_[leaf];
  entry = {.leaf = std::move(staged), .recency = recency_.begin()};
  return entry.leaf.get();
}

void LeafStage::Drop(uint64_t leaf) {
  in_file_.erase(leaf);
  auto at = in_memory_.find(leaf);
  if (at == in_memory_.end()) return;
  recency_.erase(at->second.recency);
  in_memory_.erase(at);
}

absl::Status LeafStage::SpillOldest() {
  if (!file_.valid()) {
    const char* directory = ::getenv("TMPDIR");
    const std::string path = directory != nullptr && *directory != '\0' ? directory : "/var/tmp";
    STILL_ASSIGN_OR_RETURN(file_, OpenFile(path, O_TMPFILE | O_RDWR));
  }
  const uint64_t leaf = recency_.back();
  auto at = in_memory_.find(leaf);
  STILL_RETURN_IF_ERROR(
      PWriteAll(file_.get(), at->second.leaf.get(), sizeof(StagedLeaf), leaf * sizeof(StagedLeaf), "leaf stage"));
  in_file_.insert(leaf);
  recency_.pop_back();
  in_memory_.erase(at);
  return absl::OkStatus();
}

}  // namespace still::store
