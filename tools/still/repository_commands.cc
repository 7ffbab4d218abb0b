// init, verify, repair, stats, key.
#include <unistd.h>

#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/file.h"
#include "base/names.h"
#include "base/random.h"
#include "base/secret.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/vanished.h"

namespace still::cli {
namespace {

struct InitArguments {
  bool no_encryption = false;
  std::string compression = "default";
};

constexpr std::pair<const char*, store::Compression> kCompressions[] = {{"default", store::Compression::kDefault},
                                                                        {"fast", store::Compression::kFast},
                                                                        {"small", store::Compression::kSmall}};

// Of a name that was checked.
store::Compression CompressionNamed(const std::string& wanted) {
  for (const auto& [name, compression] : kCompressions) {
    if (wanted == name) return compression;
  }
  STILL_CHECK(false);
}

std::string NameOf(store::Compression wanted) {
  for (const auto& [name, compression] : kCompressions) {
    if (wanted == compression) return name;
  }
  STILL_CHECK(false);
}

absl::StatusOr<store::Credentials> InitCredentials(const Context& context, const InitArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(store::Credentials credentials, context.GivenCredentials());
  if (arguments.no_encryption) return store::Credentials();
  if (!credentials.empty()) return credentials;
  if (::isatty(STDIN_FILENO) == 0) {
    return absl::FailedPreconditionError(
        "snapshots hold secrets, so repositories are encrypted: set STILL_PASSPHRASE, give --key-file, or say "
        "--no-encryption");
  }
  STILL_ASSIGN_OR_RETURN(credentials.passphrase, AskPassphrase("Passphrase for the new repository: "));
  STILL_ASSIGN_OR_RETURN(std::string again, AskPassphrase("Once more: "));
  if (again != credentials.passphrase) return absl::InvalidArgumentError("the two passphrases differ");
  return credentials;
}

absl::Status Init(Context& context, const InitArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(store::Credentials credentials, InitCredentials(context, arguments));
  bool encrypted = !credentials.empty();
  STILL_RETURN_IF_ERROR(MakeDirectories(context.state_directory()));
  STILL_RETURN_IF_ERROR(store::Repository::Init({.path = context.repository_path(),
                                                 .credentials = credentials,
                                                 .compression = CompressionNamed(arguments.compression)}));
  context.Print({{"repository", EscapeName(context.repository_path())},
                 {"encrypted", encrypted},
                 {"compression", arguments.compression}},
                [&] {
                  std::cout << (encrypted ? "encrypted repository " : "repository WITHOUT encryption ")
                            << context.repository_path() << " made\n";
                  if (encrypted)
                    std::cout << "Without its passphrase or key file nothing in it can ever be read again.\n";
                });
  return absl::OkStatus();
}

nlohmann::json LostToJson(const std::vector<store::LostRange>& lost) {
  nlohmann::json list = nlohmann::json::array();
  for (const store::LostRange& range : lost) {
    list.push_back({{"snapshot", range.snapshot_id},
                    {"name", range.snapshot_name},
                    {"image", range.image},
                    {"offset", range.range.offset},
                    {"length", range.range.length}});
  }
  return list;
}

void PrintLost(const std::vector<store::LostRange>& lost) {
  for (const store::LostRange& range : lost) {
    std::cout << "lost: snapshot " << range.snapshot_id.substr(0, 12) << " "
              << (range.snapshot_name.empty() ? "" : range.snapshot_name + " ") << range.image << " bytes "
              << range.range.offset << " to " << range.range.offset + range.range.length - 1 << "\n";
  }
}

struct VerifyArguments {
  double read_data_percent = 0;
  std::string slice;
};

// "3/30" is the third of thirty.
absl::StatusOr<store::VerifySlice> ParseSlice(const std::string& text) {
  std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('/', 1));
  uint32_t number = 0;
  store::VerifySlice slice;
  if (!absl::SimpleAtoi(parts.first, &number) || !absl::SimpleAtoi(parts.second, &slice.count) || number == 0 ||
      number > slice.count) {
    return absl::InvalidArgumentError(absl::StrCat("slice \"", text, "\": write it like 3/30, the third of thirty"));
  }
  slice.index = number - 1;
  return slice;
}

absl::Status Verify(Context& context, const VerifyArguments& arguments) {
  store::VerifyOptions options{.read_data_percent = arguments.read_data_percent};
  RandomBytes(reinterpret_cast<char*>(&options.seed), sizeof(options.seed));
  if (!arguments.slice.empty()) {
    STILL_ASSIGN_OR_RETURN(options.read_slice, ParseSlice(arguments.slice));
  }
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  snapshot::ProgressSink progress = context.MakeProgress();
  options.progress = [&](uint64_t done, uint64_t total) {
    progress({.stage = "verify", .done = done, .total = total});
  };
  STILL_ASSIGN_OR_RETURN(store::VerifyReport report, repository->Verify(options));
  context.ProgressDone();
  context.Print({{"ok", report.ok()},
                 {"snapshots", report.snapshots},
                 {"nodes", report.nodes},
                 {"packs", report.packs},
                 {"blocks_read", report.blocks_read},
                 {"problems", report.problems},
                 {"lost", LostToJson(report.lost)}},
                [&] {
                  for (const std::string& problem : report.problems) std::cout << "problem: " << problem << "\n";
                  PrintLost(report.lost);
                  std::cout << report.snapshots << " snapshots, " << report.packs << " packs, " << report.nodes
                            << " tree nodes, " << report.blocks_read << " blocks read: "
                            << (report.ok() ? "all is well\n" : absl::StrCat(report.problems.size(), " problems\n"));
                });
  if (report.ok()) return absl::OkStatus();
  return absl::DataLossError("the repository is damaged; `still repair` salvages what is whole and names what is lost");
}

absl::Status Repair(Context& context, bool catalog_only, bool dry_run) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository({.rebuild_catalog = catalog_only}));
  if (catalog_only) {
    context.Print({{"catalog", "rebuilt"}}, [] { std::cout << "catalog rebuilt from packs and manifests\n"; });
    return absl::OkStatus();
  }
  STILL_ASSIGN_OR_RETURN(store::RepairReport report, repository->Repair({.dry_run = dry_run}));
  context.Print({{"dry_run", dry_run}, {"actions", report.actions}, {"lost", LostToJson(report.lost)}}, [&] {
    for (const std::string& action : report.actions) std::cout << (dry_run ? "would: " : "done: ") << action << "\n";
    PrintLost(report.lost);
    if (report.actions.empty()) std::cout << "nothing to repair\n";
  });
  return absl::OkStatus();
}

