// restore, rollback, hot.
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absolute_path.h"
#include "base/find_sibling.h"
#include "base/name_match.h"
#include "base/names.h"
#include "base/quantity.h"
#include "snapshot/restore.h"
#include "snapshot/rollback.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

constexpr uint32_t kMaxCount = 1000;

constexpr char kPatienceHelp[] =
    "The guest has its own identity within this time, or the session ends (default: its agent answers within 60s, and "
    "it "
    "has its identity within 6m)";

uint64_t Micros(absl::Duration duration) { return static_cast<uint64_t>(absl::ToInt64Microseconds(duration)); }

nlohmann::json JsonOf(const snapshot::RestoredSession& session) {
  return {{"session", session.name},
          {"directory", session.directory},
          {"start_us", Micros(session.started)},
          {"running_us", session.report.running_us()},
          {"agent_us", session.report.agent_us()},
          {"adopted_us", session.report.adopted_us()},
          {"warnings", session.report.warnings()}};
}

void PrintWarnings(const snapshot::RestoredSession& session) {
  for (const std::string& warning : session.report.warnings()) std::cout << "  note: " << Printable(warning) << "\n";
}

struct RestoreArguments {
  std::string snapshot;
  std::string session;
  uint32_t count = 0;
  bool cold = false;
  bool keep_identity = false;
  bool without_agent = false;
  std::string memory;
  uint32_t vcpus = 0;
  std::string accelerator;
  std::string agent_timeout;
  bool lazy = false;
  bool no_hydrate = false;
  std::string hydrate_rate;
};

// The disks of a lazy restore are served by this same program, and opened as the repository was opened now.
absl::StatusOr<snapshot::LazyDiskOptions> LazyDisks(const store::RepositoryOptions& opened,
                                                    const RestoreArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(std::string self, FindSibling("still", "STILL_PROGRAM"));
  snapshot::LazyDiskOptions lazy{.passphrase = opened.credentials.passphrase, .hydrate = !arguments.no_hydrate};
  STILL_ASSIGN_OR_RETURN(const std::string repository, AbsolutePath(opened.path));
  lazy.server_command = {self, "--repo", repository};
  if (lazy.passphrase.empty() && !opened.credentials.key_file.empty()) {
    STILL_ASSIGN_OR_RETURN(const std::string key_file, AbsolutePath(opened.credentials.key_file));
    lazy.server_command.insert(lazy.server_command.end(), {"--key-file", key_file});
  }
  for (const std::string& word : lazy.server_command) {
    if (IsUtf8(word)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        Quoted(word), ": it is not UTF-8, and the session stores it; restore without --lazy, or give it a link"));
  }
  lazy.server_command.emplace_back("serve");
  if (!arguments.hydrate_rate.empty()) {
    STILL_ASSIGN_OR_RETURN(lazy.hydrate_bytes_per_second, ParseSize(arguments.hydrate_rate));
  }
  return lazy;
}

absl::Status Restore(Context& context, const RestoreArguments& arguments) {
  snapshot::RestoreOptions options{.snapshot = arguments.snapshot,
                                   .cold = arguments.cold,
                                   .keep_identity = arguments.keep_identity,
                                   .without_agent = arguments.without_agent,
                                   .vcpus = arguments.vcpus,
                                   .accelerator = arguments.accelerator};
  if (arguments.count == 0) options.sessions = {arguments.session};
  for (uint32_t i = 1; i <= arguments.count; ++i) {
    options.sessions.push_back(absl::StrCat(arguments.session, "-", i));
  }
  if (!arguments.memory.empty()) {
    STILL_ASSIGN_OR_RETURN(options.memory_bytes, ParseSize(arguments.memory));
  }
  STILL_RETURN_IF_ERROR(ParsePatience(arguments.agent_timeout, options.patience));
  STILL_ASSIGN_OR_RETURN(RepositoryAccess access, context.OpenRepositoryWithAccess());
  if (arguments.lazy) {
    STILL_ASSIGN_OR_RETURN(options.lazy, LazyDisks(access.options, arguments));
  }
  options.progress = context.MakeProgress();
  absl::StatusOr<snapshot::Restored> restored =
      snapshot::RestoreSnapshot(*access.repository, context.sessions(), options);
  context.ProgressDone();
  if (!restored.ok()) return restored.status();
  // What concerns one session stands at the top too: most restores make one.
  nlohmann::json json = JsonOf(restored->sessions[0]);
  json.update({{"snapshot", restored->snapshot.id()},
               {"warm", restored->warm},
               {"hot", restored->hot},
               {"materialise_us", Micros(restored->materialised)}});
  for (const snapshot::RestoredSession& session : restored->sessions) json["sessions"].push_back(JsonOf(session));
  context.Print(json, [&] {
    for (const snapshot::RestoredSession& session : restored->sessions) {
      std::cout << "session " << session.name << (restored->warm ? " goes on from " : " has booted the disks of ")
                << restored->snapshot.id().substr(0, 12) << " (" << (restored->hot ? "memory was hot, " : "")
                << "read in " << FormatMicros(Micros(restored->materialised)) << ", ready "
                << FormatMicros(Micros(session.started)) << " later)\n";
      PrintWarnings(session);
    }
  });
  return absl::OkStatus();
}

struct RollbackArguments {
  snapshot::RollbackOptions options;
  std::string agent_timeout;
};

