// The state of one vsock connection and its credit arithmetic (virtio 1.1, section 5.10.6.3: free-running 32-bit
// counters of bytes; each side may have at most the other's window of bytes under way).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "session/vsock/device/byte_queue.h"
#include "session/vsock/device/host_side.h"

namespace still::vsock {

struct Connection {
  enum class State {
    kConnecting,   // The host asked; REQUEST is sent or will be.
    kEstablished,  // Data flows.
    kClosing,      // The host is gone and the guest knows (SHUTDOWN of both directions): waits for its RST.
    kDraining,     // The guest is gone in good order: what it sent still goes to the host. No longer has its ports.
  };

  explicit Connection(uint32_t window) : to_host(window), window(window) {}

  // Bytes the guest still takes. A guest that reports nonsense gets nothing.
  uint32_t Credit() const {
    uint32_t under_way = sent - peer_forwarded;
    return under_way < peer_window ? peer_window - under_way : 0;
  }
  // Takes the guest's word on its window, which every packet carries.
  void UpdateCredit(uint32_t buf_alloc, uint32_t fwd_cnt) {
    if (buf_alloc != peer_window || fwd_cnt != peer_forwarded) credit_requested = false;
    peer_window = buf_alloc;
    peer_forwarded = fwd_cnt;
  }
  // True when so much was taken off the guest's hands since we last said so that it should be told.
  bool ShouldTellCredit() const { return forwarded - forwarded_told >= window / 4; }

  ConnectionId id = 0;
  uint32_t host_port = 0;
  uint32_t guest_port = 0;
  State state = State::kEstablished;
  std::unique_ptr<HostStream> stream;  // Null in kClosing.

  // Guest to host.
  ByteQueue to_host;
  uint32_t window;              // What we let the guest have under way; also the limit of to_host.
  uint32_t received = 0;        // Bytes from the guest.
  uint32_t forwarded = 0;       // Of those, handed to the host (or dropped, once the host reads no more).
  uint32_t forwarded_told = 0;  // `forwarded` as the guest last heard it.
  bool host_deaf = false;       // Writing to the host failed.
  bool end_passed_on = false;   // EndOfGuestData was called.

  // Host to guest.
  uint32_t sent = 0;
  uint32_t peer_window = 0;
  uint32_t peer_forwarded = 0;
  bool readable = true;  // Until a read says otherwise: the host side reports edges only.
  bool host_ended = false;
  bool host_gone = false;  // Neither sends nor reads.

  // Packets owed to the guest; several can be due at once.
  bool owes_request = false;
  bool owes_response = false;
  bool owes_credit_update = false;
  bool owes_credit_request = false;
  bool credit_requested = false;
  uint32_t shutdown_sent = 0;   // VIRTIO_VSOCK_SHUTDOWN_* as told to the guest ...
  uint32_t guest_shutdown = 0;  // ... and as told by it.

  bool queued = false;       // In the device's queue of connections with something for the guest.
  uint64_t deadline_us = 0;  // 0: none.
  uint64_t retry_at_us = 0;  // A CONNECT to be repeated on another port; 0: none.
};

}  // namespace still::vsock
