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

// Whom words mean, and what is wrong with those that mean nobody: they are no reason to leave out the others.
struct ChosenSessions {
  std::vector<std::string> names;  // Each once.
  absl::Status error;              // WorstError of the words.
};
// A pattern (*, ?) stands for all sessions that it fits; NOT_FOUND when that is none. `beginnings`: the beginning of a name
// will do. Another word is a name, whether or not there is such a session.
ChosenSessions ChooseSessions(const session::SessionRegistry& sessions, const std::vector<std::string>& words,
                              bool beginnings);

// What several things ended with: the messages of all that failed, and the code of the worst, which has the highest exit code.
absl::Status WorstError(const absl::Status& all, const absl::Status& next);

// Does it with all sessions that `words` name (ChooseSessions), `at_once` at the same time, also when it fails with one or a
// word means none; what is returned names each that failed (WorstError), after the sentences about the others. JSON: of one name its object, of
// more, or a pattern, a list.
absl::Status WithEachSession(Context& context, const std::vector<std::string>& words, bool beginnings, size_t at_once,
                             const OnSession& action);

}  // namespace still::cli
