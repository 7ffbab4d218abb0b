// forget, hold, release.
#include <iostream>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/host_identity.h"
#include "snapshot/machine.h"
#include "snapshot/retention.h"
#include "snapshot/snapshots_in_use.h"
#include "store/snapshot_reference.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/vanished.h"

namespace still::cli {
namespace {

using manifestpb::Snapshot;

struct ForgetArguments {
  std::vector<std::string> references;
  std::vector<std::string> sessions;  // Names and patterns, with hosts (choose.h, FitsOnHost).
  std::vector<std::string> keep;      // As schedules have it.
  // Old spellings of it. By rule word: what stands behind "--keep-WORD".
  std::vector<std::pair<std::string, std::string>> rules = {{"last", ""},   {"hourly", ""},  {"daily", ""},
                                                            {"weekly", ""}, {"monthly", ""}, {"yearly", ""}};
  std::vector<std::string> labels;
  std::string within;
  bool dry_run = false;

  bool has_policy() const {
    for (const auto& [word, number] : rules) {
      if (!number.empty()) return true;
    }
    return !keep.empty() || !labels.empty() || !within.empty();
  }
};

absl::StatusOr<snapshot::RetentionPolicy> PolicyOf(const ForgetArguments& arguments) {
  std::string text = absl::StrJoin(arguments.keep, " ");
  for (const auto& [word, number] : arguments.rules) {
    if (number.empty()) continue;
    absl::StrAppend(&text, " ", word, "=", number);
    HintAt(absl::StrCat("--keep-", word, " ", number), absl::StrCat("--keep ", word, "=", number));
  }
  if (!arguments.within.empty()) {
    absl::StrAppend(&text, " min-age=", arguments.within);
    HintAt(absl::StrCat("--keep-within ", arguments.within), absl::StrCat("--keep min-age=", arguments.within));
  }
  STILL_ASSIGN_OR_RETURN(snapshot::RetentionPolicy policy, snapshot::ParseRetention(text));
  // Not as words: they may contain blanks, for which --keep has no spelling; so this one stays.
  for (const std::string& label : arguments.labels) {
    policy.labels.push_back(absl::StrSplit(label, absl::MaxSplits('=', 1)));
  }
  return policy;
}

// What is decided about one snapshot.
struct Decision {
  const Snapshot* snapshot;
  bool keep = false;
  std::vector<std::string> reasons;
};

// Indices of the snapshots that the rules are applied to.
absl::StatusOr<std::set<size_t>> UnderPolicy(const std::vector<Snapshot>& snapshots,
                                             const std::vector<std::string>& sessions, const HostIdentity& here) {
  std::set<size_t> meant;
  for (size_t i = 0; sessions.empty() && i < snapshots.size(); ++i) {
    if (store::IsOfHost(snapshots[i], here)) meant.insert(i);
  }
  const auto session = [](const Snapshot& one) -> const std::string& { return one.session(); };
  for (const std::string& word : sessions) {
    STILL_ASSIGN_OR_RETURN(const std::vector<size_t> fits, FitsOnHost(snapshots, word, session, here));
    meant.insert(fits.begin(), fits.end());
  }
  return meant;
}

absl::StatusOr<std::vector<Decision>> DecideByPolicy(const std::vector<Snapshot>& snapshots,
                                                     const std::set<size_t>& meant,
                                                     const snapshot::SnapshotsInUse& in_use,
                                                     const ForgetArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(snapshot::RetentionPolicy policy, PolicyOf(arguments));
  std::vector<Decision> decisions;
  std::vector<snapshot::RetentionCandidate> candidates;
  const std::vector<std::string> machines = snapshot::MachineKeys(snapshots);
  for (size_t i : meant) {
    decisions.push_back({.snapshot = &snapshots[i]});
    candidates.push_back(snapshot::CandidateOf(snapshots[i], machines[i], in_use));
  }
  STILL_ASSIGN_OR_RETURN(std::vector<snapshot::RetentionVerdict> verdicts,
                         snapshot::DecideRetention(candidates, policy, absl::Now(), absl::LocalTimeZone()));
  for (size_t i = 0; i < decisions.size(); ++i) {
    decisions[i].keep = verdicts[i].keep;
    decisions[i].reasons = std::move(verdicts[i].reasons);
  }
  return decisions;
}

// `left_out`: snapshots of other hosts, which only rules for all sessions could have been meant for.
void PrintDecisions(const std::vector<Decision>& decisions, bool dry_run, size_t left_out) {
  std::vector<std::vector<std::string>> rows = {{"ID", "NAME", "SESSION", "POINT", "", "WHY"}};
  int dropped = 0;
  for (const Decision& decision : decisions) {
    const Snapshot& snapshot = *decision.snapshot;
    if (!decision.keep) ++dropped;
    rows.push_back({snapshot.id().substr(0, 12), snapshot.name().empty() ? "-" : snapshot.name(), snapshot.session(),
                    FormatUnixNanos(snapshot.point_unix_ns()), decision.keep ? "keep" : "drop",
                    absl::StrJoin(decision.reasons, "; ")});
  }
  std::cout << FormatTable(rows) << (dry_run ? "would forget " : "forgot ") << dropped << " of " << decisions.size()
            << " snapshots" << (dropped > 0 && !dry_run ? "; `still prune` gives their space back" : "") << "\n";
  if (left_out > 0) {
    std::cout << "left to other hosts: " << left_out << " (--session 'HOST/*' means a host's, '*/*' all of them)\n";
  }
}

// A pattern is meant to be different ones at different times; what finds one only now is not.
absl::Status CheckNamedInFull(store::Repository& repository, const std::vector<std::string>& references) {
  for (const std::string& reference : references) {
    if (IsPattern(reference)) continue;
    STILL_ASSIGN_OR_RETURN(const Snapshot found, repository.FindSnapshot(reference));
    if (store::NamedInFull(found, reference)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "snapshot \"", reference, "\" may be another one next time; to remove the one that it is now: still forget ",
        found.name().empty() ? found.id().substr(0, 12) : found.name()));
  }
  return absl::OkStatus();
}

absl::Status Forget(Context& context, const ForgetArguments& arguments) {
  if (arguments.references.empty() == !arguments.has_policy()) {
    return absl::InvalidArgumentError("forget: name snapshots, or say which to keep (--keep): one of both");
  }
  if (!arguments.sessions.empty() && !arguments.has_policy()) {
    return absl::InvalidArgumentError("forget: --session goes with --keep");
  }
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(snapshot::SnapshotsInUse in_use, snapshot::FindSnapshotsInUse(context.sessions()));
  std::vector<Snapshot> snapshots;
  std::vector<Decision> decisions;
  std::vector<std::string> references = arguments.references;
  STILL_ASSIGN_OR_RETURN(const std::vector<std::string> given_up, TakeVanished(*repository, references));
  size_t left_out = 0;
  STILL_ASSIGN_OR_RETURN(const HostIdentity here, ReadHostIdentity(context.state_directory()));
  if (arguments.has_policy()) {
    STILL_ASSIGN_OR_RETURN(snapshots, repository->ListSnapshots());
    STILL_ASSIGN_OR_RETURN(const std::set<size_t> meant, UnderPolicy(snapshots, arguments.sessions, here));
    if (arguments.sessions.empty()) left_out = snapshots.size() - meant.size();
    STILL_ASSIGN_OR_RETURN(decisions, DecideByPolicy(snapshots, meant, in_use, arguments));
  } else {
    STILL_RETURN_IF_ERROR(CheckNamedInFull(*repository, references));
    STILL_ASSIGN_OR_RETURN(snapshots, ChooseSnapshots(*repository, references, here));
    for (const Snapshot& snapshot : snapshots) {
      if (!arguments.dry_run) {
        STILL_RETURN_IF_ERROR(snapshot::CheckNotInUse(in_use, snapshot.id(), snapshot.name()));
      } else if (auto user = in_use.find(snapshot.id()); user != in_use.end()) {
        decisions.push_back({.snapshot = &snapshot, .keep = true, .reasons = {user->second}});
        continue;
      }
      const bool held = snapshot.labels().contains(std::string(store::kHoldLabel));
      decisions.push_back(
          {.snapshot = &snapshot, .keep = held && arguments.dry_run, .reasons = {held ? "held" : "named"}});
    }
  }
  std::vector<std::string> ids = given_up;
  nlohmann::json list = nlohmann::json::array();
  for (const Decision& decision : decisions) {
    const Snapshot& snapshot = *decision.snapshot;
    if (!decision.keep) ids.push_back(snapshot.id());
    list.push_back({{"id", snapshot.id()},
                    {"name", snapshot.name()},
                    {"session", snapshot.session()},
                    {"point_unix_ns", snapshot.point_unix_ns()},
                    {"keep", decision.keep},
                    {"reasons", decision.reasons}});
  }
  if (!arguments.dry_run) STILL_RETURN_IF_ERROR(repository->Forget(ids));
  context.Print({{"dry_run", arguments.dry_run},
                 {"forgotten", ids},
                 {"decisions", std::move(list)},
                 {"given_up", given_up},
                 {"of_other_hosts", left_out}},
                [&] {
                  if (!references.empty() || given_up.empty()) PrintDecisions(decisions, arguments.dry_run, left_out);
                  for (const std::string& id : given_up) {
                    std::cout << (arguments.dry_run ? "would give up " : "gave up ") << id.substr(0, 12)
                              << ", which had vanished\n";
                  }
                });
  return absl::OkStatus();
}

struct HoldArguments {
  std::vector<std::string> references;
  std::string reason;
};

absl::Status Hold(Context& context, const HoldArguments& arguments, bool hold) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(const HostIdentity here, ReadHostIdentity(context.state_directory()));
  std::vector<std::string> references = arguments.references;
  nlohmann::json list = nlohmann::json::array();
  if (!hold) {
    // So that it can be given up.
    STILL_ASSIGN_OR_RETURN(const std::vector<std::string> vanished, TakeVanished(*repository, references));
    for (const std::string& id : vanished) {
      STILL_RETURN_IF_ERROR(repository->ReleaseSnapshot(id));
      list.push_back({{"id", id}, {"held", false}, {"reason", ""}});
    }
  }
  STILL_ASSIGN_OR_RETURN(std::vector<Snapshot> snapshots, ChooseSnapshots(*repository, references, here));
  for (const Snapshot& snapshot : snapshots) {
    STILL_RETURN_IF_ERROR(hold ? repository->HoldSnapshot(snapshot.id(), arguments.reason)
                               : repository->ReleaseSnapshot(snapshot.id()));
    list.push_back({{"id", snapshot.id()}, {"held", hold}, {"reason", arguments.reason}});
  }
  const bool several = arguments.references.size() > 1 || IsPattern(arguments.references[0]);
  context.Print(several ? list : list[0], [&] {
    for (const Snapshot& snapshot : snapshots) {
      std::cout << "snapshot " << snapshot.id().substr(0, 12)
                << (hold ? " is held: nothing removes it until `still release`\n" : " may be forgotten again\n");
    }
  });
  return absl::OkStatus();
}

}  // namespace

