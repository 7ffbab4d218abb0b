// Which snapshot a user means (store/repository.h, FindSnapshot). Pure: no repository, no clock.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/host_identity.h"
#include "base/status.h"
#include "proto/manifest.pb.h"
#include "store/catalog/rows.h"

namespace still::store {

struct Asker {
  absl::Time now;
  HostIdentity here;  // Empty: all hosts are alike.
};

// Whether this host took it. Snapshots of before there were ids are told apart by the host's name, and imports of that
// time, which have none, are everybody's.
bool IsOfHost(const stillpoint::manifest::v1::Snapshot& snapshot, const HostIdentity& host);
bool IsOfHost(const SnapshotSummary& snapshot, const HostIdentity& host);
// Whether HOST/.. means the one that took it: by its name, or the beginning of its id.
bool IsOfNamedHost(const stillpoint::manifest::v1::Snapshot& snapshot, absl::string_view host);
// For messages: name and id, as references take both.
std::string HostText(const stillpoint::manifest::v1::Snapshot& snapshot);

// What stands before the "@" of a reference, or before "latest": "", "web", "host/", "host/web".
struct Whose {
  absl::string_view host;  // Empty: this one.
  absl::string_view session;
};
Whose ParseWhose(absl::string_view text);

// `snapshots`: in the order of their commits. The index of the one that is meant. NOT_FOUND suggests a name that is near,
// or the hosts that have such a one; FAILED_PRECONDITION lists what it could be.
absl::StatusOr<size_t> ResolveSnapshot(const std::vector<stillpoint::manifest::v1::Snapshot>& snapshots,
                                       absl::string_view reference, const Asker& asker);

// False: the reference found this snapshot by the beginning of its name alone, or by what is newest just now (`latest`,
// `web@2d`). Enough to look at it, not to remove it: a script that removes "web" or "latest" twice must not remove two.
bool NamedInFull(const stillpoint::manifest::v1::Snapshot& snapshot, absl::string_view reference);

}  // namespace still::store