absl::Status Stats(Context& context) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(store::RepositoryStats stats, repository->Stats());
  STILL_RETURN_IF_ERROR(WarnOfVanished(*repository));
  STILL_ASSIGN_OR_RETURN(std::vector<manifestpb::Snapshot> snapshots, repository->ListSnapshots());
  uint64_t logical = 0;
  for (const manifestpb::Snapshot& snapshot : snapshots) {
    for (const manifestpb::Image& image : snapshot.images()) logical += image.size();
  }
  context.Print({{"repository", EscapeName(context.repository_path())},
                 {"encrypted", repository->encrypted()},
                 {"compression", NameOf(repository->compression())},
                 {"snapshots", stats.snapshots},
                 {"packs", stats.packs},
                 {"stored_bytes", stats.stored_bytes},
                 {"bookkeeping_bytes", stats.bookkeeping_bytes},
                 {"unique_blocks", stats.unique_blocks},
                 {"vanished_snapshots", stats.vanished_snapshots},
                 {"logical_bytes", logical}},
                [&] {
                  std::cout << FormatTable({{"repository", context.repository_path()},
                                            {"encrypted", repository->encrypted() ? "yes" : "no"},
                                            {"compression", NameOf(repository->compression())},
                                            {"snapshots", absl::StrCat(stats.snapshots)},
                                            {"images hold", FormatBytes(logical)},
                                            {"stored", FormatBytes(stats.stored_bytes)},
                                            {"of it bookkeeping", FormatBytes(stats.bookkeeping_bytes)},
                                            {"unique blocks", absl::StrCat(stats.unique_blocks)},
                                            {"packs", absl::StrCat(stats.packs)}});
                });
  return absl::OkStatus();
}

struct KeyArguments {
  std::string new_key_file;
  std::string label;
  std::string key_id;
  std::vector<std::string> key_ids;
};

absl::Status KeyList(Context& context) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(std::vector<KeySlotInfo> keys, repository->ListKeys());
  nlohmann::json list = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows = {{"KEY", "KIND", "LABEL", "STATE"}};
  for (const KeySlotInfo& key : keys) {
    std::string kind = key.kind == KeyKind::kPassphrase ? "passphrase" : "key file";
    std::string state = key.status.ok() ? "ok" : std::string(key.status.message());
    list.push_back({{"key", key.id}, {"kind", kind}, {"label", key.description.label}, {"state", state}});
    rows.push_back({key.id, kind, key.description.label, state});
  }
  context.Print(list, [&] { std::cout << FormatTable(rows); });
  return absl::OkStatus();
}

absl::StatusOr<store::Credentials> NewCredentials(const KeyArguments& arguments) {
  store::Credentials credentials{.key_file = arguments.new_key_file};
  if (!credentials.key_file.empty()) return credentials;
  credentials.passphrase = TakeSecretVariable("STILL_NEW_PASSPHRASE");
  if (!credentials.passphrase.empty()) return credentials;
  STILL_ASSIGN_OR_RETURN(credentials.passphrase, AskPassphrase("New passphrase: "));
  STILL_ASSIGN_OR_RETURN(std::string again, AskPassphrase("Once more: "));
  if (again != credentials.passphrase) return absl::InvalidArgumentError("the two passphrases differ");
  return credentials;
}

