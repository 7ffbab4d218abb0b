#include "store/lock/lease.h"

#include <algorithm>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/random.h"

namespace still::store {
namespace {

constexpr absl::string_view kFolder = "locks/";
constexpr PutOptions kPut{.mode = PutMode::kCreate, .durability = PutDurability::kVolatile};
constexpr PutOptions kRewrite{.mode = PutMode::kReplace, .durability = PutDurability::kVolatile};
// Renewed so often in a term that three failures in a row do not lose it.
constexpr int kRenewalsPerTerm = 4;
// Watchers wait for longer than holders believe in their lease, so that both need not be exact.
constexpr double kStaleTerms = 1.5;
constexpr absl::Duration kPollInterval = absl::Milliseconds(200);
constexpr absl::Duration kUnreadableTerm = absl::Minutes(2);

// Short, so that the directory store does not spread a handful of leases over 256 directories.
std::string NewName() {
  return absl::StrCat(kFolder, absl::StrCat(absl::Hex(RandomU64(), absl::kZeroPad16)).substr(0, 12));
}

bool Excludes(const LeaseInfo& other, LeaseKind kind) {
  return kind == LeaseKind::kExclusive || !other.readable || other.record.kind == LeaseKind::kExclusive;
}

}  // namespace

// What a Lease shares with its renewing thread.
class Lease::State {
 public:
  State(ObjectStore& store, Clock& clock, std::string name, LeaseRecord record, absl::Duration renewed)
      : store_(store), clock_(clock), name_(std::move(name)), record_(std::move(record)), renewed_(renewed) {}

  ~State() {
    absl::Status released = Release();
    if (!released.ok()) LogWarning("lease not deleted", {{"lease", name_}, {"error", released.ToString()}});
  }

  const std::string& name() const { return name_; }

  absl::Status Check() const {
    absl::MutexLock lock(&mutex_);
    return CheckLocked();
  }

  absl::Status Renew() {
    // One renewal at a time, and none under way when Release() deletes the object: it would come back.
    absl::MutexLock writing(&writing_);
    LeaseRecord next;
    {
      absl::MutexLock lock(&mutex_);
      STILL_RETURN_IF_ERROR(CheckLocked());
      next = record_;
    }
    ++next.renewals;
    // Taken before it is written: what others see is never younger than what we believe.
    const absl::Duration now = clock_.Monotonic();
    absl::Status there = store_.Size(name_).status();
    absl::Status status = there.ok() ? store_.Put(name_, EncodeLease(next), kRewrite) : there;
    absl::MutexLock lock(&mutex_);
    if (absl::IsNotFound(there)) lost_ = true;
    if (status.ok()) {
      record_ = std::move(next);
      renewed_ = now;
    }
    return absl::IsNotFound(there) ? CheckLocked() : status;
  }

  absl::Status Release() {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = true;
    }
    if (renewing_.joinable()) renewing_.join();
    absl::MutexLock writing(&writing_);
    {
      absl::MutexLock lock(&mutex_);
      if (std::exchange(released_, true)) return absl::OkStatus();
    }
    return store_.Delete(name_);
  }

  void RenewInBackground() {
    renewing_ = std::thread([this] {
      for (;;) {
        {
          absl::MutexLock lock(&mutex_);
          if (mutex_.AwaitWithTimeout(absl::Condition(&stop_), record_.term / kRenewalsPerTerm)) return;
        }
        absl::Status status = Renew();
        if (status.ok()) continue;
        LogWarning("lease not renewed", {{"lease", name_}, {"error", status.ToString()}});
        if (absl::IsAborted(status)) return;
      }
    });
  }

