// What a capture makes in QEMU (block nodes, exports, an NBD server, fleecing files), by name, and the one thing that
// takes it away.
//
// Everything carries the capture's id behind a prefix of ours. A sweep asks QEMU what is there under these prefixes and
// gives it back, whoever left it. So the end of a capture needs no memory of how far it came, and a command that timed
// out here and is executed by QEMU later costs nothing: QEMU answers in the order in which it is asked, so that the next
// sweep sees what came of it.
//
// Bitmaps are not part of it: they outlive captures (capture_bitmaps.h).
#pragma once

#include <cstddef>
#include <string>

#include "base/status.h"
#include "session/hypervisor/qemu/qemu_machine.h"

namespace still::session {

// `capture_id` has 16 hex digits: the name of a node may have 31 characters.
std::string FilterNode(size_t disk, const std::string& capture_id);
std::string FleeceNode(size_t disk, const std::string& capture_id);
std::string SnapshotNode(size_t disk, const std::string& capture_id);
std::string ExportId(const std::string& disk, const std::string& capture_id);

// Arguments of qom-set: what lies under the guest's device.
nlohmann::json DriveIs(size_t disk, const std::string& node);

// Gives everything back that captures have made; the guest's disks are as before them. No capture may be under way but
// the one that calls. The first command that QEMU does not answer ends it with DEADLINE_EXCEEDED, to be called again.
absl::Status SweepCaptures(const QemuMachine& machine);

}  // namespace still::session