void AddForgetCommands(CLI::App& app, Context& context) {
  auto forget_arguments = std::make_shared<ForgetArguments>();
  CLI::App* forget = context.AddCommand(app, "forget", "Remove snapshots: named ones, or those that no rule keeps",
                                        [=](Context& c) { return Forget(c, *forget_arguments); });
  forget->add_option("snapshots", forget_arguments->references, "Whole names, ids, or patterns of names: 'nightly-*'")
      ->type_name(kSnapshotType);
  forget
      ->add_option("--keep", forget_arguments->keep,
                   "Rules, as schedules have them: 'last=3 daily=7 weekly=4 min-age=36h'; may be repeated")
      ->allow_extra_args(false);
  for (auto& [word, number] : forget_arguments->rules) {
    forget->add_option("--keep-" + word, number)->group("");  // Older versions had these.
  }
  forget->add_option("--keep-label", forget_arguments->labels,
                     "Keep those with this label: KEY or KEY=VALUE; repeatable");
  forget->add_option("--keep-within", forget_arguments->within)->group("");
  forget
      ->add_option("--session", forget_arguments->sessions,
                   "Apply the rules to this session's snapshots only: a name or a pattern, of another host HOST/NAME; "
                   "may be repeated (default: all of this host)")
      ->allow_extra_args(false)
      ->type_name(kExactSessionType);
  forget->add_flag("--dry-run", forget_arguments->dry_run, "Only say what would be kept and dropped, and why");

  auto hold_arguments = std::make_shared<HoldArguments>();
  CLI::App* hold = context.AddCommand(app, "hold", "Keep a snapshot whatever any rule says",
                                      [=](Context& c) { return Hold(c, *hold_arguments, true); });
  hold->add_option("--reason", hold_arguments->reason, "Shown where it is kept");
  CLI::App* release =
      context.AddCommand(app, "release", "Undo hold", [=](Context& c) { return Hold(c, *hold_arguments, false); });
  for (CLI::App* command : {hold, release}) {
    command->add_option("snapshots", hold_arguments->references, "Names, ids, latest, or patterns of names")
        ->required()
        ->type_name(kSnapshotType);
  }
}

}  // namespace still::cli
