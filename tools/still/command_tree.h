// The commands of `still` as values: what CLI11 knows for parsing and --help, read out for shell completion, man pages
// and suggestions, so that all of them say the same.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace still::cli {

// Type names of options and arguments; they say what the words stand for, and what a shell can offer for them. Give
// them with ->type_name(kSessionType).
inline constexpr char kSessionType[] = "SESSION";    // Of this host; a beginning of its name is resolved (context.h).
inline constexpr char kSnapshotType[] = "SNAPSHOT";  // A reference (store/repository.h, FindSnapshot).
inline constexpr char kExactSessionType[] = "SESSION-NAME";  // Of this host, in full: for what cannot be undone.
inline constexpr char kFileType[] = "FILE";
inline constexpr char kDirectoryType[] = "DIRECTORY";
inline constexpr char kGuestPathType[] = "PATH";  // SNAPSHOT:/path: what a guest calls its files, in any bytes.
inline constexpr char kNameType[] = "NAME";       // A new one.

struct ValueSpec {
  std::string type;                  // One of the above, or what CLI11 says: TEXT, UINT, ...
  std::vector<std::string> choices;  // The only values allowed; empty: any.
};

struct OptionSpec {
  std::vector<std::string> names;  // With their dashes; the long ones first.
  std::string description;
  std::string default_text;
  bool takes_value = false;
  bool repeats = false;
  ValueSpec value;
};

struct PositionalSpec {
  std::string name;
  std::string description;
  bool required = false;
  bool repeats = false;
  ValueSpec value;
};

struct CommandSpec {
  std::string name;  // "add"
  std::string path;  // "still key add"
  std::string description;
  std::string footer;
  std::vector<OptionSpec> options;
  std::vector<PositionalSpec> positionals;
  std::vector<CommandSpec> commands;  // Without the hidden ones.

  const CommandSpec* FindCommand(const std::string& word) const;
  const OptionSpec* FindOption(const std::string& word) const;
};

CommandSpec DescribeCommands(const CLI::App& app);

// One line that says what is wrong with the command line and what may have been meant. `app` has parsed and thrown.
std::string UsageError(const CLI::App& app, const CLI::ParseError& error);

}  // namespace still::cli
