// restore, import, export.
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "snapshot/file_image.h"
#include "snapshot/restore.h"
#include "tools/still/context.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

struct RestoreArguments {
  std::string snapshot;
  std::string session;
  bool cold = false;
  std::string memory;
  uint32_t vcpus = 0;
  std::string accelerator;
  std::string agent_timeout = "60s";
};

absl::Status Restore(Context& context, const RestoreArguments& arguments) {
  snapshot::RestoreOptions options{.snapshot = arguments.snapshot,
                                   .session = arguments.session,
                                   .cold = arguments.cold,
                                   .vcpus = arguments.vcpus,
                                   .accelerator = arguments.accelerator};
  if (!arguments.memory.empty()) {
    STILL_ASSIGN_OR_RETURN(options.memory_bytes, ParseBytes(arguments.memory));
  }
  STILL_ASSIGN_OR_RETURN(options.agent_timeout, ParseDuration(arguments.agent_timeout));
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  options.progress = context.MakeProgress();
  absl::StatusOr<snapshot::RestoredSession> restored =
      snapshot::RestoreSnapshot(*repository, context.sessions(), options);
  context.ProgressDone();
  if (!restored.ok()) return restored.status();
  bool warm = !arguments.cold && restored->snapshot.kind() == manifestpb::Snapshot::DISK_AND_MEMORY;
  context.Print({{"session", arguments.session},
                 {"snapshot", restored->snapshot.id()},
                 {"directory", restored->directory},
                 {"warm", warm},
                 {"materialise_us", absl::ToInt64Microseconds(restored->materialised)},
                 {"start_us", absl::ToInt64Microseconds(restored->started)}},
                [&] {
                  std::cout << "session " << arguments.session
                            << (warm ? " goes on from " : " has booted the disks of ")
                            << restored->snapshot.id().substr(0, 12) << " (read in "
                            << FormatMicros(static_cast<uint64_t>(absl::ToInt64Microseconds(restored->materialised)))
                            << ", ready "
                            << FormatMicros(static_cast<uint64_t>(absl::ToInt64Microseconds(restored->started)))
                            << " later)\n";
                });
  return absl::OkStatus();
}

absl::Status Import(Context& context, snapshot::ImportOptions options, const std::vector<std::string>& labels) {
  for (const std::string& label : labels) {
    options.labels.insert(std::pair<std::string, std::string>(absl::StrSplit(label, absl::MaxSplits('=', 1))));
  }
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  options.progress = context.MakeProgress();
  absl::StatusOr<manifestpb::Snapshot> imported = snapshot::ImportFile(*repository, options);
  context.ProgressDone();
  if (!imported.ok()) return imported.status();
  context.Print(ToJson(*imported), [&] {
    std::cout << "snapshot " << imported->id().substr(0, 12) << " of " << options.path << ": "
              << FormatBytes(imported->images(0).size()) << ", stored " << FormatBytes(imported->drain().bytes_stored())
              << "\n";
  });
  return absl::OkStatus();
}

absl::Status Export(Context& context, snapshot::ExportOptions options) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  options.progress = context.MakeProgress();
  STILL_RETURN_IF_ERROR(snapshot::ExportImage(*repository, options));
  context.ProgressDone();
  context.Print({{"path", options.path}, {"format", options.format}},
                [&] { std::cout << options.path << " written\n"; });
  return absl::OkStatus();
}

}  // namespace

void AddTransferCommands(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<RestoreArguments>();
  CLI::App* restore = context.AddCommand(app, "restore", "Start a snapshot as a new session",
                                         [=](Context& c) { return Restore(c, *arguments); });
  restore->add_option("snapshot", arguments->snapshot, "Name, id, or latest")->required();
  restore->add_option("--as", arguments->session, "Name of the new session")->required();
  restore->add_flag("--cold", arguments->cold, "Boot the disks instead of going on with the memory");
  restore->add_option("--memory", arguments->memory, "Another memory size (cold)");
  restore->add_option("--cpus", arguments->vcpus, "Another number of cpus (cold)");
  restore->add_option("--accel", arguments->accelerator, "kvm or tcg (default: as saved; cold: what there is)");
  restore->add_option("--agent-timeout", arguments->agent_timeout, "How long to wait for the guest's agent")
      ->capture_default_str();

  auto import_options = std::make_shared<snapshot::ImportOptions>();
  auto labels = std::make_shared<std::vector<std::string>>();
  CLI::App* import = context.AddCommand(app, "import", "Store a disk image as a snapshot",
                                        [=](Context& c) { return Import(c, *import_options, *labels); });
  import->add_option("file", import_options->path)->required();
  import->add_option("--format", import_options->format, "raw or qcow2")->capture_default_str();
  import->add_option("--name", import_options->name, "Name of the snapshot");
  import->add_option("--label", *labels, "key=value; may be repeated");

  auto export_options = std::make_shared<snapshot::ExportOptions>();
  CLI::App* export_command = context.AddCommand(app, "export", "Write an image of a snapshot to a file",
                                                [=](Context& c) { return Export(c, *export_options); });
  export_command->add_option("snapshot", export_options->snapshot, "Name, id, or latest")->required();
  export_command->add_option("file", export_options->path, "Must not exist")->required();
  export_command->add_option("--image", export_options->image, "Which image (default: the only disk)");
  export_command->add_option("--format", export_options->format, "raw (sparse) or qcow2")->capture_default_str();
}

}  // namespace still::cli
