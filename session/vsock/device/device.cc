#include "session/vsock/device/device.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace still::vsock {
namespace {

// Host ports for connections that the host makes: 2^30 .. 2^31, above every port a service would listen on.
constexpr uint32_t kFirstHostPort = 1u << 30;
constexpr uint32_t kHostPorts = 1u << 30;

// Packets in one direction before the other, and other events, get their turn.
constexpr int kBudget = 256;

uint64_t PortKey(uint32_t host_port, uint32_t guest_port) { return uint64_t{host_port} << 32 | guest_port; }

}  // namespace

VsockDevice::VsockDevice(const Limits& limits, HostSide* host, uint32_t port_seed)
    : limits_(limits), host_(host), next_host_port_(kFirstHostPort + port_seed % kHostPorts) {}

void VsockDevice::SetGuestCid(uint64_t cid) {
  if (cid != guest_cid_) ResetConnections();
  guest_cid_ = cid;
}

bool VsockDevice::Start(bool event_index, uint64_t now_us) {
  broken_ = false;
  bool interrupted = to_guest_.stop_requested();
  if (!to_guest_.Start(event_index) || !from_guest_.Start(event_index)) {
    Stop();
    return false;
  }
  if (interrupted) {
    // The packet that was under way is lost, or will be taken a second time: no stream can be trusted any more.
    while (!connections_.empty()) Reset(connections_.begin()->second.get());
  }
  // The time a machine was stopped is not the guest's fault.
  for (auto& [id, connection] : connections_) {
    if (connection->state == Connection::State::kConnecting) {
      SetDeadline(connection.get(), now_us + limits_.connect_us);
    } else if (connection->state == Connection::State::kClosing) {
      SetDeadline(connection.get(), now_us + limits_.close_us);
    }
  }
  return true;
}

void VsockDevice::Stop() {
  to_guest_.Stop();
  from_guest_.Stop();
}

void VsockDevice::RequestStop() {
  to_guest_.RequestStop();
  from_guest_.RequestStop();
}

void VsockDevice::ResetConnections() {
  connections_.clear();
  by_ports_.clear();
  ready_.clear();
  replies_.clear();
  next_deadline_us_ = UINT64_MAX;
}

void VsockDevice::Break() {
  Stop();
  broken_ = true;
  ResetConnections();
}

bool VsockDevice::Process(uint64_t now_us) {
  if (!running()) return false;
  bool more = ReceiveFromGuest(kBudget, now_us);
  return SendToGuest(kBudget, now_us) || more;
}

bool VsockDevice::PrepareToWait() {
  if (!running()) return false;
  bool from_guest = replies_.size() < limits_.replies && from_guest_.EnableKicks();
  bool to_guest = (!replies_.empty() || !ready_.empty()) && to_guest_.EnableKicks();
  return from_guest || to_guest;
}

bool VsockDevice::NeedsInterrupt(int index) { return queue(index).NeedsInterrupt(); }

Connection* VsockDevice::Find(ConnectionId id) {
  auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : found->second.get();
}

Connection* VsockDevice::FindByPorts(uint32_t host_port, uint32_t guest_port) {
  auto found = by_ports_.find(PortKey(host_port, guest_port));
  return found == by_ports_.end() ? nullptr : Find(found->second);
}

Connection* VsockDevice::Add(ConnectionId id, std::unique_ptr<HostStream> stream, uint32_t host_port,
                             uint32_t guest_port) {
  auto connection = std::make_unique<Connection>(limits_.window);
  connection->id = id;
  connection->stream = std::move(stream);
  connection->host_port = host_port;
  connection->guest_port = guest_port;
  Connection* raw = connection.get();
  connections_[id] = std::move(connection);
  by_ports_[PortKey(host_port, guest_port)] = id;
  return raw;
}

void VsockDevice::ReleasePorts(const Connection& connection) {
  auto found = by_ports_.find(PortKey(connection.host_port, connection.guest_port));
  if (found != by_ports_.end() && found->second == connection.id) by_ports_.erase(found);
}