absl::Status KeyChange(Context& context, const KeyArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(store::Credentials credentials, NewCredentials(arguments));
  STILL_ASSIGN_OR_RETURN(std::string id, repository->ChangeKey(arguments.key_id, credentials, arguments.label));
  context.Print({{"key", id}, {"removed", arguments.key_id}},
                [&] { std::cout << "key " << id << " takes the place of " << arguments.key_id << "\n"; });
  return absl::OkStatus();
}

absl::Status KeyAdd(Context& context, const KeyArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(store::Credentials credentials, NewCredentials(arguments));
  STILL_ASSIGN_OR_RETURN(std::string id, repository->AddKey(credentials, arguments.label));
  context.Print({{"key", id}}, [&] { std::cout << "key " << id << " added\n"; });
  return absl::OkStatus();
}

absl::Status KeyRemove(Context& context, const std::vector<std::string>& key_ids) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  nlohmann::json list = nlohmann::json::array();
  std::string sentences;
  absl::Status error;
  for (const std::string& id : key_ids) {
    absl::Status removed = repository->RemoveKey(id);
    error = FirstError(error, removed);
    if (!removed.ok()) continue;
    list.push_back({{"removed", id}});
    absl::StrAppend(&sentences, "key ", id, " removed\n");
  }
  if (!list.empty()) context.Print(key_ids.size() > 1 ? list : list[0], [&] { std::cout << sentences; });
  return error;
}

}  // namespace

void AddRepositoryCommands(CLI::App& app, Context& context) {
  auto init_arguments = std::make_shared<InitArguments>();
  CLI::App* init = context.AddCommand(app, "init", "Make a repository, encrypted unless refused",
                                      [=](Context& c) { return Init(c, *init_arguments); });
  init->add_flag("--no-encryption", init_arguments->no_encryption, "Store everything readable");
  init->add_option("--compression", init_arguments->compression,
                   "fast: least processor time; small: fewest bytes, for four times the time")
      ->check(CLI::IsMember({"fast", "default", "small"}))
      ->capture_default_str();

  auto verify_arguments = std::make_shared<VerifyArguments>();
  CLI::App* verify = context.AddCommand(app, "verify", "Check that every snapshot is whole",
                                        [=](Context& c) { return Verify(c, *verify_arguments); });
  CLI::Option* read_data = verify->add_option("--read-data", verify_arguments->read_data_percent,
                                              "Also read and hash this share of the packs, in percent, at random");
  read_data->expected(0, 1)->default_str("100")->check(CLI::Range(0.0, 100.0));
  verify->add_option("--slice", verify_arguments->slice, "Also read and hash part K of N (K/N): N runs read everything")
      ->excludes(read_data);

  auto what = std::make_shared<std::string>();
  auto dry_run = std::make_shared<bool>(false);
  CLI::App* repair = context.AddCommand(app, "repair", "Salvage a damaged repository and say what is lost",
                                        [=](Context& c) { return Repair(c, *what == "catalog", *dry_run); });
  repair->add_option("what", *what, "catalog: only rebuild the index")->check(CLI::IsMember({"catalog"}));
  repair->add_flag("--dry-run", *dry_run, "Only say what would be done");

  context.AddCommand(app, "stats", "What the repository holds", Stats);

  auto key_arguments = std::make_shared<KeyArguments>();
  CLI::App* key = app.add_subcommand("key", "Passphrases and key files of the repository");
  key->require_subcommand(1);
  context.AddCommand(*key, "list", "List them", KeyList);
  CLI::App* add = context.AddCommand(*key, "add", "Add one (asks, or takes STILL_NEW_PASSPHRASE)",
                                     [=](Context& c) { return KeyAdd(c, *key_arguments); });
  CLI::App* change = context.AddCommand(*key, "change", "Replace one (asks, or takes STILL_NEW_PASSPHRASE)",
                                        [=](Context& c) { return KeyChange(c, *key_arguments); });
  change->add_option("key", key_arguments->key_id)->required();
  for (CLI::App* command : {add, change}) {
    command->add_option("--new-key-file", key_arguments->new_key_file, "A file instead of a passphrase")
        ->type_name(kFileType);
    command->add_option("--label", key_arguments->label, "What you will know it by");
  }
  CLI::App* rm =
      context.AddCommand(*key, "rm", "Revoke some", [=](Context& c) { return KeyRemove(c, key_arguments->key_ids); });
  CLI::App* remove = context.AddHiddenCommand(*key, "remove", "Revoke some", [=](Context& c) {
    HintAt("key remove", "key rm");
    return KeyRemove(c, key_arguments->key_ids);
  });
  for (CLI::App* command : {rm, remove}) command->add_option("keys", key_arguments->key_ids)->required();
}

}  // namespace still::cli
