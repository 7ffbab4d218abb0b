// agent install.
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/mount_namespace.h"
#include "base/names.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/guest_image/install_agent.h"

namespace still::cli {
namespace {

struct InstallArguments {
  std::string image;
  std::string format;
  uint32_t port = 0;
};

absl::Status Install(Context& context, const InstallArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(AgentFiles files, AgentFiles::Load());
  // The likeliest mistake first, before anything about namespaces.
  if (::access(arguments.image.c_str(), R_OK) != 0) return ErrnoStatus(errno, absl::StrCat("disk ", arguments.image));
  const bool mounts = ::geteuid() == 0;
  if (mounts) STILL_RETURN_IF_ERROR(EnterPrivateMountNamespace());
  // Never guessed from the content: a guest could write what makes its raw disk look like an image with a backing file.
  std::string format = arguments.format;
  if (format.empty()) format = absl::EndsWith(arguments.image, ".qcow2") ? "qcow2" : "raw";
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<GuestDisk> disk, GuestDisk::Open(arguments.image, format));
  std::string init;
  {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<GuestRoot> root,
                           mounts ? MountGuestRoot(*disk) : OpenGuestRootWithDebugfs(*disk));
    STILL_ASSIGN_OR_RETURN(init, InstallAgent(*root, files, arguments.port));
    STILL_RETURN_IF_ERROR(root->Commit());
  }
  STILL_RETURN_IF_ERROR(disk->Close());
  context.Print({{"image", EscapeName(arguments.image)}, {"init", init}}, [&] {
    std::cout << "still-agent is in " << arguments.image << "; " << init << " starts it at the next boot\n";
  });
  return absl::OkStatus();
}

}  // namespace

void AddAgentCommands(CLI::App& app, Context& context) {
  CLI::App* agent = app.add_subcommand("agent", "The guest agent");
  agent->require_subcommand(1);
  auto arguments = std::make_shared<InstallArguments>();
  CLI::App* install = context.AddCommand(*agent, "install", "Put the agent into the disk image of a guest that is off",
                                         [=](Context& c) { return Install(c, *arguments); });
  install->add_option("image", arguments->image, "Its disk; as root ext4, xfs or btrfs, else ext4")
      ->required()
      ->type_name(kFileType);
  install->add_option("--format", arguments->format, "raw or qcow2 (default: by the file's name)")
      ->check(CLI::IsMember({"raw", "qcow2"}));
  install->add_option("--port", arguments->port, "vsock port of the host that it dials (default: 1024)");
}

}  // namespace still::cli
