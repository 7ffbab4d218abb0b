// What a SessionConfig must be, and how it becomes a VmConfig. Pure functions, but for looking whether files exist.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"
#include "session/hypervisor/hypervisor.h"
#include "session/vsock/vsock_host.h"

namespace still::session {

// The disk server's socket, in the session's directory.
inline constexpr char kDiskServerSocket[] = "disks.sock";

// Session names appear in paths, host names and on command lines: [a-z0-9][a-z0-9-]{0,62}, as a DNS label.
absl::Status ValidateSessionName(const std::string& name);

// INVALID_ARGUMENT or NOT_FOUND naming the field and the file. A configuration that restores memory needs its RAM.
absl::Status ValidateConfig(const sessionpb::SessionConfig& config, bool has_ram);

// Everything but vsock, command line and incoming state.
absl::StatusOr<VmConfig> BaseVmConfig(const sessionpb::SessionConfig& config, const std::string& directory);

// What decides which devices and which firmware the machine is started with, from saved memory or by booting; no files.
VmConfig PlannedVm(const manifestpb::Machine& machine, bool saved_memory);

VsockBackend BackendOf(sessionpb::SessionConfig::VsockBackend backend);

// Size of a firmware that is named by its path; 0 for another, or when it is not there.
uint64_t FirmwareFileSize(const std::string& firmware);

// "console=ttyS0 panic=-1 [still.port=N] <machine.cmdline>": ours first, so that the user's words win.
std::string AssembleCmdline(const sessionpb::SessionConfig& config, std::optional<uint32_t> vsock_port);

// The function that starts a VM of that kind; empty: "qemu". NOT_FOUND names what there is.
absl::StatusOr<std::function<absl::StatusOr<std::unique_ptr<Vm>>(const VmConfig&)>> HypervisorStarter(
    const std::string& hypervisor);

// A network address of this machine's own making, which no other session has.
std::string RandomMac();

// Of throw-away sessions of restore drills: no schedule fits them, so no other session may be called so.
inline constexpr char kDrillPrefix[] = "drill-";
// INVALID_ARGUMENT for a name that a session of a user's cannot have.
absl::Status CheckOrdinaryName(const std::string& name);

// Of a session that could not be started; without its time.
sessionpb::SessionEnd FailedStart(const absl::Status& why);

// In a few words: "powered off", "stopped", "stopped by force", "timed out", "exited with code 0", "crashed: <error>",
// "killed", "ended with its host", "did not start: <error>".
std::string DescribeEnd(const sessionpb::SessionEnd& end);

// Somebody meant it to end: its user, its guest, or its own time limit. Else it should be running.
bool EndedOnPurpose(const sessionpb::SessionEnd& end);

}  // namespace still::session
