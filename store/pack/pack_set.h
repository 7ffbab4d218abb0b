// PackSet: the packs of a repository as this process knows them: numbered, with a bounded cache of their footers, and
// their frames by number. Knows nothing of images or of the catalog; whoever learns of a pack adds it.
//
// Thread-safe. Calls that read block.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "store/block/worker_pool.h"
#include "store/crypto/repository_keys.h"
#include "store/object/object_store.h"
#include "store/pack/pack_format.h"

namespace still::store {

// A pack's number in this process; never reused.
using PackNumber = uint32_t;

// A pack whose footer was read and found whole. Immutable.
struct OpenPack {
  PackNumber number = 0;
  PackName name;
  uint64_t size = 0;  // Bytes.
  std::string object;
  PackFooter footer;
};

// Immutable bytes of a decoded frame, not initialised twice.
struct FrameBytes {
  explicit FrameBytes(size_t bytes) : data(std::make_unique_for_overwrite<char[]>(bytes)), size(bytes) {}
  absl::string_view view() const { return {data.get(), size}; }
  std::unique_ptr<char[]> data;
  size_t size;
};

class PackSet {
 public:
  // `keys`: nullptr in a repository without encryption. All must outlive the set.
  PackSet(ObjectStore& objects, const RepositoryKeys* keys);

  // Idempotent.
  PackNumber Add(const PackName& name) ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<PackNumber> Find(const PackName& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  PackName NameOf(PackNumber number) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Reads trailer and footer, or takes them from the cache. DATA_LOSS if they are damaged, NOT_FOUND.
  absl::StatusOr<std::shared_ptr<const OpenPack>> Open(PackNumber number, Scratch& scratch) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same, past the cache: for verification, and for packs that are only looked at once.
  absl::StatusOr<std::shared_ptr<const OpenPack>> Load(PackNumber number, Scratch& scratch) const;
  // The footer of a pack from a copy of it that has another name: frames cannot be read from that.
  absl::StatusOr<std::shared_ptr<const OpenPack>> LoadFromCopy(const PackName& name, const std::string& copy,
                                                               Scratch& scratch) const;
  // One decoded frame, from storage.
  absl::StatusOr<std::shared_ptr<const FrameBytes>> ReadFrame(const OpenPack& pack, uint32_t frame,
                                                              Scratch& scratch) const;
  // The pack was deleted: forgets its footer.
  void Drop(PackNumber number) ABSL_LOCKS_EXCLUDED(mutex_);

  ObjectStore& objects() const { return objects_; }
  const RepositoryKeys* keys() const { return keys_; }

 private:
  absl::Status LoadFooter(OpenPack& pack, const std::string& object, Scratch& scratch) const;
  absl::Status ReadFooter(OpenPack& pack, const std::string& object, Scratch& scratch) const;

  struct Cached {
    std::shared_ptr<const OpenPack> pack;
    std::list<PackNumber>::iterator recency;
  };

  ObjectStore& objects_;
  const RepositoryKeys* const keys_;
  mutable absl::Mutex mutex_;
  std::vector<PackName> names_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<PackName, PackNumber> numbers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<PackNumber, Cached> footers_ ABSL_GUARDED_BY(mutex_);
  std::list<PackNumber> recency_ ABSL_GUARDED_BY(mutex_);  // Most recent first.
  size_t footers_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace still::store