absl::Status RunRollback(Context& context, RollbackArguments arguments) {
  STILL_RETURN_IF_ERROR(ParsePatience(arguments.agent_timeout, arguments.options.patience));
  STILL_RETURN_IF_ERROR(ExpectOneSession(arguments.options.session));
  STILL_ASSIGN_OR_RETURN(arguments.options.session, context.sessions().Resolve(arguments.options.session));
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  arguments.options.progress = context.MakeProgress();
  absl::StatusOr<snapshot::RolledBack> done = snapshot::Rollback(*repository, context.sessions(), arguments.options);
  context.ProgressDone();
  if (!done.ok()) return done.status();
  nlohmann::json json = JsonOf(done->session);
  json.update({{"snapshot", done->snapshot.id()},
               {"safety", {{"id", done->safety.id()}, {"name", done->safety.name()}}},
               {"warm", done->warm},
               {"down_us", Micros(done->down)}});
  context.Print(json, [&] {
    std::cout << "session " << done->session.name << " is back at " << done->snapshot.id().substr(0, 12)
              << " (it stood still for " << FormatMicros(Micros(done->down)) << ")\n"
              << "  as it was before: snapshot \"" << done->safety.name() << "\"\n";
    PrintWarnings(done->session);
  });
  return absl::OkStatus();
}

absl::Status Hot(Context& context, bool drop) {
  snapshot::HotImages images(snapshot::HotImageOptions::FromEnvironment());
  uint64_t dropped = 0;
  if (drop) {
    STILL_ASSIGN_OR_RETURN(dropped, images.DropUnused());
  }
  STILL_ASSIGN_OR_RETURN(std::vector<snapshot::HotImageInfo> list, images.List());
  nlohmann::json entries = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows = {{"IMAGE", "SIZE", "MEMORY", "LAST USED", "IN USE"}};
  for (const snapshot::HotImageInfo& image : list) {
    entries.push_back(
        {{"image", image.key}, {"size", image.size}, {"resident", image.resident}, {"in_use", image.in_use}});
    rows.push_back({image.key.substr(0, 29), FormatBytes(image.size), FormatBytes(image.resident),
                    FormatUnixNanos(absl::ToUnixNanos(image.used)), image.in_use ? "yes" : "no"});
  }
  const snapshot::HotImageOptions& options = images.options();
  context.Print({{"directory", options.directory},
                 {"limit", options.limit_bytes},
                 {"dropped", dropped},
                 {"images", std::move(entries)}},
                [&] {
                  if (drop) std::cout << FormatBytes(dropped) << " of memory given back\n";
                  std::cout << FormatTable(rows) << "at most " << FormatBytes(options.limit_bytes) << " in "
                            << options.directory << "\n";
                });
  return absl::OkStatus();
}

void AddRestore(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<RestoreArguments>();
  CLI::App* restore = context.AddCommand(app, "restore", "Start a snapshot as a new session",
                                         [=](Context& c) { return Restore(c, *arguments); });
  restore->add_option("snapshot", arguments->snapshot, "Name, id, or latest")->required()->type_name(kSnapshotType);
  restore->add_option("--as", arguments->session, "Name of the new session")->required()->type_name(kNameType);
  restore->add_option("--count", arguments->count, "So many sessions, called NAME-1, NAME-2, ...")
      ->check(CLI::Range(1U, kMaxCount));
  restore->add_flag("--cold", arguments->cold, "Boot the disks instead of going on with the memory");
  restore->add_flag("--lazy", arguments->lazy,
                    "Start at once; read the disks from the repository when they are needed");
  restore->add_flag("--no-hydrate", arguments->no_hydrate,
                    "Lazy: do not complete the disks in the background (`still hydrate` does later)");
  restore->add_option("--hydrate-rate", arguments->hydrate_rate, "Lazy: complete them with so many bytes a second");
  restore->add_flag("--keep-identity", arguments->keep_identity,
                    "Keep names, keys and addresses: for a machine that is gone");
  restore->add_flag("--without-agent", arguments->without_agent,
                    "Leave the guest as it was saved, random numbers and clock included");
  restore->add_option("--memory", arguments->memory, "Another memory size (cold)");
  restore->add_option("--cpus", arguments->vcpus, "Another number of cpus (cold)");
  restore->add_option("--accel", arguments->accelerator, "kvm or tcg (default: as saved; cold: what there is)");
  restore->add_option("--agent-timeout", arguments->agent_timeout, kPatienceHelp);
}

}  // namespace

void AddRestoreCommands(CLI::App& app, Context& context) {
  AddRestore(app, context);

  auto arguments = std::make_shared<RollbackArguments>();
  CLI::App* rollback = context.AddCommand(app, "rollback", "Put a running session back to a snapshot",
                                          [=](Context& c) { return RunRollback(c, *arguments); });
  rollback->add_option("session", arguments->options.session, "Its whole name")
      ->required()
      ->type_name(kExactSessionType);
  rollback->add_option("snapshot", arguments->options.snapshot, "Name, id, or latest")
      ->required()
      ->type_name(kSnapshotType);
  rollback->add_flag("--cold", arguments->options.cold, "Boot the disks instead of going on with the memory");
  rollback->add_flag("--other-machine", arguments->options.other_machine,
                     "The snapshot may be of another machine, whose disks and memory then replace this one's");
  rollback->add_flag("--without-agent", arguments->options.without_agent,
                     "Leave the guest as it was saved, random numbers and clock included");
  rollback->add_option("--safety-name", arguments->options.safety_name,
                       "Name of the snapshot that is taken first (default: SESSION-before-rollback-TIME)");
  rollback->add_option("--agent-timeout", arguments->agent_timeout, kPatienceHelp);

  auto drop = std::make_shared<bool>(false);
  CLI::App* hot = context.AddCommand(app, "hot", "List the memory images that are kept ready",
                                     [=](Context& c) { return Hot(c, *drop); });
  hot->add_flag("--drop", *drop, "Drop those that no session uses");
}

}  // namespace still::cli
