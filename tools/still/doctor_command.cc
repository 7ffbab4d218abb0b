// doctor: what this host has, which ways of working that gives, and what each costs.
#include <sys/vfs.h>
#include <unistd.h>

#include <iostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/process.h"
#include "session/hypervisor/accelerator.h"
#include "session/hypervisor/memory_ways.h"
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

Finding Program(const std::string& name, const std::string& needed_for, const std::string& package) {
  absl::StatusOr<CommandOutput> output = RunCommand({.argv = {name, "--version"}}, absl::Seconds(20));
  if (!output.ok() || !output->exit.ok()) {
    return {name, Verdict::kBad, absl::StrCat("not found; needed for ", needed_for, "; install ", package)};
  }
  std::vector<std::string> lines = absl::StrSplit(output->stdout_text, '\n');
  return {name, Verdict::kGood, lines[0]};
}

Finding AcceleratorFinding() {
  session::Accelerator found = session::DetectAccelerator();
  return {"accelerator", found.name == "kvm" ? Verdict::kGood : Verdict::kNote,
          absl::StrCat(found.name, ": ", found.reason)};
}

Finding VsockFinding() {
  if (::access("/dev/vhost-vsock", R_OK | W_OK) == 0)
    return {"vsock", Verdict::kGood, "/dev/vhost-vsock: the kernel's own device"};
  return {"vsock", Verdict::kNote,
          "no /dev/vhost-vsock: the user-space device is preloaded into QEMU (slower, same meaning)"};
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
      Program("qemu-system-x86_64", "running sessions", "qemu-system-x86"),
      Program("qemu-img", "exporting qcow2", "qemu-utils"),
      Program("qemu-nbd", "importing qcow2", "qemu-utils"),
      AcceleratorFinding(),
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
