#include "tools/still/command_tree.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/name_match.h"

namespace still::cli {
namespace {

// CLI11 writes types like "TEXT:{require,try,off}": the type, then what each validator says.
ValueSpec ValueOf(const CLI::Option& option) {
  ValueSpec value;
  const std::string text = option.get_type_name();
  value.type = text.substr(0, text.find(':'));
  const size_t open = text.find('{');
  const size_t close = text.find('}', open);
  if (open != std::string::npos && close != std::string::npos) {
    value.choices = absl::StrSplit(text.substr(open + 1, close - open - 1), ',', absl::SkipEmpty());
  }
  return value;
}

OptionSpec OptionOf(const CLI::Option& option) {
  OptionSpec spec;
  for (const std::string& name : option.get_lnames()) spec.names.push_back(absl::StrCat("--", name));
  for (const std::string& name : option.get_snames()) spec.names.push_back(absl::StrCat("-", name));
  spec.description = option.get_description();
  spec.default_text = option.get_default_str();
  spec.takes_value = option.get_type_size() != 0 && option.get_expected_max() > 0;
  spec.repeats = option.get_expected_max() >= CLI::detail::expected_max_vector_size;
  if (spec.takes_value) spec.value = ValueOf(option);
  return spec;
}

PositionalSpec PositionalOf(const CLI::Option& option) {
  return {.name = option.get_name(/*positional=*/true),
          .description = option.get_description(),
          .required = option.get_required(),
          .repeats = option.get_expected_max() >= CLI::detail::expected_max_vector_size,
          .value = ValueOf(option)};
}

CommandSpec Describe(const CLI::App& app, const std::string& path) {
  CommandSpec spec;
  spec.name = app.get_name();
  spec.path = path;
  spec.description = app.get_description();
  spec.footer = app.get_footer();
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional()) {
      spec.positionals.push_back(PositionalOf(*option));
    } else if (!option->get_group().empty()) {  // CLI11 hides what has no group.
      spec.options.push_back(OptionOf(*option));
    }
  }
  for (const CLI::App* command : app.get_subcommands([](const CLI::App* sub) { return !sub->get_group().empty(); })) {
    spec.commands.push_back(Describe(*command, absl::StrCat(path, " ", command->get_name())));
  }
  return spec;
}

// The innermost command that was recognised.
const CLI::App* Innermost(const CLI::App& app) {
  const CLI::App* found = &app;
  while (!found->get_subcommands().empty()) found = found->get_subcommands().front();
  return found;
}

std::vector<std::string> OptionNames(const CLI::App* app) {
  std::vector<std::string> names;
  for (; app != nullptr; app = app->get_parent()) {
    for (const OptionSpec& option : Describe(*app, "").options) {
      names.insert(names.end(), option.names.begin(), option.names.end());
    }
  }
  return names;
}

}  // namespace

const CommandSpec* CommandSpec::FindCommand(const std::string& word) const {
  auto found =
      std::find_if(commands.begin(), commands.end(), [&](const auto& command) { return command.name == word; });
  return found == commands.end() ? nullptr : &*found;
}

const OptionSpec* CommandSpec::FindOption(const std::string& word) const {
  for (const OptionSpec& option : options) {
    if (std::find(option.names.begin(), option.names.end(), word) != option.names.end()) return &option;
  }
  return nullptr;
}

CommandSpec DescribeCommands(const CLI::App& app) { return Describe(app, app.get_name()); }

std::string UsageError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = Innermost(app);
  const CommandSpec spec = Describe(*command, "");
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  std::string what = error.what();
  if (!unknown.empty()) {
    const std::string& word = unknown.front();
    if (absl::StartsWith(word, "-")) {
      const std::string name = word.substr(0, word.find('='));
      what = absl::StrCat("no option ", absl::CHexEscape(name), DidYouMean(name, OptionNames(command)));
    } else if (!spec.commands.empty()) {
      std::vector<std::string> names;
      for (const CommandSpec& sub : spec.commands) names.push_back(sub.name);
      what = absl::StrCat("no command \"", absl::CHexEscape(word), "\"", DidYouMean(word, names));
    } else {
      what = absl::StrCat("\"", absl::CHexEscape(word), "\" is one argument too many");
    }
  } else if (!spec.commands.empty()) {
    what = "which command?";
  }
  std::string path = command->get_name();
  for (const CLI::App* parent = command->get_parent(); parent != nullptr; parent = parent->get_parent()) {
    path = absl::StrCat(parent->get_name(), " ", path);
  }
  return absl::StrCat(what, " (", path, " --help)");
}

}  // namespace still::cli
