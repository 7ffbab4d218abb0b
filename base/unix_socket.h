// UNIX stream sockets: listen, connect, accept with deadlines, and descriptors passed along (SCM_RIGHTS, unix(7)).
//
// sockaddr_un holds 107 bytes of path. Longer paths are reached through /proc/self/fd/<directory>/<name>, so that a
// state directory may lie anywhere; only the last component is limited.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"

namespace still {

// Binds (replacing a stale socket file), sets mode 0600 and listens. Close-on-exec, blocking.
absl::StatusOr<OwnedFd> ListenUnix(const std::string& path, int backlog = 16);
// UNAVAILABLE when nobody listens. The attempt does not wait: a listening socket accepts at once.
absl::StatusOr<OwnedFd> ConnectUnix(const std::string& path);
// Whether somebody listens there, also one that hangs and accepts nobody. Never waits: whoever looks at a thousand sockets
// must not wait a second for each that hangs.
bool IsListening(const std::string& path);
// Waits up to `timeout`, then DEADLINE_EXCEEDED.
absl::StatusOr<OwnedFd> AcceptWithin(int listening_fd, absl::Duration timeout, absl::string_view what);
// Waits until `fd` is readable; DEADLINE_EXCEEDED otherwise. absl::InfiniteDuration() waits for ever.
absl::Status WaitReadable(int fd, absl::Duration timeout, absl::string_view what);

// Sends `data` (at least one byte) and, with its first byte, a duplicate of `fd_to_pass`.
absl::Status SendWithFd(int socket_fd, absl::string_view data, int fd_to_pass);

// Up to `size` bytes, of a packet socket one packet, and the descriptor that came with them, if one did (close-on-exec). How many
// bytes; 0: the other end is closed. Blocks.
absl::StatusOr<size_t> ReceiveWithFd(int socket_fd, void* out, size_t size, OwnedFd& passed);

// A connected pair, close-on-exec.
struct SocketPair {
  OwnedFd first;
  OwnedFd second;
};
absl::StatusOr<SocketPair> MakeSocketPair();

}  // namespace still
