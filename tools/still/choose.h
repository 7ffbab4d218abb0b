// Which of several things a command means: names, and patterns of them, in the same way for all commands.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/host_identity.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "store/repository.h"

namespace still::cli {

// * and ? stand for any letters, and for any one.
bool IsPattern(const std::string& word);
// For commands that are for one session: INVALID_ARGUMENT when the word is a pattern of several.
absl::Status ExpectOneSession(const std::string& word);
// Whether one of the words is the text, or fits it. No words fit everything.
bool FitsOneOf(const std::vector<std::string>& words, const std::string& text);

// The names that `words` mean, in this order, each once: `resolve` says which name a word is that is no pattern; a pattern is
// all of `names` that it fits, sorted, and NOT_FOUND when that is none. `kind` is for the message.
absl::StatusOr<std::vector<std::string>> ChooseNames(
    const std::string& kind, const std::vector<std::string>& words, std::vector<std::string> names,
    const std::function<absl::StatusOr<std::string>(const std::string& word)>& resolve);

// What a word is compared with in FitsOnHost: a snapshot's name, or that of its session.
using TextOfSnapshot = std::function<const std::string&(const manifestpb::Snapshot& snapshot)>;

// Indices of the snapshots that a name or a pattern means: of `here`, as all references do (store/repository.h), unless a
// host stands before it: "host/web-*", by its name or the beginning of its id; "*/web-*": of all hosts. NOT_FOUND when it is
// none, with the hosts that have such; FAILED_PRECONDITION when several hosts are called so.
absl::StatusOr<std::vector<size_t>> FitsOnHost(const std::vector<manifestpb::Snapshot>& snapshots,
                                               const std::string& word, const TextOfSnapshot& text,
                                               const HostIdentity& here);

// The ids of what a pattern of sessions means to whoever wants one snapshot of each machine: the newest of each session that
// FitsOnHost, sorted. `snapshots`: in the order of their commits.
absl::StatusOr<std::vector<std::string>> NewestOfSessions(const std::vector<manifestpb::Snapshot>& snapshots,
                                                          const std::string& pattern, const HostIdentity& here);

// Snapshots by references, and by patterns of their names, of which each means those of `here` alone (FitsOnHost). In the
// order of the words, and of a pattern in that of the commits.
absl::StatusOr<std::vector<manifestpb::Snapshot>> ChooseSnapshots(store::Repository& repository,
                                                                  const std::vector<std::string>& words,
                                                                  const HostIdentity& here);

}  // namespace still::cli
