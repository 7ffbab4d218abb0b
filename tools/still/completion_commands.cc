// completion; and, for scripts and the build: __complete, __man.
#include <algorithm>
#include <iostream>
#include <memory>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tools/still/completion.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/man_page.h"

namespace still::cli {
namespace {

using Candidates = std::vector<Completion::Candidate>;

Candidates SessionNames(const Context& context) {
  Candidates names;
  if (auto sessions = context.sessions().List(); sessions.ok()) {
    for (const session::SessionEntry& entry : *sessions)
      names.push_back({entry.name, entry.alive ? "running" : "ended"});
  }
  return names;
}

// Newest first. An encrypted repository whose key is not in the environment has nothing to offer.
Candidates SnapshotReferences(const Context& context) {
  auto repository = context.OpenRepositoryQuietly();
  if (!repository.ok()) return {};
  auto snapshots = (*repository)->ListSnapshots();
  if (!snapshots.ok() || snapshots->empty()) return {};
  Candidates references;
  std::set<std::string> sessions;
  for (auto snapshot = snapshots->rbegin(); snapshot != snapshots->rend(); ++snapshot) {
    references.push_back({snapshot->name().empty() ? snapshot->id().substr(0, 12) : snapshot->name(),
                          absl::StrCat(snapshot->session(), " ", FormatUnixNanos(snapshot->point_unix_ns()))});
    sessions.insert(snapshot->session());
  }
  references.push_back({"latest", "the newest of all"});
  for (const std::string& session : sessions) {
    references.push_back({absl::StrCat(session, "@latest"), "the newest of this session"});
  }
  return references;
}

absl::Status PrintCompletions(Context& context, const CLI::App& app, const std::vector<std::string>& words) {
  context.ReadGlobalOptions(words);
  const Completion completion = Complete(DescribeCommands(app), words, [&](const std::string& type) -> Candidates {
    if (type == kSessionType || type == kExactSessionType) return SessionNames(context);
    if (type == kSnapshotType) return SnapshotReferences(context);
    return {};
  });
  for (const Completion::Candidate& candidate : completion.candidates) {
    // Names may come from a guest: what would break a line is not offered.
    if (Printable(candidate.word) != candidate.word) continue;
    std::cout << candidate.word << "\t" << Printable(candidate.description) << "\n";
  }
  if (completion.files) std::cout << ":files\n";
  if (completion.directories) std::cout << ":directories\n";
  return absl::OkStatus();
}

absl::Status WriteManPages(const CLI::App& app, const std::string& directory, const std::string& date) {
  STILL_RETURN_IF_ERROR(MakeDirectories(directory));
  for (const auto& [name, text] : ManPages(DescribeCommands(app), STILL_VERSION, date)) {
    STILL_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(directory, name), text));
  }
  return absl::OkStatus();
}

}  // namespace

void AddCompletionCommands(CLI::App& app, Context& context) {
  auto shell = std::make_shared<std::string>();
  CLI::App* completion =
      context.AddCommand(app, "completion", "Print the completion script of a shell", [=](Context& c) -> absl::Status {
        STILL_ASSIGN_OR_RETURN(std::string script, CompletionScript(*shell));
        c.Print({{"shell", *shell}, {"script", script}}, [&] { std::cout << script; });
        return absl::OkStatus();
      });
  completion->add_option("shell", *shell, "Load it with: . <(still completion bash)")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));

  CLI::App* root = &app;
  auto words = std::make_shared<std::vector<std::string>>();
  CLI::App* complete = context.AddHiddenCommand(app, "__complete", "Candidates for the last word",
                                                [=](Context& c) { return PrintCompletions(c, *root, *words); });
  complete->add_option("words", *words);

  auto directory = std::make_shared<std::string>();
  auto date = std::make_shared<std::string>();
  CLI::App* man = context.AddHiddenCommand(app, "__man", "Write the man pages",
                                           [=](Context&) { return WriteManPages(*root, *directory, *date); });
  man->add_option("directory", *directory)->required();
  man->add_option("--date", *date, "YYYY-MM-DD")->required();
}

}  // namespace still::cli
