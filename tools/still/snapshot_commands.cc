// snapshot, list, show, prune, diff.
#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/quantity.h"
#include "snapshot/take_snapshot.h"
#include "tools/still/adopted_session.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/each_session.h"
#include "tools/still/format.h"
#include "tools/still/labels.h"
#include "tools/still/table.h"
#include "tools/still/vanished.h"

namespace still::cli {
namespace {

using manifestpb::Snapshot;

std::string LevelName(const manifestpb::Consistency& consistency) {
  return absl::AsciiStrToLower(manifestpb::Consistency::Level_Name(consistency.level()));
}

std::string KindName(const Snapshot& snapshot) {
  return snapshot.kind() == Snapshot::DISK_AND_MEMORY ? "disk+memory" : "disk";
}

struct SnapshotArguments {
  std::vector<std::string> sessions;
  std::string name;
  std::vector<std::string> labels;
  std::string quiesce = "try";
  std::string hooks = "fail";
  std::string lease = "10s";
  bool disk_only = false;
  std::string memory = "try";
  std::string max_pause = "2s";
  bool skip_presync = false;
  bool track_memory = false;
  std::string pin_space = "0";
  AdoptArguments adopt;
};

absl::StatusOr<snapshot::TakeOptions> TakeOptionsOf(const SnapshotArguments& arguments) {
  snapshot::TakeOptions options;
  options.name = arguments.name;
  options.memory = !arguments.disk_only;
  options.skip_presync = arguments.skip_presync;
  options.track_memory = arguments.track_memory;
  static const std::map<std::string, sessionpb::QuiescePolicy> kQuiesce = {
      {"require", sessionpb::QUIESCE_REQUIRE}, {"try", sessionpb::QUIESCE_TRY}, {"off", sessionpb::QUIESCE_OFF}};
  static const std::map<std::string, guestpb::HookPolicy> kHooks = {
      {"fail", guestpb::HOOK_FAIL}, {"warn", guestpb::HOOK_WARN}, {"skip", guestpb::HOOK_SKIP}};
  static const std::map<std::string, sessionpb::MemoryPolicy> kMemory = {
      {"require", sessionpb::MEMORY_REQUIRE}, {"try", sessionpb::MEMORY_TRY}, {"stop", sessionpb::MEMORY_STOP}};
  options.memory_policy = kMemory.at(arguments.memory);  // Checked by CLI11, like the next two.
  options.quiesce = kQuiesce.at(arguments.quiesce);
  options.hook_policy = kHooks.at(arguments.hooks);
  STILL_ASSIGN_OR_RETURN(options.pin_space_limit, ParseSize(arguments.pin_space));
  STILL_ASSIGN_OR_RETURN(options.freeze_lease, ParseDurationFlag(arguments.lease));
  STILL_ASSIGN_OR_RETURN(options.max_pause, ParseDurationFlag(arguments.max_pause));
  STILL_ASSIGN_OR_RETURN(options.labels, ParseLabels(arguments.labels));
  return options;
}

std::string TakenText(const Snapshot& snapshot) {
  std::string text = absl::StrCat(
      "snapshot ", snapshot.id().substr(0, 12),
      snapshot.name().empty() ? "" : absl::StrCat(" \"", snapshot.name(), "\""), " of ", snapshot.session(), ": ",
      KindName(snapshot), ", ", LevelName(snapshot.consistency()), "-consistent\n  paused ",
      FormatMicros(snapshot.windows().pause_us()), ", frozen ", FormatMicros(snapshot.windows().freeze_us()), ", read ",
      FormatBytes(snapshot.drain().bytes_read()), " in ", FormatMicros(snapshot.drain().duration_us()), ", stored ",
      FormatBytes(snapshot.drain().bytes_stored()));
  for (const std::string& reason : snapshot.consistency().downgrades()) {
    absl::StrAppend(&text, "\n  not more because: ", Printable(reason));
  }
  if (const std::string& why = snapshot.windows().no_memory_reason(); !why.empty()) {
    absl::StrAppend(&text, "\n  no memory because: ", Printable(why));
  }
  if (const std::string& why = snapshot.windows().memory_full_reason(); !why.empty()) {
    absl::StrAppend(&text, "\n  all memory was read because: ", Printable(why));
  }
  if (snapshot.windows().memory_method() == "stopped") {
    absl::StrAppend(&text,
                    "\n  the machine stood still while its memory was written; `still doctor` says what would "
                    "change that");
  }
  return text;
}

absl::StatusOr<Snapshot> Take(Context& context, store::Repository& repository, const std::string& session,
                              snapshot::TakeOptions options) {
  options.progress = context.MakeProgress();
  absl::StatusOr<Snapshot> taken = snapshot::TakeSnapshot(context.sessions(), session, repository, options);
  context.ProgressDone();
  return taken;
}

// One after the other: each has the disks and the repository to itself while its machine waits.
absl::Status TakeEach(Context& context, const std::vector<std::string>& words, const snapshot::TakeOptions& options) {
  if (!options.name.empty() && (words.size() > 1 || IsPattern(words[0]))) {
    return absl::InvalidArgumentError("--name: a repository has each name once; leave it out, or name one machine");
  }
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  return WithEachSession(context, words, /*beginnings=*/false, 1,
                         [&](const std::string& session) -> absl::StatusOr<Done> {
                           STILL_ASSIGN_OR_RETURN(const Snapshot taken, Take(context, *repository, session, options));
                           return Done{TakenText(taken), ToJson(taken)};
                         });
}

absl::Status TakeAny(Context& context, const SnapshotArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(snapshot::TakeOptions options, TakeOptionsOf(arguments));
  if (arguments.adopt.pid == 0) {
    if (arguments.adopt.disks.empty()) return TakeEach(context, arguments.sessions, options);
    return absl::InvalidArgumentError("--disk goes with --pid; a session knows its disks");
  }
  if (arguments.sessions.size() > 1) return absl::InvalidArgumentError("--pid is one machine, and takes one name");
  options.memory = false;
  AdoptArguments adopt = arguments.adopt;
  adopt.name = arguments.sessions[0];
  return WithAdoptedProcess(context, adopt, [&]() -> absl::Status {
    STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
    STILL_ASSIGN_OR_RETURN(const Snapshot taken, Take(context, *repository, adopt.name, options));
    context.Print(ToJson(taken), [&] { std::cout << TakenText(taken) << "\n"; });
    return absl::OkStatus();
  });
}

Tone ToneOf(const manifestpb::Consistency& consistency) {
  if (consistency.level() == manifestpb::Consistency::LEVEL_UNSPECIFIED) return Tone::kPlain;  // An import.
  return consistency.level() == manifestpb::Consistency::CRASH ? Tone::kWarning : Tone::kGood;
}

// As a reference may name it; ids tell apart what is called alike.
std::string HostText(const Snapshot& snapshot) {
  if (snapshot.host_id().empty()) return snapshot.host().empty() ? "-" : snapshot.host();
  return absl::StrCat(snapshot.host(), " ", snapshot.host_id().substr(0, 8));
}

struct ListArguments {
  std::vector<std::string> sessions;
  std::vector<std::string> labels;
};

absl::Status List(Context& context, const ListArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(const LabelFilter labels, LabelFilter::Parse(arguments.labels));
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  const bool one = arguments.sessions.size() == 1 && !IsPattern(arguments.sessions[0]);
  STILL_ASSIGN_OR_RETURN(std::vector<Snapshot> snapshots,
                         one ? repository->ListSnapshotsOf(arguments.sessions[0]) : repository->ListSnapshots());
  STILL_RETURN_IF_ERROR(WarnOfVanished(*repository));
  std::set<std::string> hosts;
  for (const Snapshot& snapshot : snapshots) hosts.insert(absl::StrCat(snapshot.host(), "/", snapshot.host_id()));
  const bool several = hosts.size() > 1;
  const int64_t now = absl::ToUnixNanos(Clock::Real().Now());
  size_t ahead = 0;
  std::vector<std::string> head = {"ID", "NAME", "SESSION", "POINT", "KIND", "CONSISTENCY", "PAUSED", "SIZE", "STORED"};
  if (several) head.emplace_back("HOST");
  Table table(head);
  nlohmann::json list = nlohmann::json::array();
  for (const Snapshot& snapshot : snapshots) {
    if (!FitsOneOf(arguments.sessions, snapshot.session()) || !labels.Fits(snapshot.labels())) continue;
    list.push_back(ToJson(snapshot));
    uint64_t size = 0;
    for (const manifestpb::Image& image : snapshot.images()) size += image.size();
    if (snapshot.point_unix_ns() > now) ++ahead;
    std::vector<Cell> row = {snapshot.id().substr(0, 12),
                             snapshot.name().empty() ? "-" : snapshot.name(),
                             snapshot.session(),
                             FormatUnixNanos(snapshot.point_unix_ns()),
                             KindName(snapshot),
                             {LevelName(snapshot.consistency()), ToneOf(snapshot.consistency())},
                             snapshot.has_windows() ? FormatMicros(snapshot.windows().pause_us()) : "-",
                             FormatBytes(size),
                             FormatBytes(snapshot.drain().bytes_stored())};
    if (several) row.emplace_back(HostText(snapshot));
    table.Add(std::move(row));
  }
  context.Print(list, [&] {
    std::cout << table.ForTerminal();
    if (ahead > 0) {
      std::cout << ahead << " of them " << (ahead == 1 ? "has its" : "have their")
                << " point in the future: a clock was wrong, or this one is\n";
    }
  });
  return absl::OkStatus();
}

// "frozen ext4 / (vda1)"
std::string UseText(const manifestpb::Consistency::Use& use) {
  std::string text = use.kind() == "file system" ? absl::StrCat(use.state(), " ", use.fs_type()) : use.kind();
  if (!use.name().empty()) absl::StrAppend(&text, " ", use.name());
  return absl::StrCat(text, " (", use.device(), ")");
}

// One line: what makes the label true on this disk, or why it is not more.
std::string ProofText(const manifestpb::Consistency::DiskProof& proof) {
  if (!proof.covered()) return absl::StrCat("not more because ", proof.reason());
  std::vector<std::string> uses;
  for (const auto& use : proof.uses()) uses.push_back(UseText(use));
  return uses.empty() ? "nothing wrote to it" : absl::StrJoin(uses, ", ");
}

void PrintConsistency(const manifestpb::Consistency& consistency) {
  std::cout << "\nconsistency: " << LevelName(consistency) << "\n";
  for (const std::string& reason : consistency.downgrades())
    std::cout << "  not more because: " << Printable(reason) << "\n";
  for (const auto& proof : consistency.disks()) {
    std::cout << "  disk " << Printable(proof.name()) << ": " << Printable(ProofText(proof)) << "\n";
  }
  std::vector<std::vector<std::string>> rows;
  for (const auto& mount : consistency.frozen()) {
    const std::string where = mount.seen_by().empty() ? "" : absl::StrCat(", mounted by ", mount.seen_by());
    rows.push_back(
        {"  frozen", mount.mount_point(), mount.fs_type(), absl::StrCat(FormatMicros(mount.freeze_us()), where)});
  }
  for (const auto& mount : consistency.skipped()) {
    rows.push_back({"  skipped", mount.mount_point(), mount.fs_type(), mount.reason()});
  }
  for (const auto& hook : consistency.hooks()) {
    rows.push_back({"  hook", hook.path(), hook.verb(),
                    hook.unfinished()
                        ? "still ran when the snapshot was committed"
                        : absl::StrCat("exit ", hook.exit_code(), ", ", FormatMicros(hook.duration_us()))});
  }
  std::cout << FormatTable(rows);
  if (consistency.frozen_size() > 0) {
    std::cout << "  thawed: " << consistency.thawed() << " of " << consistency.frozen_size() << ", "
              << consistency.thaw_cause()
              << (consistency.thawed_by().empty() ? "" : absl::StrCat(" by ", Printable(consistency.thawed_by())))
              << "\n";
  }
}

void PrintWindows(const manifestpb::Windows& windows) {
  std::cout << "\nwindows: paused " << FormatMicros(windows.pause_us()) << ", frozen "
            << FormatMicros(windows.freeze_us()) << "; memory " << windows.memory_method() << "; "
            << windows.commands_in_pause() << " commands in the pause\n";
  if (!windows.no_memory_reason().empty())
    std::cout << "no memory because: " << Printable(windows.no_memory_reason()) << "\n";
  if (windows.memory_method() == "engine") {
    std::cout << "memory engine: " << windows.reprotected_pages() << " pages protected in the pause, in "
              << FormatMicros(windows.protecting_us()) << "\n";
  } else if (!windows.memory_method_reason().empty()) {
    std::cout << "no memory engine because: " << Printable(windows.memory_method_reason()) << "\n";
  }
  if (!windows.memory_full_reason().empty())
    std::cout << "all memory was read because: " << Printable(windows.memory_full_reason()) << "\n";
  std::vector<std::vector<std::string>> rows;
  for (const auto& phase : windows.phases()) rows.push_back({"  " + phase.name(), FormatMicros(phase.duration_us())});
  rows.push_back({"  (guest) write back", FormatMicros(windows.guest_presync_us())});
  rows.push_back({"  (guest) hooks", FormatMicros(windows.guest_hooks_us())});
  rows.push_back({"  (guest) freeze", FormatMicros(windows.guest_freeze_us())});
  std::cout << FormatTable(rows);
}

void PrintSnapshot(const Snapshot& snapshot) {
  std::vector<std::string> labels;
  for (const auto& [key, value] : snapshot.labels()) labels.push_back(absl::StrCat(key, "=", value));
  std::sort(labels.begin(), labels.end());
  const manifestpb::Machine& machine = snapshot.machine();
  std::cout << FormatTable(
      {{"id", snapshot.id()},
       {"name", snapshot.name().empty() ? "-" : snapshot.name()},
       {"session", snapshot.session()},
       {"host", HostText(snapshot)},
       {"point", absl::StrCat(FormatUnixNanos(snapshot.point_unix_ns()),
                              snapshot.point_unix_ns() > absl::ToUnixNanos(Clock::Real().Now())
                                  ? " (in the future: a clock was wrong, or this one is)"
                                  : "")},
       {"kind", KindName(snapshot)},
       {"parent", snapshot.parent_id().empty() ? "-" : snapshot.parent_id()},
       {"labels", labels.empty() ? "-" : absl::StrJoin(labels, " ")},
       {"machine", machine.hypervisor().empty()
                       ? "-"
                       : absl::StrCat(machine.hypervisor(), " ", machine.hypervisor_version(), ", ",
                                      machine.machine_type(), ", ", machine.accelerator(), ", ", machine.vcpus(),
                                      " cpus, ", FormatBytes(machine.memory_bytes()))}});
  std::vector<std::vector<std::string>> rows = {{"IMAGE", "ROLE", "SIZE", "READ"}};
  for (const manifestpb::Image& image : snapshot.images()) {
    std::string role = absl::AsciiStrToLower(manifestpb::Image::Role_Name(image.role()));
    rows.push_back(
        {image.name(), role.substr(role.find('_') + 1), FormatBytes(image.size()), FormatBytes(image.bytes_read())});
  }
  std::cout << "\n" << FormatTable(rows);
  PrintConsistency(snapshot.consistency());
  if (snapshot.has_windows()) PrintWindows(snapshot.windows());
}

absl::Status Show(Context& context, const std::vector<std::string>& references) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(const HostIdentity here, ReadHostIdentity(context.state_directory()));
  STILL_ASSIGN_OR_RETURN(std::vector<Snapshot> snapshots, ChooseSnapshots(*repository, references, here));
  nlohmann::json list = nlohmann::json::array();
  for (const Snapshot& snapshot : snapshots) list.push_back(ToJson(snapshot));
  const bool several = references.size() > 1 || IsPattern(references[0]);
  context.Print(several ? list : list[0], [&] {
    for (size_t i = 0; i < snapshots.size(); ++i) {
      if (i > 0) std::cout << "\n";
      PrintSnapshot(snapshots[i]);
    }
  });
  return absl::OkStatus();
}

absl::Status Prune(Context& context, bool dry_run, const std::string& grace) {
  store::PruneOptions options{.dry_run = dry_run};
  STILL_ASSIGN_OR_RETURN(options.grace, ParseDurationFlag(grace));
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  snapshot::ProgressSink progress = context.MakeProgress();
  options.progress = [&](uint64_t done, uint64_t total) { progress({.stage = "prune", .done = done, .total = total}); };
  STILL_ASSIGN_OR_RETURN(store::PruneReport report, repository->Prune(options));
  context.ProgressDone();
  context.Print({{"dry_run", dry_run},
                 {"live_blocks", report.live_blocks},
                 {"dead_blocks", report.dead_blocks},
                 {"packs_condemned", report.packs_condemned},
                 {"packs_rewritten", report.packs_rewritten},
                 {"packs_deleted", report.packs_deleted},
                 {"bytes_deleted", report.bytes_deleted},
                 {"bytes_written", report.bytes_written},
                 {"packs_waiting", report.packs_waiting},
                 {"bytes_waiting", report.bytes_waiting}},
                [&] {
                  std::cout << (dry_run ? "would delete " : "deleted ") << report.packs_deleted << " packs, "
                            << FormatBytes(report.bytes_deleted) << "; rewritten " << report.packs_rewritten << ", "
                            << FormatBytes(report.bytes_written) << "; waiting for their grace period "
                            << report.packs_waiting << ", " << FormatBytes(report.bytes_waiting) << "\n";
                });
  return absl::OkStatus();
}

struct DiffArguments {
  std::string a;
  std::string b;
  std::string image;
};

absl::Status Diff(Context& context, const DiffArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(Snapshot a, repository->FindSnapshot(arguments.a));
  STILL_ASSIGN_OR_RETURN(Snapshot b, repository->FindSnapshot(arguments.b));
  nlohmann::json images = nlohmann::json::object();
  std::vector<std::vector<std::string>> rows = {{"IMAGE", "RANGES", "CHANGED", "OF"}};
  for (const manifestpb::Image& image : b.images()) {
    if (!arguments.image.empty() && image.name() != arguments.image) continue;
    bool in_both = std::any_of(a.images().begin(), a.images().end(),
                               [&](const auto& other) { return other.name() == image.name(); });
    if (!in_both) {
      rows.push_back({image.name(), "-", "only in the second", FormatBytes(image.size())});
      continue;
    }
    STILL_ASSIGN_OR_RETURN(std::vector<store::ImageRange> ranges, repository->Diff(a, b, image.name()));
    uint64_t bytes = 0;
    nlohmann::json list = nlohmann::json::array();
    for (const store::ImageRange& range : ranges) {
      bytes += range.length;
      list.push_back({{"offset", range.offset}, {"length", range.length}});
    }
    images[image.name()] = {{"changed_bytes", bytes}, {"ranges", std::move(list)}};
    rows.push_back({image.name(), absl::StrCat(ranges.size()), FormatBytes(bytes), FormatBytes(image.size())});
  }
  context.Print({{"a", a.id()}, {"b", b.id()}, {"images", images}}, [&] { std::cout << FormatTable(rows); });
  return absl::OkStatus();
}

}  // namespace

