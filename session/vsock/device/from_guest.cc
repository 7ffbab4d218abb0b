// The guest's packets: what each does to its connection, and the bytes on their way to the host.
#include <algorithm>
#include <cstring>
#include <utility>

#include "session/vsock/device/device.h"

namespace still::vsock {
namespace {

// Copies the packet's header out of the chain, once; false when it is not even that long.
bool ReadHeader(const Chain& chain, virtio_vsock_hdr* header) {
  if (chain.bytes < sizeof *header) return false;
  auto* out = reinterpret_cast<uint8_t*>(header);
  size_t copied = 0;
  for (size_t i = 0; copied < sizeof *header; ++i) {
    size_t size = std::min<size_t>(chain.segments[i].size, sizeof *header - copied);
    std::memcpy(out + copied, chain.segments[i].data, size);
    copied += size;
  }
  return true;
}

// The `size` bytes behind the header, as pieces of guest memory.
int Payload(const Chain& chain, uint32_t size, iovec parts[Chain::kMaxSegments]) {
  int count = 0;
  size_t skip = sizeof(virtio_vsock_hdr);
  for (size_t i = 0; i < chain.count && size > 0; ++i) {
    const Segment& segment = chain.segments[i];
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    uint32_t part = std::min<uint32_t>(segment.size - static_cast<uint32_t>(skip), size);
    parts[count++] = {segment.data + skip, part};
    skip = 0;
    size -= part;
  }
  return count;
}

}  // namespace

bool VsockDevice::ReceiveFromGuest(int budget, uint64_t now_us) {
  while (budget > 0) {
    // Resets pile up when the guest takes no packets: then it may send none either.
    if (replies_.size() >= limits_.replies) return false;
    switch (from_guest_.Peek(&chain_)) {
      case Virtqueue::Next::kEmpty:
        return false;
      case Virtqueue::Next::kBroken:
        Break();
        return false;
      case Virtqueue::Next::kChain:
        break;
    }
    --budget;
    ++counters_.packets_from_guest;
    Header header;
    // What is too short to have an address cannot even be answered.
    if (ReadHeader(chain_, &header)) HandlePacket(header, chain_, now_us);
    from_guest_.Complete(chain_, 0);
  }
  return true;
}

void VsockDevice::HandlePacket(const Header& header, const Chain& chain, uint64_t now_us) {
  if (header.src_cid != guest_cid_ || header.dst_cid != kHostCid || header.type != VIRTIO_VSOCK_TYPE_STREAM) {
    HandleForeign(header, now_us);
    return;
  }
  Connection* connection = FindByPorts(header.dst_port, header.src_port);
  if (connection == nullptr) {
    if (header.op == VIRTIO_VSOCK_OP_REQUEST) {
      HandleRequest(header);
    } else if (header.op != VIRTIO_VSOCK_OP_RST) {
      OweReset(kHostCid, guest_cid_, header.dst_port, header.src_port, VIRTIO_VSOCK_TYPE_STREAM);
    }
    return;
  }
  connection->UpdateCredit(header.buf_alloc, header.fwd_cnt);
  if (connection->readable) Enqueue(connection);
  switch (header.op) {
    case VIRTIO_VSOCK_OP_RESPONSE:
      HandleResponse(connection);
      break;
    case VIRTIO_VSOCK_OP_RW:
      HandleData(connection, header, chain);
      break;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
      break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
      connection->owes_credit_update = true;
      Enqueue(connection);
      break;
    case VIRTIO_VSOCK_OP_SHUTDOWN:
      HandleShutdown(connection, header.flags, now_us);
      break;
    case VIRTIO_VSOCK_OP_RST:
      HandleReset(connection, now_us);
      break;
    default:  // Also a second REQUEST for ports that are in use.
      Reset(connection);
  }
}

// Packets that are not between this guest and the host. After a restore with a new CID the guest goes on for a moment
// under its old one, until it has handled the transport reset that the hypervisor sends it: what it accepts in that
// moment it resets afterwards. So a CONNECT that is answered from the old CID is silently made again on another port.
void VsockDevice::HandleForeign(const Header& header, uint64_t now_us) {
  if (header.op == VIRTIO_VSOCK_OP_RST) return;
  bool stale = header.dst_cid == kHostCid && header.type == VIRTIO_VSOCK_TYPE_STREAM;
  Connection* connection = stale ? FindByPorts(header.dst_port, header.src_port) : nullptr;
  if (connection != nullptr && connection->state == Connection::State::kConnecting &&
      header.op == VIRTIO_VSOCK_OP_RESPONSE) {
    ++counters_.stale_retries;
    ReleasePorts(*connection);
    connection->host_port = UnusedHostPort(connection->guest_port);
    by_ports_[uint64_t{connection->host_port} << 32 | connection->guest_port] = connection->id;
    connection->retry_at_us = now_us + limits_.stale_retry_us;
    next_deadline_us_ = std::min(next_deadline_us_, connection->retry_at_us);
    return;
  }
  OweReset(header.dst_cid, header.src_cid, header.dst_port, header.src_port, header.type);
}

void VsockDevice::HandleRequest(const Header& header) {
  ConnectionId id = NewId();
  std::unique_ptr<HostStream> stream;
  if (HasRoom()) {
    stream = host_->Connect({.host_port = header.dst_port, .guest_port = header.src_port}, id);
  } else {
    ++counters_.refused_connections;
  }
  if (stream == nullptr) {
    OweReset(kHostCid, guest_cid_, header.dst_port, header.src_port, VIRTIO_VSOCK_TYPE_STREAM);
    return;
  }
  Connection* connection = Add(id, std::move(stream), header.dst_port, header.src_port);
  connection->UpdateCredit(header.buf_alloc, header.fwd_cnt);
  connection->owes_response = true;
  Enqueue(connection);
}

void VsockDevice::HandleResponse(Connection* connection) {
  if (connection->state != Connection::State::kConnecting || connection->owes_request || connection->retry_at_us != 0 ||
      !connection->stream->Accepted(connection->host_port)) {
    Reset(connection);
    return;
  }
  connection->state = Connection::State::kEstablished;
  connection->deadline_us = 0;
  Enqueue(connection);
}

void VsockDevice::HandleData(Connection* connection, const Header& header, const Chain& chain) {
  bool allowed =
      connection->state == Connection::State::kEstablished || connection->state == Connection::State::kClosing;
  bool within_credit = header.len <= connection->window - (connection->received - connection->forwarded);
  if (!allowed || (connection->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0 || !within_credit ||
      header.len > chain.bytes - sizeof header) {
    Reset(connection);
    return;
  }
  connection->received += header.len;
  if (connection->host_deaf || connection->state == Connection::State::kClosing) {
    Forwarded(connection, header.len);
    return;
  }
  iovec parts[Chain::kMaxSegments];
  int count = Payload(chain, header.len, parts);
  size_t done = 0;
  if (connection->to_host.empty() && count > 0) {
    IoResult result = connection->stream->Write(parts, count);
    if (result.kind == IoResult::kDone) {
      done = result.bytes;
      Forwarded(connection, static_cast<uint32_t>(done));
    } else if (result.kind != IoResult::kWouldBlock) {
      HostStoppedReading(connection);
      return;
    }
  }
  for (int i = 0; i < count; ++i) {
    size_t skip = std::min(done, parts[i].iov_len);
    done -= skip;
    // Cannot be full: its limit is the window, which was checked above.
    connection->to_host.Append(static_cast<uint8_t*>(parts[i].iov_base) + skip, parts[i].iov_len - skip);
  }
}

void VsockDevice::HandleShutdown(Connection* connection, uint32_t flags, uint64_t now_us) {
  if (connection->state == Connection::State::kConnecting) {
    Reset(connection);
    return;
  }
  uint32_t both = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
  uint32_t before = connection->guest_shutdown;
  connection->guest_shutdown |= flags & both;
  if ((connection->guest_shutdown & ~before & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0 && connection->stream != nullptr) {
    connection->stream->GuestStoppedReading();
  }
  if (connection->guest_shutdown == both) {
    // It closed. Confirm at once; what it sent before goes on to the host without it.
    OweReset(kHostCid, guest_cid_, connection->host_port, connection->guest_port, VIRTIO_VSOCK_TYPE_STREAM);
    HandleReset(connection, now_us);
  } else if (connection->to_host.empty()) {
    FinishGuestData(connection);
  }
}

void VsockDevice::HandleReset(Connection* connection, uint64_t now_us) {
  bool in_order = (connection->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0;
  if (!in_order || connection->to_host.empty() || connection->stream == nullptr) {
    Remove(connection);
    return;
  }
  ReleasePorts(*connection);
  connection->state = Connection::State::kDraining;
  SetDeadline(connection, now_us + limits_.drain_us);
}

// Hands buffered bytes to the host. False when the connection is gone afterwards.
bool VsockDevice::Flush(Connection* connection) {
  while (!connection->to_host.empty()) {
    iovec parts[2];
    int count = connection->to_host.Front(parts);
    IoResult result = connection->stream->Write(parts, count);
    if (result.kind == IoResult::kWouldBlock) return true;
    if (result.kind != IoResult::kDone) {
      if (connection->state == Connection::State::kDraining) {
        Remove(connection);
        return false;
      }
      HostStoppedReading(connection);
      return true;
    }
    connection->to_host.Consume(result.bytes);
    Forwarded(connection, static_cast<uint32_t>(result.bytes));
  }
  if (connection->state == Connection::State::kDraining) {
    Remove(connection);
    return false;
  }
  FinishGuestData(connection);
  return true;
}

void VsockDevice::Forwarded(Connection* connection, uint32_t count) {
  connection->forwarded += count;
  if (connection->ShouldTellCredit() && (connection->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) == 0) {
    connection->owes_credit_update = true;
    Enqueue(connection);
  }
}

// The host has closed, or at least reads no more. What it sent before must still reach the guest, so this is no reset:
// the guest hears that nobody reads, and its bytes are dropped.
void VsockDevice::HostStoppedReading(Connection* connection) {
  connection->host_deaf = true;
  connection->to_host.Clear();
  Forwarded(connection, connection->received - connection->forwarded);
  connection->readable = true;
  Enqueue(connection);
}

void VsockDevice::FinishGuestData(Connection* connection) {
  if ((connection->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) == 0 || connection->end_passed_on ||
      connection->stream == nullptr) {
    return;
  }
  connection->end_passed_on = true;
  connection->stream->EndOfGuestData();
}

}  // namespace still::vsock