void VsockDevice::Remove(Connection* connection) {
  ReleasePorts(*connection);
  // At once, not when its turn comes: a guest that takes no packets must not make the queue grow.
  if (connection->queued) ready_.erase(std::find(ready_.begin(), ready_.end(), connection->id));
  connections_.erase(connection->id);
}

void VsockDevice::Enqueue(Connection* connection) {
  if (connection->queued || connection->state == Connection::State::kDraining) return;
  connection->queued = true;
  ready_.push_back(connection->id);
}

void VsockDevice::SetDeadline(Connection* connection, uint64_t deadline_us) {
  connection->deadline_us = deadline_us;
  next_deadline_us_ = std::min(next_deadline_us_, deadline_us);
}

void VsockDevice::Reset(Connection* connection) {
  bool unknown_to_guest =
      connection->state == Connection::State::kDraining || (connection->state == Connection::State::kConnecting &&
                                                            (connection->owes_request || connection->retry_at_us != 0));
  if (!unknown_to_guest) {
    OweReset(kHostCid, guest_cid_, connection->host_port, connection->guest_port, VIRTIO_VSOCK_TYPE_STREAM);
  }
  Remove(connection);
}

uint32_t VsockDevice::UnusedHostPort(uint32_t guest_port) {
  for (;;) {  // Ends: there are far fewer connections than ports.
    uint32_t port = next_host_port_++;
    if (next_host_port_ == kFirstHostPort + kHostPorts) next_host_port_ = kFirstHostPort;
    if (by_ports_.count(PortKey(port, guest_port)) == 0) return port;
  }
}

bool VsockDevice::Connect(ConnectionId id, std::unique_ptr<HostStream> stream, uint32_t guest_port, uint64_t now_us) {
  if (!HasRoom()) {
    ++counters_.refused_connections;
    return false;
  }
  Connection* connection = Add(id, std::move(stream), UnusedHostPort(guest_port), guest_port);
  connection->state = Connection::State::kConnecting;
  connection->owes_request = true;
  SetDeadline(connection, now_us + limits_.connect_us);
  Enqueue(connection);
  return true;
}

void VsockDevice::OnReadable(ConnectionId id) {
  Connection* connection = Find(id);
  if (connection == nullptr) return;
  connection->readable = true;
  Enqueue(connection);
}

void VsockDevice::OnWritable(ConnectionId id, uint64_t now_us) {
  Connection* connection = Find(id);
  if (connection == nullptr || connection->to_host.empty()) return;
  if (connection->state == Connection::State::kDraining) SetDeadline(connection, now_us + limits_.drain_us);
  Flush(connection);
}

void VsockDevice::OnHostGone(ConnectionId id) {
  Connection* connection = Find(id);
  if (connection == nullptr) return;
  switch (connection->state) {
    case Connection::State::kConnecting:
      Reset(connection);
      return;
    case Connection::State::kDraining:
      Remove(connection);
      return;
    default:
      connection->host_gone = true;
      connection->readable = true;  // What it sent before is still there to be read.
      Enqueue(connection);
  }
}

void VsockDevice::Tick(uint64_t now_us) {
  if (now_us < next_deadline_us_) return;
  next_deadline_us_ = UINT64_MAX;
  std::vector<Connection*> overdue;
  for (auto& [id, connection] : connections_) {
    if (connection->retry_at_us != 0 && now_us >= connection->retry_at_us) {
      connection->retry_at_us = 0;
      connection->owes_request = true;
      Enqueue(connection.get());
    }
    if (connection->retry_at_us != 0) next_deadline_us_ = std::min(next_deadline_us_, connection->retry_at_us);
    if (connection->deadline_us == 0) continue;
    // While the machine is stopped only the host's own readers are on the clock.
    bool on_the_clock = running() || connection->state == Connection::State::kDraining;
    if (!on_the_clock) continue;
    if (now_us >= connection->deadline_us) {
      overdue.push_back(connection.get());
    } else {
      next_deadline_us_ = std::min(next_deadline_us_, connection->deadline_us);
    }
  }
  for (Connection* connection : overdue) Reset(connection);
}

}  // namespace still::vsock
