// A command tree like the real one in small, for the tests of what is made from it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tools/still/command_tree.h"

namespace still::cli {

struct TestCommands {
  TestCommands() {
    app.add_option("--state", text, "Where sessions live")->type_name(kDirectoryType);
    app.add_flag("--json,-j", flag, "Print JSON");
    app.fallthrough();
    app.require_subcommand(1);
    CLI::App* take = app.add_subcommand("snapshot", "Take a snapshot");
    take->add_option("session", text, "Its name")->required()->type_name(kSessionType);
    take->add_option("--quiesce", text, "How")->check(CLI::IsMember({"require", "try", "off"}))->default_str("try");
    take->add_option("--label", words, "key=value");
    CLI::App* forget = app.add_subcommand("forget", "Remove snapshots");
    forget->add_option("snapshots", words)->required()->type_name(kSnapshotType);
    CLI::App* send = app.add_subcommand("export", "Write an image to a file. Or so.");
    send->add_option("snapshot", text)->required()->type_name(kSnapshotType);
    send->add_option("file", text, ".hidden files, too, with \\ and -")->type_name(kFileType);
    CLI::App* key = app.add_subcommand("key", "Keys");
    key->require_subcommand(1);
    key->add_subcommand("add", "Add one");
    key->add_subcommand("list", "List them");
    app.add_subcommand("__hidden", "For programs")->group("");
    app.add_option("--secret", text)->group("");
  }
  CLI::App app{"Consistent snapshots.", "still"};
  std::string text;
  std::vector<std::string> words;
  bool flag = false;
};

}  // namespace still::cli
