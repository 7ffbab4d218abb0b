// doctor: what this host has, which ways of working that gives, and what each costs.
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <iostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "base/process.h"
#include "session/control/session_registry.h"
#include "session/hypervisor/accelerator.h"
#include "session/hypervisor/memory_ways.h"
#include "session/hypervisor/qemu/qemu_confinement.h"
#include "session/vsock/vsock_host.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/table.h"

namespace still::cli {
namespace {

enum class Verdict { kGood, kNote, kBad };

struct Finding {
  std::string what;
  Verdict verdict;
  std::string text;
};

const char* Name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kGood:
      return "ok";
    case Verdict::kNote:
      return "note";
    default:
      return "missing";
  }
}

Tone ToneOf(Verdict verdict) {
  if (verdict == Verdict::kGood) return Tone::kGood;
  return verdict == Verdict::kNote ? Tone::kWarning : Tone::kBad;
}

struct Needed {
  std::string program;
  std::string needed_for;
  std::string package;
  Verdict without = Verdict::kBad;  // kNote: snapshots and plain restores do without it.
};

Finding Program(const Needed& needed) {
  const std::string& name = needed.program;
  absl::StatusOr<CommandOutput> output = RunCommand({.argv = {name, "--version"}}, absl::Seconds(20));
  if (!output.ok() || !output->exit.ok()) {
    return {name, needed.without,
            absl::StrCat("not found; needed for ", needed.needed_for, "; install ", needed.package)};
  }
  std::vector<std::string> lines = absl::StrSplit(output->stdout_text, '\n');
  return {name, Verdict::kGood, lines[0]};
}

// Whether nbdkit can load it is asked of nbdkit.
Finding PluginFinding() {
  const std::string what = "nbdkit plugin";
  absl::StatusOr<std::string> plugin = FindSibling("nbdkit-still-plugin.so", "STILL_NBDKIT_PLUGIN");
  if (!plugin.ok()) return {what, Verdict::kNote, std::string(plugin.status().message())};
  absl::StatusOr<CommandOutput> output = RunCommand({.argv = {"nbdkit", "--version", *plugin}}, absl::Seconds(20));
  if (!output.ok() || !output->exit.ok()) {
    const std::string why = output.ok() ? output->stderr_text : std::string(output.status().message());
    return {what, Verdict::kNote, absl::StrCat(*plugin, " cannot be used: ", absl::StripAsciiWhitespace(why))};
  }
  return {what, Verdict::kGood, *plugin};
}

// nbdfuse is started by whoever asks for files, and mounts for them.
Finding FuseFinding() {
  const absl::StatusOr<OwnedFd> device = OpenFile("/dev/fuse", O_RDWR);
  if (device.ok()) return {"FUSE", Verdict::kGood, "/dev/fuse"};
  return {"FUSE", Verdict::kNote, absl::StrCat(device.status().message(), "; still ls, cp and mount need it")};
}

Finding AcceleratorFinding() {
  session::Accelerator found = session::DetectAccelerator();
  return {"accelerator", found.name == "kvm" ? Verdict::kGood : Verdict::kNote,
          absl::StrCat(found.name, ": ", found.reason)};
}

// A guest that escapes into QEMU is whoever QEMU is.
Finding HypervisorUserFinding() {
  const session::QemuUser chosen = session::ChooseQemuUser();
  const std::string what = "QEMU's user";
  if (chosen.user.has_value()) return {what, Verdict::kGood, "one of its own for each session, without rights"};
  if (::geteuid() != 0) return {what, Verdict::kGood, "this user"};
  return {what, Verdict::kNote, absl::StrCat("root: ", chosen.reason)};
}

Finding VsockFinding() {
  // As a session looks for it.
  const absl::Status kernel = session::FindVsock(session::VsockBackend::kKernel);
  if (kernel.ok()) return {"vsock", Verdict::kGood, "/dev/vhost-vsock: the kernel's own device"};
  return {"vsock", Verdict::kNote,
          absl::StrCat(kernel.message(), "; the user-space device is preloaded into QEMU (slower, same meaning)")};
}

void AddMemoryFindings(std::vector<Finding>& findings) {
  for (const session::MemoryWay& way : session::MemoryWays()) {
    findings.push_back(
        {absl::StrCat("memory by ", way.name), way.available ? Verdict::kGood : Verdict::kNote, way.text});
  }
}

Finding SpaceFinding(const std::string& path) {
  struct statfs space {};
  std::string where = path;
  while (::statfs(where.c_str(), &space) != 0 && where != "/")
    where = where.substr(0, std::max<size_t>(1, where.rfind('/')));
  uint64_t free = static_cast<uint64_t>(space.f_bavail) * static_cast<uint64_t>(space.f_bsize);
  return {"space", free > (uint64_t{1} << 30) ? Verdict::kGood : Verdict::kNote,
          absl::StrCat(FormatBytes(free), " free under ", where)};
}

Finding RepositoryFinding(const Context& context) {
  if (!PathExists(context.repository_path())) {
    return {"repository", Verdict::kNote,
            absl::StrCat("none at ", context.repository_path(), " yet; make one with `still init`")};
  }
  return {"repository", Verdict::kGood, context.repository_path()};
}

absl::Status Doctor(Context& context) {
  std::vector<Finding> findings = {
      Program({"qemu-system-x86_64", "running sessions", "qemu-system-x86"}),
      Program({"qemu-img", "exporting qcow2 and lazy restores", "qemu-utils"}),
      Program({"qemu-nbd", "importing qcow2", "qemu-utils"}),
      Program({"nbdkit", "lazy restores, still serve, mount, ls and cp", "nbdkit", Verdict::kNote}),
      PluginFinding(),
      Program({"nbdfuse", "still mount, ls and cp", "libnbd-bin", Verdict::kNote}),
      FuseFinding(),
      Program({"linux.uml", "still ls and cp without root", "user-mode-linux", Verdict::kNote}),
      AcceleratorFinding(),
      HypervisorUserFinding(),
      VsockFinding(),
      SpaceFinding(context.state_directory()),
      RepositoryFinding(context),
  };
  AddMemoryFindings(findings);
  bool usable = true;
  nlohmann::json list = nlohmann::json::array();
  Table table;
  for (const Finding& finding : findings) {
    usable &= finding.verdict != Verdict::kBad;
    list.push_back({{"what", finding.what}, {"verdict", Name(finding.verdict)}, {"text", finding.text}});
    table.Add({finding.what, {Name(finding.verdict), ToneOf(finding.verdict)}, finding.text});
  }
  context.Print({{"usable", usable}, {"findings", list}}, [&] { std::cout << table.ForTerminal(); });
  return usable ? absl::OkStatus() : absl::FailedPreconditionError("something this host needs is missing (see above)");
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Context& context) {
  context.AddCommand(app, "doctor", "What this host has, and what that means for snapshots", Doctor);
}

}  // namespace still::cli