 private:
  absl::Status CheckLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (released_) return absl::AbortedError(absl::StrCat("lease ", name_, ": was given up"));
    // Once lost it stays lost, also if the clock should ever say otherwise.
    if (clock_.Monotonic() - renewed_ >= record_.term) lost_ = true;
    if (!lost_) return absl::OkStatus();
    return absl::AbortedError(
        absl::StrCat("lease ", name_, " (", record_.purpose,
                     "): lost; it could not be renewed in time, and others may go on without us"));
  }

  ObjectStore& store_;
  Clock& clock_;
  const std::string name_;
  absl::Mutex writing_;
  mutable absl::Mutex mutex_;
  LeaseRecord record_ ABSL_GUARDED_BY(mutex_);
  absl::Duration renewed_ ABSL_GUARDED_BY(mutex_);
  mutable bool lost_ ABSL_GUARDED_BY(mutex_) = false;
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread renewing_;
};

Lease::Lease(std::unique_ptr<State> state) : state_(std::move(state)) {}
Lease::Lease(Lease&&) noexcept = default;
Lease& Lease::operator=(Lease&&) noexcept = default;
Lease::~Lease() = default;
const std::string& Lease::name() const { return state_->name(); }
absl::Status Lease::Check() const { return state_->Check(); }
absl::Status Lease::Renew() { return state_->Renew(); }
absl::Status Lease::Release() { return state_->Release(); }

std::string LeaseInfo::Describe() const {
  if (!readable) return absl::StrCat("a lease that this version cannot read (", name, ")");
  std::string host = record.holder.host.substr(record.holder.host.find(':') + 1);
  return absl::StrCat(record.purpose, " (pid ", record.holder.pid, " on ", host, ")");
}

LeaseKeeper::LeaseKeeper(ObjectStore& store, Clock& clock, const ProcessView& processes, SightingBook* book)
    : store_(store), clock_(clock), processes_(processes), book_(book) {}

void LeaseKeeper::LoadSightings() {
  absl::MutexLock lock(&mutex_);
  if (book_ == nullptr || std::exchange(loaded_, true)) return;
  auto known = book_->Load();
  if (!known.ok()) {
    LogWarning("what was seen of leases before is not known", {{"error", known.status().ToString()}});
    return;
  }
  const absl::Duration now = clock_.Monotonic();
  for (auto& [name, sighting] : *known) {
    if (sighting.since <= now) sightings_.try_emplace(name, std::move(sighting));
  }
}

void LeaseKeeper::KeepSightings() {
  if (book_ == nullptr) return;
  absl::MutexLock lock(&mutex_);
  if (absl::Status kept = book_->Keep(sightings_); !kept.ok()) {
    LogWarning("what was seen of leases is not remembered", {{"error", kept.ToString()}});
  }
}

std::string LeaseKeeper::StaleBecause(const LeaseInfo& info, const std::string& content) {
  const ProcessIdentity& self = processes_.self();
  const ProcessIdentity& holder = info.record.holder;
  if (info.readable && holder.host == self.host) {
    if (holder.boot != self.boot) return "its host was rebooted";
    if (holder.pid_namespace == self.pid_namespace && !processes_.IsRunning(holder.pid, holder.start_ticks)) {
      return "its process has ended";
    }
  }
  absl::MutexLock lock(&mutex_);
  const absl::Duration now = clock_.Monotonic();
  LeaseSighting& sighting = sightings_.try_emplace(info.name, LeaseSighting{content, now}).first->second;
  if (sighting.content != content) sighting = {content, now};
  const absl::Duration term = info.readable ? info.record.term : kUnreadableTerm;
  if (now - sighting.since < kStaleTerms * term) return "";
  return absl::StrCat("it was not renewed for ", absl::FormatDuration(now - sighting.since));
}

absl::StatusOr<std::vector<LeaseInfo>> LeaseKeeper::List() {
  LoadSightings();
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects, store_.List(kFolder));
  std::vector<LeaseInfo> leases;
  std::set<std::string> names;
  for (const ObjectInfo& object : objects) {
    absl::StatusOr<std::string> content = store_.Get(object.name, kMaxLeaseBytes);
    if (absl::IsNotFound(content.status())) continue;  // Given up since the listing.
    // A lease of another size than it was when we asked is being renewed; one that is too long is unreadable.
    if (!content.ok() && !absl::IsOutOfRange(content.status()) && !absl::IsResourceExhausted(content.status())) {
      return content.status();
    }
    LeaseInfo info{.name = object.name};
    std::string bytes = content.ok() ? *content : "";
    absl::StatusOr<LeaseRecord> record = ParseLease(bytes);
    info.readable = record.ok();
    if (record.ok()) info.record = *std::move(record);
    info.stale_because = StaleBecause(info, bytes);
    names.insert(info.name);
    leases.push_back(std::move(info));
  }
  absl::MutexLock lock(&mutex_);
  for (auto each = sightings_.begin(); each != sightings_.end();) {
    each = names.contains(each->first) ? std::next(each) : sightings_.erase(each);
  }
  return leases;
}

