// A VsockDevice between a fake guest and a fake host, on one thread and with a clock that only tests move.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/vsock/device/device.h"
#include "tests/unit/session-vsock/fake_driver.h"
#include "tests/unit/session-vsock/fake_host.h"

namespace still::vsock {

class DeviceFixture : public ::testing::Test {
 protected:
  static constexpr uint32_t kGuestPort = 5000;
  static constexpr uint32_t kHostPort = 1024;
  static constexpr uint32_t kBoth = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

  void Build(const FakeDriver::Options& driver_options = {}, const Limits& limits = {}, int buffers = 16) {
    driver = std::make_unique<FakeDriver>(driver_options);
    device = std::make_unique<VsockDevice>(limits, &host, 12345);
    device->SetGuestCid(FakeDriver::kGuestCid);
    host.listening.insert(kHostPort);
    std::vector<MemoryRegion> regions = driver->memory().regions();
    ASSERT_TRUE(device->memory().SetRegions(regions.data(), regions.size()));
    event_index = driver_options.event_index;
    Configure(driver_options.start_index);
    driver->Offer(buffers);
  }

  // What a hypervisor does when the driver starts, or the machine goes on.
  void Configure(uint16_t base) {
    FakeRing* rings[2] = {&driver->to_guest(), &driver->from_guest()};
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(device->queue(i).SetSize(rings[i]->size()));
      ASSERT_TRUE(device->queue(i).SetLayout(rings[i]->layout()));
      device->queue(i).SetBase(base);
    }
    ASSERT_TRUE(device->Start(event_index, now_us));
  }

  // Runs the device as its thread does, until there is nothing to do.
  void Run() {
    for (int round = 0; round < 1000; ++round) {
      device->Tick(now_us);
      bool more = device->Process(now_us);
      if (!more && !device->PrepareToWait()) return;
    }
    FAIL() << "the device does not come to rest";
  }

  void Advance(uint64_t us) {
    now_us += us;
    Run();
  }

  std::vector<Packet> ReceiveAll() {
    std::vector<Packet> packets;
    for (;;) {
      Run();
      std::optional<Packet> packet = driver->Receive();
      if (!packet.has_value()) return packets;
      packets.push_back(*std::move(packet));
    }
  }

  // The one packet that is there.
  Packet ReceiveOne() {
    std::vector<Packet> packets = ReceiveAll();
    EXPECT_EQ(packets.size(), 1u);
    return packets.empty() ? Packet{} : packets[0];
  }

  void Guest(uint16_t op, uint32_t guest_port, uint32_t host_port, const std::string& data = "", uint32_t flags = 0) {
    if (!driver->Send(op, guest_port, host_port, data, flags)) {
      Run();
      ASSERT_TRUE(driver->Send(op, guest_port, host_port, data, flags)) << "the transmit ring stays full";
    }
    Run();
  }

  // A connection that the guest made.
  std::shared_ptr<StreamState> GuestConnects(uint32_t guest_port = kGuestPort, uint32_t host_port = kHostPort) {
    Guest(VIRTIO_VSOCK_OP_REQUEST, guest_port, host_port);
    Packet response = ReceiveOne();
    EXPECT_EQ(response.header.op, VIRTIO_VSOCK_OP_RESPONSE);
    return host.last;
  }

  // A connection that the host asked for, not yet answered.
  std::shared_ptr<StreamState> HostAsks(uint32_t guest_port = kGuestPort) {
    auto state = std::make_shared<StreamState>();
    state->id = device->NewId();
    device->Connect(state->id, std::make_unique<FakeStream>(state), guest_port, now_us);
    return state;
  }

  std::shared_ptr<StreamState> HostConnects(uint32_t guest_port = kGuestPort) {
    std::shared_ptr<StreamState> state = HostAsks(guest_port);
    Packet request = ReceiveOne();
    EXPECT_EQ(request.header.op, VIRTIO_VSOCK_OP_REQUEST);
    Guest(VIRTIO_VSOCK_OP_RESPONSE, guest_port, request.header.src_port);
    EXPECT_TRUE(state->accepted);
    return state;
  }

  void HostSends(const std::shared_ptr<StreamState>& state, const std::string& data) {
    state->incoming += data;
    device->OnReadable(state->id);
    Run();
  }

  FakeHost host;
  std::unique_ptr<FakeDriver> driver;
  std::unique_ptr<VsockDevice> device;
  uint64_t now_us = 1'000'000;
  bool event_index = true;
};

inline std::vector<int> OpsOf(const std::vector<Packet>& packets) {
  std::vector<int> ops;
  for (const Packet& packet : packets) ops.push_back(packet.header.op);
  return ops;
}

inline std::string DataOf(const std::vector<Packet>& packets) {
  std::string data;
  for (const Packet& packet : packets) data += packet.data;
  return data;
}

}  // namespace still::vsock
