// Short names for the generated namespaces, the same everywhere.
#pragma once

namespace stillpoint::guest::v1 {}
namespace stillpoint::session::v1 {}
namespace stillpoint::manifest::v1 {}

namespace still {
namespace guestpb = ::stillpoint::guest::v1;
namespace sessionpb = ::stillpoint::session::v1;
namespace manifestpb = ::stillpoint::manifest::v1;
}  // namespace still
