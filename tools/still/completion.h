// Shell completion: what the word under the cursor can become. The shells' scripts are a few lines each, which ask the
// program (`still __complete`), so that they never know less than it does.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/still/command_tree.h"

namespace still::cli {

struct Completion {
  struct Candidate {
    std::string word;
    std::string description;  // One line; may be empty.
  };
  std::vector<Candidate> candidates;
  bool files = false;        // Names of files besides.
  bool directories = false;  // Names of directories besides.
};

// The candidates for values of a type ("SESSION"); all of them, Complete() picks.
using ValueSource = std::function<std::vector<Completion::Candidate>(const std::string& type)>;

// `words`: what stands on the command line after the program's name, up to the cursor; the last one is being written
// and may be empty.
Completion Complete(const CommandSpec& root, const std::vector<std::string>& words, const ValueSource& values);

// The script for a shell: bash, zsh or fish (INVALID_ARGUMENT for another one).
absl::StatusOr<std::string> CompletionScript(const std::string& shell);

}  // namespace still::cli
