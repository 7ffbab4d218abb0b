// Reaching the host: dialling (or, for tests, listening), and noticing the end of a connection.
//
// gRPC 1.51 knows no vsock addresses, but serves a descriptor that is handed to it (AddInsecureChannelFromFd), and
// tells nobody when that connection ends. So the agent keeps a duplicate of the descriptor and polls it for POLLRDHUP,
// POLLHUP and POLLERR: the socket's state is shared by all its descriptors, gRPC reads the data and the agent sees only
// the end. All ends show there: the host closes or dies (vsock(7): RST; unix(7): EOF), the guest was restored (the
// transport is reset, every connection gets POLLERR), and gRPC itself gives up (it calls shutdown(2) before it closes).
#pragma once

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::agent {

struct Endpoint {
  enum class Kind { kVsock, kUnix };
  Kind kind = Kind::kVsock;
  unsigned cid = 2;  // VMADDR_CID_HOST
  unsigned port = 1024;
  std::string path;

  // "vsock:PORT", "vsock:CID:PORT" or "unix:PATH". INVALID_ARGUMENT otherwise.
  static absl::StatusOr<Endpoint> Parse(absl::string_view text);
  std::string ToString() const;
};

// A connected, non-blocking, close-on-exec socket. UNAVAILABLE when nobody listens; waits about a second at most.
absl::StatusOr<OwnedFd> Dial(const Endpoint& endpoint);

// Waits for the end of the connection that `duplicate` belongs to, or until `stop_fd` is readable: false.
bool WaitForConnectionEnd(int duplicate, int stop_fd);

// Pauses between attempts: none, then 10 ms doubling to 1 s. A restored guest must be reached within a blink, and a
// host that is gone for days must not cost the guest anything.
class Backoff {
 public:
  absl::Duration Next();
  // Call when a connection has lived: a host that accepts and closes at once is no reason to hurry.
  void Reset() { next_ = absl::ZeroDuration(); }

 private:
  absl::Duration next_;
};

}  // namespace still::agent