void AddSnapshotCommands(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<SnapshotArguments>();
  CLI::App* take = context.AddCommand(app, "snapshot", "Take consistent snapshots of running sessions",
                                      [=](Context& c) { return TakeAny(c, *arguments); });
  take->add_option("sessions", arguments->sessions,
                   "Whole names, or patterns: 'web-*'; with --pid, the name to list the snapshot under")
      ->required()
      ->type_name(kExactSessionType);
  take->add_option("--name", arguments->name, "Name of the snapshot");
  take->add_option("--label", arguments->labels, "key=value; may be repeated");
  take->add_option("--quiesce", arguments->quiesce, "require: fail unless frozen; try: say so; off")
      ->check(CLI::IsMember({"require", "try", "off"}))
      ->capture_default_str();
  take->add_option("--hooks", arguments->hooks, "When a hook of the guest fails: fail, warn or skip them")
      ->check(CLI::IsMember({"fail", "warn", "skip"}))
      ->capture_default_str();
  take->add_option("--freeze-lease", arguments->lease, "The guest thaws by itself so long after it froze")
      ->capture_default_str();
  auto* disk_only = take->add_flag("--disk-only", arguments->disk_only, "Leave memory and device state out");
  take->add_flag(
          "--track-memory", arguments->track_memory,
          "Note what is written to memory from now on, so that the next snapshot with this option reads no more than "
          "that; the machine's first write to each page then waits for some 50 us")
      ->excludes(disk_only);
  take->add_option("--memory", arguments->memory,
                   "Where saving it would stop the machine for longer than --max-pause: try (leave it out and say so), "
                   "require (fail), stop (all the same)")
      ->check(CLI::IsMember({"try", "require", "stop"}))
      ->capture_default_str();
  take->add_option("--max-pause", arguments->max_pause, "How long the machine may stand still; else it is undone")
      ->capture_default_str();
  take->add_option("--pin-space", arguments->pin_space,
                   "Give up when the guest overwrites more than this during the drain (0: half of what is free)")
      ->capture_default_str();
  take->add_option("--pid", arguments->adopt.pid, "Instead of a session: any VMM that runs; its disks only");
  take->add_option("--disk", arguments->adopt.disks,
                   "With --pid: PATH[,name=vda][,format=raw|qcow2][,ro]; may be repeated");
  take->add_flag("--skip-presync", arguments->skip_presync, "Do not write back before the freeze (to measure it)");

  auto listed = std::make_shared<ListArguments>();
  CLI::App* list = context.AddCommand(app, "list", "List snapshots", [=](Context& c) { return List(c, *listed); });
  list->add_option("sessions", listed->sessions, "Only of these: names, or patterns: 'web-*'")
      ->type_name(kExactSessionType);
  list->add_option("--label", listed->labels, "Only with this label: KEY or KEY=VALUE; repeated: with all of them")
      ->allow_extra_args(false);

  auto references = std::make_shared<std::vector<std::string>>();
  CLI::App* show = context.AddCommand(app, "show", "Everything known about snapshots",
                                      [=](Context& c) { return Show(c, *references); });
  show->add_option("snapshots", *references, "Names, ids, latest, or patterns of names")
      ->required()
      ->type_name(kSnapshotType);

  auto dry_run = std::make_shared<bool>(false);
  auto grace = std::make_shared<std::string>("24h");
  CLI::App* prune = context.AddCommand(app, "prune", "Give the space of what no snapshot uses back",
                                       [=](Context& c) { return Prune(c, *dry_run, *grace); });
  prune->add_flag("--dry-run", *dry_run, "Only say what would be done");
  prune->add_option("--grace", *grace, "Delete what has been unused for this long")->capture_default_str();

  auto diff_arguments = std::make_shared<DiffArguments>();
  CLI::App* diff = context.AddCommand(app, "diff", "What differs between two snapshots",
                                      [=](Context& c) { return Diff(c, *diff_arguments); });
  diff->add_option("a", diff_arguments->a, "The first")->required()->type_name(kSnapshotType);
  diff->add_option("b", diff_arguments->b, "The second")->required()->type_name(kSnapshotType);
  diff->add_option("--image", diff_arguments->image, "Only this image");
}

}  // namespace still::cli
