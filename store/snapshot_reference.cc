#include "store/snapshot_reference.h"

#include <optional>
#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
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

// The snapshots among which the newest is looked for.
absl::StatusOr<std::vector<size_t>> Among(const Snapshots& snapshots, absl::string_view reference,
                                          absl::string_view host, const HostIdentity& here) {
  std::vector<size_t> found;
  // As they can be written; old snapshots, without an id, go with whichever host has their host's name.
  std::set<std::string> hosts;
  std::set<std::string> others;
  for (size_t i = 0; i < snapshots.size(); ++i) {
    const bool ours = host.empty() ? IsOfHost(snapshots[i], here) : IsOfNamedHost(snapshots[i], host);
    if (ours) found.push_back(i);
    if (!ours) others.insert(HostText(snapshots[i]));
    if (ours && !snapshots[i].host_id().empty()) hosts.insert(HostText(snapshots[i]));
  }
  const auto texts = [](const std::set<std::string>& of) {
    return ListSome(std::vector<std::string>(of.begin(), of.end()));
  };
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat("snapshot ", Quoted(reference), ": there is none of ",
                                            host.empty() ? "this host" : absl::StrCat("a host ", Quoted(host)),
                                            "; of others, write HOST/", host.empty() ? reference : "SESSION@latest",
                                            ": ", texts(others)));
  }
  if (!host.empty() && hosts.size() > 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot ", Quoted(reference), ": several hosts are called so; write the id: ", texts(hosts)));
  }
  return found;
}

// "SESSION@latest", "SESSION@2d"; an empty session is any.
absl::StatusOr<size_t> NewestOf(const Snapshots& snapshots, absl::string_view reference, const Whose& whose,
                                absl::Time not_after, const HostIdentity& here) {
  STILL_ASSIGN_OR_RETURN(std::vector<size_t> among, Among(snapshots, reference, whose.host, here));
  std::string name;
  if (!whose.session.empty()) {
    std::set<std::string> names;
    for (size_t i : among) names.insert(snapshots[i].session());
    STILL_ASSIGN_OR_RETURN(name, ResolveName("session with snapshots", whose.session,
                                             std::vector<std::string>(names.begin(), names.end())));
  }
  for (size_t i = among.size(); i-- > 0;) {
    const Snapshot& snapshot = snapshots[among[i]];
    if (!name.empty() && snapshot.session() != name) continue;
    if (absl::FromUnixNanos(snapshot.point_unix_ns()) <= not_after) return among[i];
  }
  return absl::NotFoundError(absl::StrCat("snapshot ", Quoted(reference), ": there is none that old"));
}

// What asks for the newest: "latest", "host/latest", "web@latest", "host/web@2d".
struct Newest {
  Whose whose;
  absl::Time not_after = absl::InfiniteFuture();
};

std::optional<Newest> ParseNewest(absl::string_view reference, absl::Time now) {
  const size_t at = reference.rfind('@');
  if (at == absl::string_view::npos) {
    const Whose whose = ParseWhose(reference);
    if (whose.session != kLatest) return std::nullopt;
    return Newest{.whose = {.host = whose.host, .session = {}}};
  }
  const Whose whose = ParseWhose(reference.substr(0, at));
  const absl::string_view when = reference.substr(at + 1);
  if (when == kLatest) return Newest{.whose = whose};
  absl::StatusOr<absl::Duration> age = ParseDuration(when);
  if (!age.ok()) return std::nullopt;
  return Newest{.whose = whose, .not_after = now - *age};
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

bool AreOfHost(const std::string& host_id, const std::string& host_name, const HostIdentity& host) {
  if (host.id.empty() && host.name.empty()) return true;
  if (!host_id.empty() && !host.id.empty()) return host_id == host.id;
  return host_name.empty() || host_name == host.name;
}

}  // namespace

Whose ParseWhose(absl::string_view text) {
  const size_t slash = text.find('/');
  if (slash == absl::string_view::npos) return {.host = {}, .session = text};
  return {.host = text.substr(0, slash), .session = text.substr(slash + 1)};
}

std::string HostText(const Snapshot& snapshot) {
  if (snapshot.host_id().empty()) return snapshot.host();
  return absl::StrCat(snapshot.host(), " (", snapshot.host_id().substr(0, kShownIdDigits), ")");
}

bool IsOfNamedHost(const Snapshot& snapshot, absl::string_view host) {
  return snapshot.host() == host ||
         (host.size() >= kMinIdPrefix && absl::StartsWith(snapshot.host_id(), absl::AsciiStrToLower(host)));
}

bool IsOfHost(const Snapshot& snapshot, const HostIdentity& host) {
  return AreOfHost(snapshot.host_id(), snapshot.host(), host);
}

bool IsOfHost(const SnapshotSummary& snapshot, const HostIdentity& host) {
  return AreOfHost(snapshot.host_id, snapshot.host, host);
}

absl::StatusOr<size_t> ResolveSnapshot(const Snapshots& snapshots, absl::string_view reference, const Asker& asker) {
  if (reference.empty()) return absl::InvalidArgumentError("snapshot: no name given");
  // A name goes before everything else that could be meant.
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (snapshots[i].name() == reference || snapshots[i].id() == reference) return i;
  }
  if (snapshots.empty()) {
    return absl::NotFoundError(absl::StrCat("snapshot ", Quoted(reference), ": there is none; none was taken yet"));
  }
  if (std::optional<Newest> newest = ParseNewest(reference, asker.now)) {
    return NewestOf(snapshots, reference, newest->whose, newest->not_after, asker.here);
  }
  return ByBeginning(snapshots, reference);
}

bool NamedInFull(const Snapshot& snapshot, absl::string_view reference) {
  return reference == snapshot.name() ||
         (reference.size() >= kMinIdPrefix && absl::StartsWith(snapshot.id(), reference));
}

}  // namespace still::store
