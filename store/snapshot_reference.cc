#include "store/snapshot_reference.h"

#include <algorithm>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/name_match.h"
#include "base/quantity.h"

namespace still::store {
namespace {

using Snapshot = stillpoint::manifest::v1::Snapshot;
using Snapshots = std::vector<Snapshot>;

constexpr size_t kMinIdPrefix = 4;
constexpr size_t kShownIdDigits = 12;
constexpr absl::string_view kLatest = "latest";

// The names of the sessions that have snapshots, each once.
std::vector<std::string> SessionsOf(const Snapshots& snapshots) {
  std::vector<std::string> names;
  for (const Snapshot& snapshot : snapshots) names.push_back(snapshot.session());
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

// "SESSION@latest", "SESSION@2d"; an empty session is any.
absl::StatusOr<size_t> NewestOf(const Snapshots& snapshots, absl::string_view reference, absl::string_view session,
                                absl::Time not_after) {
  std::string name;
  if (!session.empty()) {
    STILL_ASSIGN_OR_RETURN(name, ResolveName("session with snapshots", session, SessionsOf(snapshots)));
  }
  for (size_t i = snapshots.size(); i-- > 0;) {
    if (!name.empty() && snapshots[i].session() != name) continue;
    if (absl::FromUnixNanos(snapshots[i].point_unix_ns()) <= not_after) return i;
  }
  return absl::NotFoundError(absl::StrCat("snapshot ", Quoted(reference), ": there is none that old"));
}

std::string Describe(const Snapshot& snapshot) {
  const std::string id = snapshot.id().substr(0, kShownIdDigits);
  return snapshot.name().empty() ? id : absl::StrCat(snapshot.name(), " (", id, ")");
}

// What begins like `text`: names, and ids if it has enough digits.
absl::StatusOr<size_t> ByBeginning(const Snapshots& snapshots, absl::string_view text) {
  std::vector<size_t> found;
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (absl::StartsWith(snapshots[i].name(), text) ||
        (text.size() >= kMinIdPrefix && absl::StartsWith(snapshots[i].id(), text))) {
      found.push_back(i);
    }
  }
  if (found.size() == 1) return found[0];
  std::vector<std::string> names;
  if (!found.empty()) {
    for (size_t i : found) names.push_back(Describe(snapshots[i]));
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot ", Quoted(text), ": several begin like this: ", ListSome(names)));
  }
  for (const Snapshot& snapshot : snapshots) {
    if (!snapshot.name().empty()) names.push_back(snapshot.name());
  }
  names.push_back(std::string(kLatest));
  return absl::NotFoundError(absl::StrCat("snapshot ", Quoted(text), ": there is none", DidYouMean(text, names)));
}

}  // namespace

absl::StatusOr<size_t> ResolveSnapshot(const Snapshots& snapshots, absl::string_view reference, absl::Time now) {
  if (reference.empty()) return absl::InvalidArgumentError("snapshot: no name given");
  // A name goes before everything else that could be meant.
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (snapshots[i].name() == reference || snapshots[i].id() == reference) return i;
  }
  if (snapshots.empty()) {
    return absl::NotFoundError(absl::StrCat("snapshot ", Quoted(reference), ": there is none; none was taken yet"));
  }
  if (reference == kLatest) return snapshots.size() - 1;
  if (const size_t at = reference.rfind('@'); at != absl::string_view::npos) {
    absl::string_view session = reference.substr(0, at);
    absl::string_view when = reference.substr(at + 1);
    if (when == kLatest) return NewestOf(snapshots, reference, session, absl::InfiniteFuture());
    if (absl::StatusOr<absl::Duration> age = ParseDuration(when); age.ok())
      return NewestOf(snapshots, reference, session, now - *age);
  }
  return ByBeginning(snapshots, reference);
}

bool NamedInFull(const Snapshot& snapshot, absl::string_view reference) {
  return reference == snapshot.name() || absl::StartsWith(snapshot.id(), reference) ||
         !absl::StartsWith(snapshot.name(), reference);
}

}  // namespace still::store
