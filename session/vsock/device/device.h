// The virtio socket device (virtio 1.1, section 5.10): packets and connections over two virtqueues, stream sockets
// only.
//
// It is a state machine without threads, clocks or descriptors of its own: whoever owns it calls Process when a queue
// was kicked, the On... calls when a host stream has news, Tick when NextDeadline is due. Not thread-safe, except
// RequestStop and the queues' base().
//
// The guest is hostile. Whatever it puts into rings and packets, it can only harm its own connections: a ring that
// breaks the rules ends the device until the next Start; a connection that breaks them is reset; and what it can make
// us hold is bounded by Limits.
#pragma once

#include <linux/virtio_vsock.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>

#include "session/vsock/device/connection.h"
#include "session/vsock/device/guest_memory.h"
#include "session/vsock/device/host_side.h"
#include "session/vsock/device/virtqueue.h"

namespace still::vsock {

// Named bounds with their reasons. The guest can make us hold at most connections * window bytes (64 MiB).
struct Limits {
  size_t connections = 256;      // Each costs the hypervisor a descriptor; 1024 is a common limit for all of them.
  uint32_t window = 256 * 1024;  // Bytes of a connection under way to a slow host reader; the kernel's vhost default.
  size_t replies = 512;          // Resets owed to the guest before we stop taking packets from it.
  // For the guest to answer a connection from the host. Only against what is forgotten: a caller that has waited long
  // enough closes its end, and a guest that is emulated inside an emulated machine needs its time.
  uint64_t connect_us = 120'000'000;
  uint64_t close_us = 30'000'000;   // For it to confirm a close, after which it is reset.
  uint64_t drain_us = 30'000'000;   // For a host reader to take something of what a departed guest left.
  uint64_t stale_retry_us = 5'000;  // Before a CONNECT that met a guest with its old CID is repeated.
};

struct DeviceCounters {
  uint64_t packets_from_guest = 0;
  uint64_t packets_to_guest = 0;
  uint64_t resets_sent = 0;
  uint64_t stale_retries = 0;
  uint64_t refused_connections = 0;  // For lack of room.
};

class VsockDevice {
 public:
  static constexpr uint64_t kHostCid = 2;
  static constexpr uint32_t kMaxPayload = 64 * 1024;  // VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux.

  enum Queue { kToGuest = 0, kFromGuest = 1 };  // The device's "rx" and "tx", named from the driver's side.

  // `port_seed` decides where host ports begin: it must differ between a snapshot's source and its restored copies,
  // because a restored guest still sends packets of the source's connections.
  VsockDevice(const Limits& limits, HostSide* host, uint32_t port_seed);
  VsockDevice(const VsockDevice&) = delete;
  VsockDevice& operator=(const VsockDevice&) = delete;

  GuestMemory& memory() { return memory_; }
  Virtqueue& queue(int index) { return index == kToGuest ? to_guest_ : from_guest_; }
  // A changed CID ends all connections.
  void SetGuestCid(uint64_t cid);
  uint64_t guest_cid() const { return guest_cid_; }

  // False when a ring is unusable. Connections live on over Stop and Start; see ResetConnections.
  bool Start(bool event_index, uint64_t now_us);
  void Stop();
  void RequestStop();  // See Virtqueue::RequestStop.
  bool running() const { return to_guest_.running() && from_guest_.running(); }
  // A ring broke the rules since Start.
  bool broken() const { return broken_; }
  // The guest has forgotten its connections (it was reset): so do we.
  void ResetConnections();

  // Moves packets both ways, up to a budget. True when there is more to do at once.
  bool Process(uint64_t now_us);
  // Asks for kicks. True when there is something to do already: call Process instead of waiting.
  bool PrepareToWait();
  // Whether the driver wants an interrupt for queue `index`. Call after Process.
  bool NeedsInterrupt(int index);

  // The host asks for a connection to a port in the guest. False when there is no room: the stream is closed.
  // The caller has made up `id` with NewId, and reports news of the stream under it.
  bool Connect(ConnectionId id, std::unique_ptr<HostStream> stream, uint32_t guest_port, uint64_t now_us);
  ConnectionId NewId() { return next_id_++; }
  void OnReadable(ConnectionId id);
  void OnWritable(ConnectionId id, uint64_t now_us);
  void OnHostGone(ConnectionId id);

  void Tick(uint64_t now_us);
  // When Tick has something to do; UINT64_MAX: never.
  uint64_t NextDeadline() const { return next_deadline_us_; }

  size_t connection_count() const { return connections_.size(); }
  bool HasRoom() const { return connections_.size() < limits_.connections; }
  const DeviceCounters& counters() const { return counters_; }

 private:
  using Header = virtio_vsock_hdr;

  // device.cc: the table of connections.
  Connection* Find(ConnectionId id);
  Connection* FindByPorts(uint32_t host_port, uint32_t guest_port);
  Connection* Add(ConnectionId id, std::unique_ptr<HostStream> stream, uint32_t host_port, uint32_t guest_port);
  void ReleasePorts(const Connection& connection);
  void Remove(Connection* connection);
  void Enqueue(Connection* connection);
  void SetDeadline(Connection* connection, uint64_t deadline_us);
  void Reset(Connection* connection);  // Tells the guest and removes it.
  uint32_t UnusedHostPort(uint32_t guest_port);
  void Break();

  // from_guest.cc: what the guest sends.
  bool ReceiveFromGuest(int budget, uint64_t now_us);
  void HandlePacket(const Header& header, const Chain& chain, uint64_t now_us);
  void HandleForeign(const Header& header, uint64_t now_us);
  void HandleRequest(const Header& header);
  void HandleResponse(Connection* connection);
  void HandleData(Connection* connection, const Header& header, const Chain& chain);
  void HandleShutdown(Connection* connection, uint32_t flags, uint64_t now_us);
  void HandleReset(Connection* connection, uint64_t now_us);
  bool Flush(Connection* connection);
  void Forwarded(Connection* connection, uint32_t count);
  void HostStoppedReading(Connection* connection);
  void FinishGuestData(Connection* connection);

  // to_guest.cc: what the guest is sent.
  bool SendToGuest(int budget, uint64_t now_us);
  uint32_t FillPacket(Connection* connection, const Chain& chain, uint64_t now_us);
  uint32_t FillData(Connection* connection, const Chain& chain);
  uint32_t FillShutdown(Connection* connection, const Chain& chain, uint64_t now_us);
  Header MakeHeader(Connection* connection, uint16_t op);
  void PutHeader(const Header& header, const Chain& chain);
  void OweReset(uint64_t src_cid, uint64_t dst_cid, uint32_t src_port, uint32_t dst_port, uint16_t type);

  const Limits limits_;
  HostSide* const host_;
  GuestMemory memory_;
  Virtqueue to_guest_{&memory_, true};
  Virtqueue from_guest_{&memory_, false};
  Chain chain_;  // Scratch; large.
  uint64_t guest_cid_ = 0;
  bool broken_ = false;

  std::unordered_map<ConnectionId, std::unique_ptr<Connection>> connections_;
  std::unordered_map<uint64_t, ConnectionId> by_ports_;
  std::deque<ConnectionId> ready_;  // Connections with something for the guest; each at most once.
  std::deque<Header> replies_;      // Resets that belong to no connection any more.
  ConnectionId next_id_ = 1;
  uint32_t next_host_port_;
  uint64_t next_deadline_us_ = UINT64_MAX;
  DeviceCounters counters_;
};

}  // namespace still::vsock
