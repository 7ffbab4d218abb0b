// Which of several things a command means: names, and patterns of them, in the same way for all commands.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "store/repository.h"

namespace still::cli {

// * and ? stand for any letters, and for any one.
bool IsPattern(const std::string& word);
// Whether one of the words is the text, or fits it. No words fit everything.
bool FitsOneOf(const std::vector<std::string>& words, const std::string& text);

// The names that `words` mean, in this order, each once: `resolve` says which name a word is that is no pattern; a pattern is
// all of `names` that it fits, sorted, and NOT_FOUND when that is none. `kind` is for the message.
absl::StatusOr<std::vector<std::string>> ChooseNames(
    const std::string& kind, const std::vector<std::string>& words, std::vector<std::string> names,
    const std::function<absl::StatusOr<std::string>(const std::string& word)>& resolve);

// The same with snapshots: references (store/repository.h), and patterns of their names. In the order of the words, and
// of a pattern in that of the commits.
absl::StatusOr<std::vector<manifestpb::Snapshot>> ChooseSnapshots(store::Repository& repository,
                                                                  const std::vector<std::string>& words);

}  // namespace still::cli
