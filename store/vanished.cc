#include "store/vanished.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "store/notes.h"

namespace still::store {
namespace {

constexpr size_t kShortestId = 4;  // As of every reference (snapshot_reference.h).

}  // namespace

CatalogVanished VanishedRow(const CatalogSnapshot& row, absl::Time noticed) {
  return {.id = row.id,
          .name = row.name,
          .session = row.session,
          .host = row.host,
          .noticed = noticed,
          .manifest = row.manifest};
}

absl::StatusOr<std::vector<CatalogVanished>> FindVanished(RepositoryState& state) {
  STILL_ASSIGN_OR_RETURN(const std::vector<CatalogVanished> known, state.catalog().ListVanished());
  std::vector<CatalogVanished> vanished;
  for (const CatalogVanished& one : known) {
    STILL_ASSIGN_OR_RETURN(const bool forgotten, IsForgotten(state, one.id));
    if (!forgotten) vanished.push_back(one);
  }
  return vanished;
}

std::string Describe(const CatalogVanished& vanished) {
  const std::string id = vanished.id.substr(0, 12);
  const std::string of = absl::StrCat("of ", vanished.session, vanished.host.empty() ? "" : " on ", vanished.host);
  return vanished.name.empty() ? absl::StrCat(id, " (", of, ")") : absl::StrCat(vanished.name, " (", id, ", ", of, ")");
}

absl::Status CheckNotVanished(RepositoryState& state, absl::string_view reference) {
  STILL_ASSIGN_OR_RETURN(const std::vector<CatalogVanished> vanished, FindVanished(state));
  for (const CatalogVanished& one : vanished) {
    const bool by_id = reference.size() >= kShortestId && absl::StartsWith(one.id, reference);
    if (one.name != reference && !by_id) continue;
    return absl::NotFoundError(absl::StrCat("snapshot ", Describe(one),
                                            " has vanished though nobody has forgotten it; `still repair` puts back "
                                            "what is known of it"));
  }
  return absl::OkStatus();
}

absl::Status CheckNothingVanished(RepositoryState& state) {
  STILL_ASSIGN_OR_RETURN(const std::vector<CatalogVanished> vanished, FindVanished(state));
  if (vanished.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "prune: ", vanished.size() == 1 ? "a snapshot has" : absl::StrCat(vanished.size(), " snapshots have"),
      " vanished though nobody has forgotten ", vanished.size() == 1 ? "it: " : "them: ", Describe(vanished.front()),
      vanished.size() > 1 ? " and others" : "",
      "; `still repair` puts back what is known, `still forget ID` gives up what is not wanted"));
}

absl::StatusOr<bool> HasItsData(RepositoryState& state, const CatalogVanished& vanished) {
  STILL_ASSIGN_OR_RETURN(const auto snapshot, ParseManifest(vanished.manifest, vanished.id));
  for (const auto& image : snapshot.images()) {
    if (NodeId::FromBytes(image.root()).is_zero()) continue;
    STILL_ASSIGN_OR_RETURN(const std::vector<NodePlace> places, state.catalog().FindNode(image.root()));
    if (places.empty()) return false;
  }
  return true;
}

absl::Status PutBack(RepositoryState& state, const CatalogVanished& vanished) {
  STILL_ASSIGN_OR_RETURN(const auto snapshot, ParseManifest(vanished.manifest, vanished.id));
  return state.objects->Put(SnapshotObject(vanished.id), EncodeManifest(state, snapshot));
}

}  // namespace still::store
