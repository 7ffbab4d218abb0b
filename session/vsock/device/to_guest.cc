// Packets for the guest: resets first, then each connection in turn, one packet at a time.
#include <algorithm>
#include <cstring>

#include "session/vsock/device/device.h"

namespace still::vsock {

void VsockDevice::OweReset(uint64_t src_cid, uint64_t dst_cid, uint32_t src_port, uint32_t dst_port, uint16_t type) {
  Header header{};
  header.src_cid = src_cid;
  header.dst_cid = dst_cid;
  header.src_port = src_port;
  header.dst_port = dst_port;
  header.type = type;
  header.op = VIRTIO_VSOCK_OP_RST;
  replies_.push_back(header);
  ++counters_.resets_sent;
}

void VsockDevice::PutHeader(const Header& header, const Chain& chain) {
  const auto* from = reinterpret_cast<const uint8_t*>(&header);
  size_t copied = 0;
  for (size_t i = 0; copied < sizeof header; ++i) {  // SendToGuest has checked that there is room.
    const Segment& segment = chain.segments[i];
    size_t size = std::min<size_t>(segment.size, sizeof header - copied);
    std::memcpy(segment.data, from + copied, size);
    memory_.MarkDirty(segment.guest_address, size);
    copied += size;
  }
}

VsockDevice::Header VsockDevice::MakeHeader(Connection* connection, uint16_t op) {
  Header header{};
  header.src_cid = kHostCid;
  header.dst_cid = guest_cid_;
  header.src_port = connection->host_port;
  header.dst_port = connection->guest_port;
  header.type = VIRTIO_VSOCK_TYPE_STREAM;
  header.op = op;
  header.buf_alloc = connection->window;
  header.fwd_cnt = connection->forwarded;
  connection->forwarded_told = connection->forwarded;
  return header;
}

bool VsockDevice::SendToGuest(int budget, uint64_t now_us) {
  if (!running()) return false;
  if (!replies_.empty() || !ready_.empty()) to_guest_.DisableKicks();
  while (budget > 0 && (!replies_.empty() || !ready_.empty())) {
    Connection* connection = replies_.empty() ? Find(ready_.front()) : nullptr;
    Virtqueue::Next next = to_guest_.Peek(&chain_);
    if (next == Virtqueue::Next::kEmpty) return false;  // The guest kicks when it has given us new buffers.
    if (next == Virtqueue::Next::kBroken || chain_.bytes < sizeof(Header)) {
      Break();
      return false;
    }
    --budget;
    uint32_t written = sizeof(Header);
    if (connection == nullptr) {
      PutHeader(replies_.front(), chain_);
      replies_.pop_front();
    } else {
      ready_.pop_front();
      connection->queued = false;
      ConnectionId id = connection->id;
      written = FillPacket(connection, chain_, now_us);
      if (written == 0) continue;
      connection = Find(id);
      if (connection != nullptr) Enqueue(connection);  // To the end of the line, until it has nothing to say.
    }
    to_guest_.Complete(chain_, written);
    ++counters_.packets_to_guest;
  }
  return budget == 0;
}

// Writes the next packet of the connection and gives its length; 0 when there is nothing to say now.
uint32_t VsockDevice::FillPacket(Connection* connection, const Chain& chain, uint64_t now_us) {
  const struct {
    bool* owed;
    uint16_t op;
  } owed[] = {
      {&connection->owes_request, VIRTIO_VSOCK_OP_REQUEST},
      {&connection->owes_response, VIRTIO_VSOCK_OP_RESPONSE},
      {&connection->owes_credit_update, VIRTIO_VSOCK_OP_CREDIT_UPDATE},
      {&connection->owes_credit_request, VIRTIO_VSOCK_OP_CREDIT_REQUEST},
  };
  for (const auto& packet : owed) {
    if (!*packet.owed) continue;
    *packet.owed = false;
    PutHeader(MakeHeader(connection, packet.op), chain);
    return sizeof(Header);
  }
  if (connection->state != Connection::State::kEstablished) return 0;
  bool guest_reads = (connection->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) == 0;
  if (guest_reads && connection->readable && !connection->host_ended) {
    ConnectionId id = connection->id;
    uint32_t written = FillData(connection, chain);
    if (written != 0 || Find(id) == nullptr) return written;
  }
  return FillShutdown(connection, chain, now_us);
}

uint32_t VsockDevice::FillData(Connection* connection, const Chain& chain) {
  uint32_t room = std::min(connection->Credit(), kMaxPayload);
  if (room == 0) {
    if (connection->credit_requested) return 0;
    connection->credit_requested = true;
    PutHeader(MakeHeader(connection, VIRTIO_VSOCK_OP_CREDIT_REQUEST), chain);
    return sizeof(Header);
  }
  // Straight from the host's socket into the guest's buffer, behind the header.
  iovec parts[Chain::kMaxSegments];
  int count = 0;
  size_t skip = sizeof(Header);
  for (size_t i = 0; i < chain.count && room > 0; ++i) {
    const Segment& segment = chain.segments[i];
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    uint32_t size = std::min<uint32_t>(segment.size - static_cast<uint32_t>(skip), room);
    parts[count++] = {segment.data + skip, size};
    skip = 0;
    room -= size;
  }
  if (count == 0) {
    Break();  // A receive buffer that holds a header and no byte of data makes no progress possible.
    return 0;
  }
  IoResult result = connection->stream->Read(parts, count);
  switch (result.kind) {
    case IoResult::kWouldBlock:
      connection->readable = false;
      return 0;
    case IoResult::kBroken:
      connection->host_gone = true;
      [[fallthrough]];
    case IoResult::kEnd:
      connection->host_ended = true;
      return 0;
    case IoResult::kDone:
      break;
  }
  auto length = static_cast<uint32_t>(result.bytes);
  connection->sent += length;
  Header header = MakeHeader(connection, VIRTIO_VSOCK_OP_RW);
  header.len = length;
  PutHeader(header, chain);
  if (memory_.logging()) {
    for (size_t i = 0; i < chain.count; ++i) memory_.MarkDirty(chain.segments[i].guest_address, chain.segments[i].size);
  }
  return sizeof(Header) + length;
}

uint32_t VsockDevice::FillShutdown(Connection* connection, const Chain& chain, uint64_t now_us) {
  bool nothing_to_read = connection->host_ended || (connection->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0;
  bool gone = connection->host_gone && nothing_to_read;
  uint32_t flags = connection->shutdown_sent;
  if (connection->host_ended || gone) flags |= VIRTIO_VSOCK_SHUTDOWN_SEND;
  if (connection->host_deaf || gone) flags |= VIRTIO_VSOCK_SHUTDOWN_RCV;
  if (flags == connection->shutdown_sent) return 0;
  connection->shutdown_sent = flags;
  Header header = MakeHeader(connection, VIRTIO_VSOCK_OP_SHUTDOWN);
  header.flags = flags;
  PutHeader(header, chain);
  if (flags == (VIRTIO_VSOCK_SHUTDOWN_SEND | VIRTIO_VSOCK_SHUTDOWN_RCV)) {
    connection->state = Connection::State::kClosing;
    connection->stream.reset();
    connection->to_host.Clear();
    connection->forwarded = connection->received;
    SetDeadline(connection, now_us + limits_.close_us);
  }
  return sizeof(Header);
}

}  // namespace still::vsock
