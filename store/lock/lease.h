// Leases on a repository: shared for capture, restore and verify, exclusive for the sweep. docs/format/locks.md is the
// contract: how two processes never both hold what excludes the other, and how stale leases are told from live ones.
//
//   LeaseKeeper keeper(store, Clock::Real(), **ProcessView::Real());
//   STILL_ASSIGN_OR_RETURN(Lease lease, keeper.Acquire({.kind = LeaseKind::kShared, .purpose = "capture web"}));
//   ...
//   STILL_RETURN_IF_ERROR(lease.Check());    // right before the step that needs it
//   STILL_RETURN_IF_ERROR(lease.Release());  // or let the destructor do it
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status.h"
#include "store/lock/lease_record.h"
#include "store/lock/process_view.h"
#include "store/object/object_store.h"

namespace still::store {

// A lease that is held: move-only; destroying it gives it up. Thread-safe but for moving.
class Lease {
 public:
  Lease(Lease&&) noexcept;
  Lease& operator=(Lease&&) noexcept;
  ~Lease();

  // Its object's name; tells this lease from all others, for ever.
  const std::string& name() const;
  // OK while it is held. ABORTED once it is lost; then it stays lost. Reads only the clock.
  absl::Status Check() const;
  // Writes to the store. Called by the lease's own thread; by hand only with background_renewal off. ABORTED: lost.
  // Other errors of the store may pass, and the lease is held until its term ends.
  absl::Status Renew();
  // Idempotent. After an error it is given up all the same, and others find it stale after a while.
  absl::Status Release();

 private:
  friend class LeaseKeeper;
  class State;
  explicit Lease(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct LeaseOptions {
  LeaseKind kind = LeaseKind::kShared;
  std::string purpose;  // For people; see kMaxPurposeLength.
  // How long to wait for others to let go. A crashed holder on another host is recognised only while somebody waits
  // for one and a half terms.
  absl::Duration wait = absl::ZeroDuration();
  absl::Duration term = absl::Minutes(2);
  // A thread renews it. Off in tests, which renew by hand.
  bool background_renewal = true;
};

struct LeaseInfo {
  std::string name;
  bool readable = true;  // False: `record` says nothing.
  LeaseRecord record;
  std::string stale_because;  // Empty: it is live, or must be taken to be.
  // "prune (pid 12 on build7)"
  std::string Describe() const;
};

// What was seen of a lease of somebody else's, and since when it has been so.
struct LeaseSighting {
  std::string content;
  absl::Duration since;  // Clock::Monotonic(), of this boot.
};

// Keeps sightings beyond the end of this process, so that who looks again later need not wait anew. Any error only costs that.
class SightingBook {
 public:
  virtual ~SightingBook() = default;
  virtual absl::StatusOr<std::map<std::string, LeaseSighting>> Load() = 0;
  virtual absl::Status Keep(const std::map<std::string, LeaseSighting>& sightings) = 0;
};

class LeaseKeeper {
 public:
  // All must outlive the keeper and its leases. Waiting uses Clock::Sleep(). `book` may be null.
  LeaseKeeper(ObjectStore& store, Clock& clock, const ProcessView& processes, SightingBook* book = nullptr);

  // Deletes stale leases in the way. UNAVAILABLE, naming who is in the way, when the wait is over. INVALID_ARGUMENT for
  // a term out of bounds. Thread-safe.
  absl::StatusOr<Lease> Acquire(const LeaseOptions& options);
  // All there are, the stale ones marked. Thread-safe.
  absl::StatusOr<std::vector<LeaseInfo>> List();

 private:
  std::string StaleBecause(const LeaseInfo& info, const std::string& content) ABSL_LOCKS_EXCLUDED(mutex_);
  // Live leases other than `own` that exclude one of this kind; stale ones are deleted.
  absl::StatusOr<std::vector<LeaseInfo>> FindConflicts(LeaseKind kind, const std::string& own);
  absl::Status WaitALittle(absl::Duration deadline, const std::vector<LeaseInfo>& conflicts);
  void LoadSightings() ABSL_LOCKS_EXCLUDED(mutex_);
  void KeepSightings() ABSL_LOCKS_EXCLUDED(mutex_);

  ObjectStore& store_;
  Clock& clock_;
  const ProcessView& processes_;
  SightingBook* const book_;
  absl::Mutex mutex_;
  bool loaded_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, LeaseSighting> sightings_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::store
