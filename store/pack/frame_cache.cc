#include "store/pack/frame_cache.h"

namespace still::store {

absl::StatusOr<std::shared_ptr<const FrameBytes>> FrameCache::Get(const OpenPack& pack, uint32_t frame,
                                                                  Scratch& scratch) {
  const Key key(pack.number, frame);
  {
    absl::MutexLock lock(&mutex_);
    while (true) {
      auto at = entries_.find(key);
      if (at == entries_.end()) break;
      if (!at->second.loading) {
        recency_.splice(recency_.begin(), recency_, at->second.recency);
        return at->second.bytes;
      }
      loaded_.Wait(&mutex_);
    }
    entries_[key] = Entry{};
  }
  auto bytes = packs_.ReadFrame(pack, frame, scratch);
  absl::MutexLock lock(&mutex_);
  loaded_.SignalAll();
  if (!bytes.ok()) {
    entries_.erase(key);  // Whoever waited tries again, and gets the error first hand.
    return bytes;
  }
  recency_.push_front(key);
  entries_[key] = {.loading = false, .bytes = *bytes, .recency = recency_.begin()};
  bytes_ += (*bytes)->size;
  while (bytes_ > limit_bytes_ && recency_.size() > 1) {
    auto oldest = entries_.find(recency_.back());
    bytes_ -= oldest->second.bytes->size;
    entries_.erase(oldest);
    recency_.pop_back();
  }
  return bytes;
}

}  // namespace still::store
