// What the vsock device asks of the host: byte streams, non-blocking, one a connection. The device knows nothing else
// of the host; UnixBridge implements this over UNIX sockets, tests and the fuzzer over memory.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace still::vsock {

// Names a connection inside one device; never used twice.
using ConnectionId = uint64_t;

struct IoResult {
  enum Kind {
    kDone,        // `bytes` (> 0) were moved.
    kWouldBlock,  // Nothing now. The host side calls OnReadable or OnWritable of the device when that changes.
    kEnd,         // Reading only: the host sends no more.
    kBroken,      // The host's end is gone in this direction.
  };
  Kind kind = kBroken;
  size_t bytes = 0;
};

// The host's end of one connection. The destructor closes it.
class HostStream {
 public:
  virtual ~HostStream() = default;
  virtual IoResult Read(const iovec* parts, int count) = 0;
  virtual IoResult Write(const iovec* parts, int count) = 0;
  // The guest has accepted what the host asked for; before this nothing is written to the stream. False: it is gone.
  virtual bool Accepted(uint32_t host_port) = 0;
  // The guest will send no more / will read no more.
  virtual void EndOfGuestData() = 0;
  virtual void GuestStoppedReading() = 0;
};

// The ports of a connection that the guest asks for.
struct GuestDial {
  uint32_t host_port = 0;
  uint32_t guest_port = 0;
  // Only privileged programs of the guest may dial from such a port (net/vmw_vsock/af_vsock.c: LAST_RESERVED_PORT).
  bool privileged() const { return guest_port < 1024; }
};

class HostSide {
 public:
  virtual ~HostSide() = default;
  // A stream to whatever listens on that host port, or null when nothing does or no resources are left.
  virtual std::unique_ptr<HostStream> Connect(const GuestDial& dial, ConnectionId id) = 0;
};

}  // namespace still::vsock
