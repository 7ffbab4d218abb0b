// Doing something with one session or with several, in the same way for all commands.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/still/context.h"

namespace still::cli {

// What was done with one session: for people, and as JSON.
struct Done {
  std::string sentence;
  nlohmann::json json;
};
using OnSession = std::function<absl::StatusOr<Done>(const std::string& name)>;

// Does it with all sessions that `words` name, `at_once` at the same time, also when it fails with one; the first error is
// returned, after the sentences about the others. A pattern (*, ?) stands for all that it fits; NOT_FOUND when that is none.
// `beginnings`: the beginning of a name will do. JSON: of one name its object, of more, or a pattern, a list.
absl::Status WithEachSession(Context& context, const std::vector<std::string>& words, bool beginnings, size_t at_once,
                             const OnSession& action);

}  // namespace still::cli
