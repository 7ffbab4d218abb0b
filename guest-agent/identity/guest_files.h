// The files of a guest that hold what no two machines may share. Each function is one step of AdoptIdentity: it changes
// what is there, leaves out what is not, and says what it did.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/process.h"
#include "base/status.h"
#include "proto/guest.pb.h"

namespace still::agent {

namespace pb = ::stillpoint::guest::v1;

struct StepResult {
  pb::IdentityStep::Outcome outcome = pb::IdentityStep::DONE;
  std::string detail;

  static StepResult Done(std::string detail = "") { return {pb::IdentityStep::DONE, std::move(detail)}; }
  static StepResult Skipped(std::string detail) { return {pb::IdentityStep::SKIPPED, std::move(detail)}; }
  static StepResult Of(const absl::Status& status);  // DONE or FAILED.
};

class GuestFiles {
 public:
  using RunProgram =
      std::function<absl::StatusOr<CommandOutput>(std::vector<std::string> argv, absl::Duration timeout)>;
  // `root`: "" for the guest's own files, or a directory that stands for them.
  GuestFiles(std::string root, RunProgram run) : root_(std::move(root)), run_(std::move(run)) {}

  // /etc/machine-id and D-Bus's copy. `id`: 32 hexadecimal digits.
  StepResult SetMachineId(const std::string& id);
  // "" when there is none.
  std::string MachineId() const;
  // /etc/hostname, and the old name's places in /etc/hosts.
  absl::Status SetHostName(const std::string& old_name, const std::string& new_name);
  // New SSH host keys of the kinds that are there, made by the guest's own ssh-keygen; then sshd is told. An old key
  // stays until its successor is complete.
  StepResult RenewSshHostKeys();
  // The name of the interface that has this address; "" when there is none.
  std::string InterfaceWithMac(absl::string_view mac) const;
  // Leases and identifiers that DHCP clients keep, then the clients that run are restarted.
  StepResult ForgetDhcpIdentity();
  // The seeds that the next boot would begin with.
  StepResult RenewRandomSeeds();

 private:
  std::string Path(absl::string_view path) const { return root_ + std::string(path); }
  bool HasSystemd() const;
  absl::Status RenewSshKey(const std::string& name, const std::string& kind);

  const std::string root_;
  const RunProgram run_;
};

}  // namespace still::agent
