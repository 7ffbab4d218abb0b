// The host's side of the vsock device over UNIX sockets, in the hybrid way that other VMMs use as well:
//   - a guest that connects to host port P reaches whoever listens on <directory>/vsock.sock_P. When it connects from a
//     privileged port (below 1024) and somebody listens on <directory>/vsock.sock_P_privileged, it reaches them instead;
//   - a host program that connects to <directory>/vsock.sock and writes "CONNECT <port>\n" reaches that port in the
//     guest: it reads "OK <host port>\n" when the guest has accepted, or the end of the stream when it has not.
// Knows nothing of rings and packets. Not thread-safe; never blocks.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "session/vsock/device/device.h"
#include "session/vsock/device/host_side.h"

namespace still::vsock {

// What an epoll event is about: a kind in the top byte, an id below.
enum class EventKind : uint8_t { kWake = 1, kKick, kListener, kHandshake, kStream };
constexpr uint64_t EventTag(EventKind kind, uint64_t id) { return uint64_t{static_cast<uint8_t>(kind)} << 56 | id; }
constexpr EventKind KindOf(uint64_t tag) { return static_cast<EventKind>(tag >> 56); }
constexpr uint64_t IdOf(uint64_t tag) { return tag & ((uint64_t{1} << 56) - 1); }

class UnixBridge : public HostSide {
 public:
  static constexpr size_t kMaxHandshakes = 64;         // Host programs that have not said yet what they want ...
  static constexpr size_t kMaxHandshakeBytes = 32;     // ... in so many bytes ...
  static constexpr uint64_t kHandshakeUs = 5'000'000;  // ... and within this time.
  static constexpr uint64_t kAcceptPauseUs = 100'000;  // After running out of descriptors.

  // All descriptors stay the caller's and must outlive the bridge. `listener_fd` (-1: none) is the listening socket
  // <directory>/vsock.sock, `directory_fd` the directory of the guest's host ports.
  UnixBridge(int epoll_fd, int listener_fd, int directory_fd);
  ~UnixBridge() override;

  // Must be called before any event is handed in.
  void Attach(VsockDevice* device) { device_ = device; }

  std::unique_ptr<HostStream> Connect(const GuestDial& dial, ConnectionId id) override;
  // An event whose kind is kListener, kHandshake or kStream.
  void OnEvent(uint64_t tag, uint32_t events, uint64_t now_us);
  void Tick(uint64_t now_us);
  uint64_t NextDeadline() const;

 private:
  struct Handshake {
    int fd = -1;
    uint64_t deadline_us = 0;
  };

  // A socket that is connected to that name in the directory, or -1.
  int ConnectTo(const char* name);
  void Accept(uint64_t now_us);
  void ContinueHandshake(ConnectionId id, uint64_t now_us);
  void EndHandshake(ConnectionId id);
  bool Watch(int operation, int fd, uint32_t events, uint64_t tag);

  const int epoll_fd_;
  const int listener_fd_;
  const int directory_fd_;
  VsockDevice* device_ = nullptr;
  std::unordered_map<ConnectionId, Handshake> handshakes_;
  uint64_t accept_again_us_ = 0;  // 0: accepting.
};

}  // namespace still::vsock