absl::StatusOr<std::vector<LeaseInfo>> LeaseKeeper::FindConflicts(LeaseKind kind, const std::string& own) {
  STILL_ASSIGN_OR_RETURN(std::vector<LeaseInfo> leases, List());
  std::vector<LeaseInfo> conflicts;
  for (LeaseInfo& lease : leases) {
    if (lease.name == own || !Excludes(lease, kind)) continue;
    if (lease.stale_because.empty()) {
      conflicts.push_back(std::move(lease));
      continue;
    }
    STILL_RETURN_IF_ERROR(store_.Delete(lease.name));
    LogWarning("stale lease deleted",
               {{"lease", lease.name}, {"holder", lease.Describe()}, {"because", lease.stale_because}});
  }
  return conflicts;
}

absl::Status LeaseKeeper::WaitALittle(absl::Duration deadline, const std::vector<LeaseInfo>& conflicts) {
  const absl::Duration left = deadline - clock_.Monotonic();
  if (left <= absl::ZeroDuration()) {
    KeepSightings();
    return absl::UnavailableError(absl::StrCat("the repository is in use by ", conflicts.front().Describe(),
                                               conflicts.size() > 1 ? " and others" : "", "; try again later"));
  }
  // One to two intervals: those that withdrew from each other come back at different times.
  double jitter = static_cast<double>(RandomU64() % 1000) / 1000;
  clock_.Sleep(std::min(left, kPollInterval * (1 + jitter)));
  return absl::OkStatus();
}

absl::StatusOr<Lease> LeaseKeeper::Acquire(const LeaseOptions& options) {
  if (options.term < kMinLeaseTerm || options.term > kMaxLeaseTerm) {
    return absl::InvalidArgumentError("acquire lease: the term is out of bounds");
  }
  const bool exclusive = options.kind == LeaseKind::kExclusive;
  const absl::Duration deadline = clock_.Monotonic() + options.wait;
  std::unique_ptr<Lease::State> state;
  for (;;) {
    if (state == nullptr && exclusive) {
      // A look first: an exclusive lease that is going to be withdrawn makes shared ones wait for nothing.
      STILL_ASSIGN_OR_RETURN(std::vector<LeaseInfo> conflicts, FindConflicts(options.kind, ""));
      if (!conflicts.empty()) {
        STILL_RETURN_IF_ERROR(WaitALittle(deadline, conflicts));
        continue;
      }
    }
    if (state == nullptr) {
      LeaseRecord record{
          .kind = options.kind, .purpose = options.purpose, .holder = processes_.self(), .term = options.term};
      std::string name = NewName();
      const absl::Duration now = clock_.Monotonic();
      STILL_RETURN_IF_ERROR(store_.Put(name, EncodeLease(record), kPut));
      // From here on it is deleted whatever happens.
      state = std::make_unique<Lease::State>(store_, clock_, std::move(name), std::move(record), now);
    } else {
      // A shared lease that waits: it must neither look stale nor be lost when its turn comes.
      STILL_RETURN_IF_ERROR(state->Renew());
    }
    STILL_ASSIGN_OR_RETURN(std::vector<LeaseInfo> conflicts, FindConflicts(options.kind, state->name()));
    if (conflicts.empty()) break;
    if (exclusive) state.reset();
    STILL_RETURN_IF_ERROR(WaitALittle(deadline, conflicts));
  }
  if (options.background_renewal) state->RenewInBackground();
  return Lease(std::move(state));
}

}  // namespace still::store
