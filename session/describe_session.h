// What a session tells of itself (SessionControl.Describe): its machine, its state, its agent, its disks.
#pragma once

#include "proto/aliases.h"
#include "proto/session.pb.h"
#include "session/session.h"

namespace still::session {

// Asks the hypervisor, and the agent if one has ever answered; takes up to some seconds when they hang. Never fails:
// what nobody answers for is said as not known. Leaves active_capture to whoever runs captures. Thread-safe.
sessionpb::DescribeResponse DescribeSession(Session& session);

}  // namespace still::session
