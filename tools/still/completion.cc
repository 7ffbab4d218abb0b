#include "tools/still/completion.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace still::cli {
namespace {

// Bash splits words at '=', ':' and '@', which stand in our references; the words are read from the line instead, and
// what bash holds for an earlier word is cut off the answers.
constexpr char kBash[] = R"script(# bash completion for still
_still() {
  local line="${COMP_LINE:0:COMP_POINT}" answer prefix current
  local -a words
  read -ra words <<<"$line"
  [[ "$line" == *[[:space:]] ]] && words+=("")
  current="${words[-1]}"
  prefix="${current%"${current##*[=:@]}"}"
  COMPREPLY=()
  while IFS=$'\t' read -r answer _; do
    case "$answer" in
      :files) compopt -o filenames 2>/dev/null; mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "${current#"$prefix"}") ;;
      :directories) compopt -o filenames 2>/dev/null; mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "${current#"$prefix"}") ;;
      *) COMPREPLY+=("${answer#"$prefix"}") ;;
    esac
  done < <("${words[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
}
complete -F _still still
)script";

constexpr char kZsh[] = R"script(#compdef still
_still() {
  local answer description
  local -a described
  while IFS=$'\t' read -r answer description; do
    case "$answer" in
      :files) _files ;;
      :directories) _files -/ ;;
      *) described+=("${answer//:/\\:}${description:+:$description}") ;;
    esac
  done < <("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
  (( ${#described} )) && _describe still described
}
compdef _still still
)script";

constexpr char kFish[] = R"script(# fish completion for still
function __still_complete
    set -l words (commandline --tokenize --current-process --cut-at-cursor) (commandline --current-token --cut-at-cursor)
    for answer in ($words[1] __complete -- $words[2..-1] 2>/dev/null)
        switch $answer
            case ':files'
                __fish_complete_path (commandline --current-token --cut-at-cursor)
            case ':directories'
                __fish_complete_directories (commandline --current-token --cut-at-cursor)
            case '*'
                echo $answer
        end
    end
end
complete --command still --no-files --arguments '(__still_complete)'
)script";

class Completer {
 public:
  Completer(const CommandSpec& root, const ValueSource& values) : path_({&root}), values_(values) {}

  Completion Run(const std::vector<std::string>& words) {
    for (size_t i = 0; i + 1 < words.size(); ++i) Pass(words[i]);
    const std::string current = words.empty() ? "" : words.back();
    const size_t equals = current.find('=');
    if (pending_ != nullptr) {
      OfferValues(pending_->value, current, "");
    } else if (!only_positionals_ && absl::StartsWith(current, "--") && equals != std::string::npos) {
      const OptionSpec* option = FindOption(current.substr(0, equals));
      if (option != nullptr && option->takes_value) {
        OfferValues(option->value, current.substr(equals + 1), current.substr(0, equals + 1));
      }
    } else if (!only_positionals_ && absl::StartsWith(current, "-")) {
      OfferOptions(current);
    } else {
      OfferArguments(current);
    }
    return std::move(result_);
  }

 private:
  // A whole word before the cursor.
  void Pass(const std::string& word) {
    if (pending_ != nullptr) {
      pending_ = nullptr;
    } else if (!only_positionals_ && word == "--") {
      only_positionals_ = true;
    } else if (!only_positionals_ && absl::StartsWith(word, "-")) {
      const OptionSpec* option = FindOption(word);
      if (option != nullptr && option->takes_value) pending_ = option;
    } else if (const CommandSpec* command = path_.back()->FindCommand(word); command != nullptr && positional_ == 0) {
      path_.push_back(command);
    } else {
      ++positional_;
    }
  }

  // Options of a command may stand behind its subcommands (CLI11's fallthrough).
  const OptionSpec* FindOption(const std::string& word) const {
    for (auto command = path_.rbegin(); command != path_.rend(); ++command) {
      if (const OptionSpec* option = (*command)->FindOption(word)) return option;
    }
    return nullptr;
  }

  void Offer(const std::string& prefix, const Completion::Candidate& candidate, const std::string& current) {
    if (!absl::StartsWith(candidate.word, current)) return;
    result_.candidates.push_back({prefix + candidate.word, candidate.description});
  }

  void OfferOptions(const std::string& current) {
    for (auto command = path_.rbegin(); command != path_.rend(); ++command) {
      for (const OptionSpec& option : (*command)->options) {
        const bool known = std::any_of(result_.candidates.begin(), result_.candidates.end(),
                                       [&](const auto& candidate) { return candidate.word == option.names.front(); });
        if (!known) Offer("", {option.names.front(), option.description}, current);
      }
    }
  }

  void OfferArguments(const std::string& current) {
    const CommandSpec& command = *path_.back();
    if (positional_ == 0) {
      for (const CommandSpec& sub : command.commands) Offer("", {sub.name, sub.description}, current);
    }
    if (command.positionals.empty()) return;
    const size_t last = command.positionals.size() - 1;
    if (positional_ > last && !command.positionals[last].repeats) return;
    OfferValues(command.positionals[std::min(positional_, last)].value, current, "");
  }

  void OfferValues(const ValueSpec& value, const std::string& current, const std::string& prefix) {
    for (const std::string& choice : value.choices) Offer(prefix, {choice, ""}, current);
    if (value.type == kFileType) {
      result_.files = true;
    } else if (value.type == kDirectoryType) {
      result_.directories = true;
    } else {
      for (const Completion::Candidate& candidate : values_(value.type)) Offer(prefix, candidate, current);
    }
  }

  std::vector<const CommandSpec*> path_;  // From the root to the command that was given.
  const ValueSource& values_;
  const OptionSpec* pending_ = nullptr;  // The next word is its value.
  bool only_positionals_ = false;        // "--" was given.
  size_t positional_ = 0;                // How many were given.
  Completion result_;
};

}  // namespace

Completion Complete(const CommandSpec& root, const std::vector<std::string>& words, const ValueSource& values) {
  return Completer(root, values).Run(words);
}

absl::StatusOr<std::string> CompletionScript(const std::string& shell) {
  if (shell == "bash") return std::string(kBash);
  if (shell == "zsh") return std::string(kZsh);
  if (shell == "fish") return std::string(kFish);
  return absl::InvalidArgumentError(absl::StrCat("completion for ", shell, ": there is bash, zsh and fish"));
}

}  // namespace still::cli
