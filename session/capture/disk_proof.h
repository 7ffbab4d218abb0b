// Whether the guest's agent has proven, for each disk of a capture, that nothing was writing to it.
#pragma once

#include <string>
#include <vector>

#include "google/protobuf/repeated_field.h"
#include "proto/aliases.h"
#include "proto/guest.pb.h"
#include "proto/manifest.pb.h"

namespace still::session {

// One proof for each of `captured`, in its order. The guest's disks are found by their PCI address, else by their serial
// number. One that is not found is not covered; one that may be any of several is covered if all of those are. Lists are
// bounded: what is left out is not covered.
std::vector<manifestpb::Consistency::DiskProof> ProveDisks(
    const google::protobuf::RepeatedPtrField<manifestpb::Disk>& captured, const guestpb::QuiesceResponse& report);

// After the thaw: the guest's disks that `written` names are not covered any more.
void NoteWritten(const google::protobuf::RepeatedPtrField<std::string>& written,
                 const google::protobuf::RepeatedPtrField<manifestpb::Disk>& captured,
                 const guestpb::QuiesceResponse& report, manifestpb::Consistency& consistency);

// Instead, when the guest was reset before it could tell: disks are not covered any more whose cover the thaw's report
// would have had to confirm.
void NoteUntold(const google::protobuf::RepeatedPtrField<manifestpb::Disk>& captured,
                const guestpb::QuiesceResponse& report, manifestpb::Consistency& consistency);

}  // namespace still::session
