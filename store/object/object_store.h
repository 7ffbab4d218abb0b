// ObjectStore: where the repository's bytes live. A flat set of named, immutable byte strings: put, get a range, list,
// delete. Knows nothing of packs, keys or snapshots. tests/contract/object-store is what every implementation must
// pass.
//
// Names are "leaf" or "folder/leaf", lower-case letters, digits, '-', '_' and '.'; see ValidObjectName().
//
// What an implementation promises:
//   - Whole or absent. An object appears with all of its bytes, by Publish() and in no other way, for every reader at
//     once. A writer that is dropped, fails or dies leaves nothing that List() or GetRange() can see.
//   - Durable. When Publish() or Delete() returns OK, the change survives a power cut (unless the writer asked for
//     kVolatile). After an error, or a power cut in the middle, any of its objects may be done and any may not.
//     Visible comes before durable: before you refer to an object of another writer, who may have died in between,
//     Settle() it.
//   - Read after write. Whatever happened before a call began, in any process, is seen by that call; also by List().
//   - Immutable. A published object never changes. kReplace swaps it for another whole one; a reader of several ranges
//     may then see both, so it is for objects that are read in one piece.
//
// Errors: NOT_FOUND no such object; ALREADY_EXISTS see PutMode; OUT_OF_RANGE a range beyond the object's end;
// RESOURCE_EXHAUSTED no room; UNAVAILABLE try again; PERMISSION_DENIED; DATA_LOSS the medium failed; INVALID_ARGUMENT a
// name that can never be stored. Every error names the object. Calls block, without a deadline of their own on a local
// disk. Stores are thread-safe; a writer is for one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/status.h"

namespace still {

struct ObjectStoreCapabilities {
  // PutMode::kCreate is atomic against other writers: exactly one of several wins.
  bool atomic_create = false;
  // Many small ranges cost about as much as one large one; otherwise read ahead generously.
  bool cheap_small_reads = false;
  // AvailableBytes() answers.
  bool reports_space = false;
  // Requests worth having under way at the same time.
  int parallel_requests = 1;
  uint64_t max_object_bytes = 0;
};

enum class PutMode {
  kCreate,   // ALREADY_EXISTS when the name is taken.
  kReplace,  // Whatever was there before is gone once the new object is there.
};

enum class PutDurability {
  kDurable,
  kVolatile,  // May be lost in a power cut (never torn by a mere crash of the process). For leases: a reboot ends them.
};

struct PutOptions {
  PutMode mode = PutMode::kCreate;
  PutDurability durability = PutDurability::kDurable;
};

struct ObjectInfo {
  std::string name;
  uint64_t size = 0;    // Bytes.
  absl::Time modified;  // When it was published, by the store's clock.
};

// An object on its way. Nobody sees it before ObjectStore::Publish(); dropping it undoes everything.
class ObjectWriter {
 public:
  virtual ~ObjectWriter() = default;
  virtual absl::Status Append(absl::string_view data) = 0;
  // All bytes are appended: lets the store begin to make them durable while others are written. Never waits.
  virtual void Finish() {}
  virtual uint64_t size() const = 0;  // Bytes appended.
  virtual const std::string& name() const = 0;
};

struct SweptLeftovers {
  int removed = 0;
  int still_written = 0;  // Left alone: their writers live.
  uint64_t removed_bytes = 0;
};

class ObjectStore {
 public:
  virtual ~ObjectStore() = default;
  virtual const ObjectStoreCapabilities& capabilities() const = 0;

  // Writers must not outlive the store.
  virtual absl::StatusOr<std::unique_ptr<ObjectWriter>> NewWriter(absl::string_view name, PutOptions options) = 0;
  // Makes the objects visible, each atomically, in the order given, and returns when all are durable: several together
  // cost little more than one. Stops at the first that fails and drops the rest.
  virtual absl::Status Publish(std::vector<std::unique_ptr<ObjectWriter>> writers) = 0;

  // What is visible of these objects now survives a power cut once this returns: for objects that others published, and
  // which List() showed. What is not there is no error. Cheap where it was so already.
  virtual absl::Status Settle(absl::Span<const std::string> names) = 0;

  // Fills all of `out` from `offset` on.
  virtual absl::Status GetRange(absl::string_view name, uint64_t offset, absl::Span<char> out) = 0;
  virtual absl::StatusOr<uint64_t> Size(absl::string_view name) = 0;
  // Objects whose names begin with `prefix`, sorted by name. Leftovers are never among them.
  virtual absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix) = 0;
  // Several together cost little more than one. What is not there counts as deleted.
  virtual absl::Status Delete(absl::Span<const std::string> names) = 0;

  // Removes what writers that died have left behind. Safe at any time, beside any writer, in any process.
  virtual absl::StatusOr<SweptLeftovers> SweepLeftovers() = 0;
  // UNIMPLEMENTED unless capabilities().reports_space.
  virtual absl::StatusOr<uint64_t> AvailableBytes() = 0;
  // A text that stays the same only while List(`folder`) would give the same objects; `folder` ends with its slash. Whoever
  // takes it before List() may leave List() out for as long as it is the same, in any process, also after a reboot. Empty:
  // the store cannot say, or something has changed so lately that it would not show if more did. Costs less than List().
  virtual absl::StatusOr<std::string> Stamp(absl::string_view /*folder*/) { return std::string(); }

  // Conveniences over the calls above.
  absl::Status Put(absl::string_view name, absl::string_view content, PutOptions options = {});
  absl::Status Publish(std::unique_ptr<ObjectWriter> writer);
  absl::Status Delete(absl::string_view name);
  // The whole object; RESOURCE_EXHAUSTED when it is longer than `limit` bytes.
  absl::StatusOr<std::string> Get(absl::string_view name, uint64_t limit);
};

// At most 128 characters; a leaf has at least three, a folder at least one, and neither begins with '.'.
bool ValidObjectName(absl::string_view name);
// INVALID_ARGUMENT that quotes the (escaped) name, or OK.
absl::Status CheckObjectName(absl::string_view name);

}  // namespace still
