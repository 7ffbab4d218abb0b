// import, export.
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/names.h"
#include "snapshot/export_chain.h"
#include "snapshot/export_machine.h"
#include "snapshot/file_image.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/interruption.h"
#include "tools/still/labels.h"

namespace still::cli {
namespace {

absl::Status Import(Context& context, snapshot::ImportOptions options, const std::vector<std::string>& labels) {
  STILL_ASSIGN_OR_RETURN(options.labels, ParseLabels(labels));
  if (options.path == snapshot::kStandardInput) context.set_input_is_data();
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  options.progress = context.MakeProgress();
  absl::StatusOr<manifestpb::Snapshot> imported = snapshot::ImportFile(*repository, options);
  context.ProgressDone();
  if (!imported.ok()) return imported.status();
  context.Print(ToJson(*imported), [&] {
    std::cout << "snapshot " << imported->id().substr(0, 12) << " of " << imported->session() << ": "
              << FormatBytes(imported->images(0).size()) << ", stored " << FormatBytes(imported->drain().bytes_stored())
              << "\n";
  });
  return absl::OkStatus();
}

absl::Status WriteChain(Context& context, store::Repository& repository, const snapshot::ExportOptions& options) {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> files,
                         snapshot::ExportChain(repository, {.snapshot = options.snapshot,
                                                            .image = options.image,
                                                            .path = options.path,
                                                            .progress = options.progress,
                                                            .go_on = options.go_on}));
  context.ProgressDone();
  context.Print({{"path", EscapeName(options.path)}, {"files", files}}, [&] {
    for (const std::string& file : files) std::cout << JoinPath(options.path, file) << "\n";
  });
  return absl::OkStatus();
}

absl::Status Write(Context& context, store::Repository& repository, const snapshot::ExportOptions& options,
                   bool chain) {
  if (chain) return WriteChain(context, repository, options);
  const nlohmann::json json = {{"path", EscapeName(options.path)}, {"format", options.format}};
  if (options.format == "directory") {
    STILL_RETURN_IF_ERROR(snapshot::ExportMachine(
        repository,
        {.snapshot = options.snapshot, .path = options.path, .progress = options.progress, .go_on = options.go_on}));
    context.ProgressDone();
    context.Print(json, [&] { std::cout << JoinPath(options.path, "run") << " starts it with plain QEMU\n"; });
    return absl::OkStatus();
  }
  STILL_RETURN_IF_ERROR(snapshot::ExportImage(repository, options));
  context.ProgressDone();
  context.Print(json, [&] { std::cout << options.path << " written\n"; });
  return absl::OkStatus();
}

absl::Status Export(Context& context, snapshot::ExportOptions options, bool chain) {
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  // Ctrl-C leaves nothing half written.
  Interruption interruption;
  options.progress = context.MakeProgress();
  options.go_on = [&interruption] { return !interruption.asked(); };
  absl::Status written = Write(context, *repository, options, chain);
  context.ProgressDone();
  // With its lease: a signal ends us here.
  repository.reset();
  return written;
}

}  // namespace

void AddTransferCommands(CLI::App& app, Context& context) {
  auto import_options = std::make_shared<snapshot::ImportOptions>();
  auto labels = std::make_shared<std::vector<std::string>>();
  CLI::App* import = context.AddCommand(app, "import", "Store a disk image as a snapshot",
                                        [=](Context& c) { return Import(c, *import_options, *labels); });
  import->add_option("file", import_options->path, "A disk image, a block device, a pipe, or - for standard input")
      ->required()
      ->type_name(kFileType);
  import->add_option("--format", import_options->format, "raw or qcow2")->capture_default_str();
  import->add_option("--name", import_options->name, "Name of the snapshot");
  import->add_option("--session", import_options->session, "Listed under this name (default: as the file is called)");
  import->add_option("--label", *labels, "key=value; may be repeated");

  auto export_options = std::make_shared<snapshot::ExportOptions>();
  auto chain = std::make_shared<bool>(false);
  CLI::App* export_command =
      context.AddCommand(app, "export", "Write an image to a file, or a machine that plain QEMU starts to a directory",
                         [=](Context& c) { return Export(c, *export_options, *chain); });
  export_command->add_option("snapshot", export_options->snapshot, "Name, id, or latest")
      ->required()
      ->type_name(kSnapshotType);
  export_command->add_option("file", export_options->path, "Must not exist")->required()->type_name(kFileType);
  export_command->add_option("--image", export_options->image, "Which image (default: the only disk)");
  export_command
      ->add_option("--format", export_options->format,
                   "raw (sparse), qcow2, or directory: disks, memory and a script with the command line")
      ->capture_default_str();
  export_command->add_flag(
      "--chain", *chain, "A directory of qcow2 files, one over the other, that mirrors the snapshot and its ancestors");
}

}  // namespace still::cli
