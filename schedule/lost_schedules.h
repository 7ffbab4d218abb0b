// Schedules that an earlier book had: when book.db is lost, an empty one takes its place, and nothing would be planned any
// more without anybody being told. The repository still knows who took its snapshots. So the first who has a new book together
// with the repository notes there which schedules were at work on this host, and each is told (Event::Kind::kLost) until it is
// added again, or removed.
#pragma once

#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/host_identity.h"
#include "base/status.h"
#include "store/book/book.h"
#include "store/catalog/catalog.h"
#include "store/repository.h"

namespace still::schedule {

// In the book's remembered words: the seconds since 1970 of the newest snapshot.
std::string LostKey(absl::string_view schedule);
// Name, and the point of its newest snapshot.
std::map<std::string, absl::Time> ParseLost(const std::map<std::string, std::string>& remembered);

// Whether this is a new book, noted in it once. To be called first by whoever opens it.
absl::Status NoteWhetherNew(store::Book& book);
// Of a new book, once: notes the schedules that it does not have and that lately took snapshots of this host's machines.
// `catalog`: the repository's.
absl::Status NoteLostSchedules(store::Book& book, store::Repository& repository, store::Catalog& catalog,
                               const HostIdentity& here, absl::Time now);
// Somebody does not want it any more. Whether it was noted as lost.
absl::StatusOr<bool> ForgetLost(store::Book& book, absl::string_view schedule);

}  // namespace still::schedule
