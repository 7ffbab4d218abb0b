#include "store/snapshot_reference.h"

#include <optional>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace still::store {
namespace {

using Snapshots = std::vector<stillpoint::manifest::v1::Snapshot>;

constexpr size_t kMinIdPrefix = 4;
constexpr absl::string_view kLatest = "latest";

absl::Status NotFound(absl::string_view reference) {
  return absl::NotFoundError(absl::StrCat("snapshot \"", absl::CHexEscape(reference), "\": there is none"));
}

// "2d", "90m": units s, m, h, d, w.
std::optional<absl::Duration> ParseAge(absl::string_view text) {
  if (text.size() < 2) return std::nullopt;
  double number;
  if (!absl::SimpleAtod(text.substr(0, text.size() - 1), &number) || !(number >= 0)) return std::nullopt;
  switch (text.back()) {
    case 's':
      return number * absl::Seconds(1);
    case 'm':
      return number * absl::Minutes(1);
    case 'h':
      return number * absl::Hours(1);
    case 'd':
      return number * absl::Hours(24);
    case 'w':
      return number * absl::Hours(24 * 7);
    default:
      return std::nullopt;
  }
}

std::optional<size_t> NewestOf(const Snapshots& snapshots, absl::string_view session, absl::Time not_after) {
  for (size_t i = snapshots.size(); i-- > 0;) {
    if (!session.empty() && snapshots[i].session() != session) continue;
    if (absl::FromUnixNanos(snapshots[i].point_unix_ns()) <= not_after) return i;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<size_t> ResolveSnapshot(const Snapshots& snapshots, absl::string_view reference, absl::Time now) {
  if (reference.empty()) return absl::InvalidArgumentError("snapshot: no name given");
  // A name goes before everything else that could be meant.
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (snapshots[i].name() == reference || snapshots[i].id() == reference) return i;
  }
  if (reference == kLatest) {
    if (snapshots.empty()) return NotFound(reference);
    return snapshots.size() - 1;
  }
  if (const size_t at = reference.rfind('@'); at != absl::string_view::npos) {
    absl::string_view session = reference.substr(0, at);
    absl::string_view when = reference.substr(at + 1);
    std::optional<absl::Duration> age = when == kLatest ? absl::ZeroDuration() : ParseAge(when);
    if (age) {
      const absl::Time not_after = when == kLatest ? absl::InfiniteFuture() : now - *age;
      std::optional<size_t> newest = NewestOf(snapshots, session, not_after);
      if (!newest) return NotFound(reference);
      return *newest;
    }
  }
  std::optional<size_t> found;
  if (reference.size() >= kMinIdPrefix) {
    for (size_t i = 0; i < snapshots.size(); ++i) {
      if (!absl::StartsWith(snapshots[i].id(), reference)) continue;
      if (found) {
        return absl::FailedPreconditionError(
            absl::StrCat("snapshot \"", absl::CHexEscape(reference), "\": several begin like this, give more digits"));
      }
      found = i;
    }
  }
  if (!found) return NotFound(reference);
  return *found;
}

}  // namespace still::store
