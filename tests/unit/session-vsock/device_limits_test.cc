// What a hostile guest can make the device do: only this much, and only to itself.
#include <random>

#include "tests/unit/session-vsock/device_fixture.h"

namespace still::vsock {
namespace {

using ::testing::IsEmpty;

class DeviceLimitsTest : public DeviceFixture {};

TEST_F(DeviceLimitsTest, ConnectionsAreCounted) {
  Limits limits;
  limits.connections = 3;
  Build({}, limits);
  GuestConnects(1);
  GuestConnects(2);
  HostAsks(7);
  ReceiveAll();
  Guest(VIRTIO_VSOCK_OP_REQUEST, 3, kHostPort);
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(host.connects, 2) << "the host is not even asked";
  std::shared_ptr<StreamState> refused = HostAsks(8);
  EXPECT_TRUE(refused->closed);
  EXPECT_EQ(device->counters().refused_connections, 2u);
  Guest(VIRTIO_VSOCK_OP_RST, 1, kHostPort);
  GuestConnects(3);
}

TEST_F(DeviceLimitsTest, WhatDepartedGuestsLeftCountsAsWell) {
  Limits limits;
  limits.connections = 2;
  Build({}, limits);
  for (uint32_t port = 1; port <= 2; ++port) {
    std::shared_ptr<StreamState> state = GuestConnects(port);
    state->outgoing_room = 0;
    Guest(VIRTIO_VSOCK_OP_RW, port, kHostPort, "x");
    Guest(VIRTIO_VSOCK_OP_SHUTDOWN, port, kHostPort, "", kBoth);
    ReceiveAll();
  }
  Guest(VIRTIO_VSOCK_OP_REQUEST, 3, kHostPort);
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST);
  Advance(limits.drain_us);
  GuestConnects(3);
}

TEST_F(DeviceLimitsTest, AGuestThatTakesNoResetsMaySendNothing) {
  Limits limits;
  limits.replies = 5;
  Build({}, limits, /*buffers=*/0);
  int sent = 0;
  for (int i = 0; i < 100; ++i) {
    if (driver->Send(VIRTIO_VSOCK_OP_RW, 1, 2, "x")) ++sent;
    Run();
  }
  driver->Reclaim();
  EXPECT_EQ(device->counters().packets_from_guest, 5u);
  EXPECT_GT(sent, 5);
  driver->Offer(16);
  ReceiveAll();
  EXPECT_EQ(device->counters().packets_from_guest, static_cast<uint64_t>(sent)) << "it goes on where it stopped";
}

TEST_F(DeviceLimitsTest, ConnectionsThatComeAndGoUnansweredLeaveNothingBehind) {
  Build({}, {}, /*buffers=*/0);
  for (int i = 0; i < 20'000; ++i) {
    Guest(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, kHostPort);
    Guest(VIRTIO_VSOCK_OP_RST, kGuestPort, kHostPort);
  }
  EXPECT_EQ(device->connection_count(), 0u);
  driver->Offer(16);
  EXPECT_THAT(ReceiveAll(), IsEmpty());
}

TEST_F(DeviceLimitsTest, EveryConnectionGetsItsTurn) {
  FakeDriver::Options options;
  options.buffer_bytes = 1000;
  Build(options);
  std::shared_ptr<StreamState> loud = GuestConnects(1);
  std::shared_ptr<StreamState> quiet = GuestConnects(2);
  loud->incoming = std::string(200'000, 'l');
  quiet->incoming = "q";
  device->OnReadable(loud->id);
  device->OnReadable(quiet->id);
  Run();
  int before = 0;
  for (;;) {
    std::optional<Packet> packet = driver->Receive();
    ASSERT_TRUE(packet.has_value());
    if (packet->data == "q") break;
    ++before;
    Run();
  }
  EXPECT_LE(before, 1);
}

TEST_F(DeviceLimitsTest, AReceiveBufferWithoutRoomForAHeaderBreaksTheDevice) {
  Build({}, {}, /*buffers=*/0);
  std::shared_ptr<StreamState> state = HostAsks();
  driver->to_guest().Add({{driver->memory().Allocate(43), 43}}, true);
  Run();
  EXPECT_TRUE(device->broken());
  EXPECT_FALSE(device->running());
  EXPECT_TRUE(state->closed);
}

TEST_F(DeviceLimitsTest, AReceiveBufferWithoutRoomForAByteBreaksTheDevice) {
  Build({}, {}, /*buffers=*/1);
  std::shared_ptr<StreamState> state = GuestConnects();
  HostSends(state, "into the one good buffer");
  EXPECT_FALSE(device->broken());
  driver->to_guest().Add({{driver->memory().Allocate(44), 44}}, true);
  HostSends(state, "nowhere to go");
  EXPECT_TRUE(device->broken());
}

TEST_F(DeviceLimitsTest, ABrokenTransmitRingEndsAllConnectionsUntilTheNextStart) {
  Build();
  std::shared_ptr<StreamState> state = GuestConnects();
  driver->from_guest().SetAvailableIndex(static_cast<uint16_t>(driver->from_guest().avail_index() + 1000));
  Run();
  EXPECT_TRUE(device->broken());
  EXPECT_TRUE(state->closed);
  uint16_t rx_used = driver->to_guest().used_index();
  HostAsks();
  Run();
  EXPECT_EQ(driver->to_guest().used_index(), rx_used) << "the guest's memory is left alone";

  driver->from_guest().StartAt(0);
  device->Stop();
  device->queue(1).SetBase(0);
  ASSERT_TRUE(device->Start(true, now_us));
  EXPECT_FALSE(device->broken());
  ReceiveAll();
  GuestConnects();
}

TEST_F(DeviceLimitsTest, EverythingThatIsWrittenIsLogged) {
  Build();
  std::shared_ptr<StreamState> state = GuestConnects();
  std::vector<uint8_t> log((FakeMemory::kHighAddress + FakeMemory::kRegionBytes) / 4096 / 8);
  std::string before[2];
  auto regions = driver->memory().regions();
  auto copy = [&](int i) {
    return std::string(reinterpret_cast<const char*>(regions[i].user_address), regions[i].size);
  };
  for (int i = 0; i < 2; ++i) before[i] = copy(i);
  device->memory().SetLog(log.data());
  for (int i = 0; i < 2; ++i) {
    Virtqueue::Layout layout = (i == 0 ? driver->to_guest() : driver->from_guest()).layout();
    layout.log_used = true;
    ASSERT_TRUE(device->queue(i).SetLayout(layout));
  }
  state->incoming = std::string(9000, 'd');
  device->OnReadable(state->id);
  Run();  // Without the driver's taking anything: only the device writes.
  int changed = 0;
  for (int i = 0; i < 2; ++i) {
    std::string after = copy(i);
    for (size_t page = 0; page < regions[i].size / 4096; ++page) {
      if (after.compare(page * 4096, 4096, before[i], page * 4096, 4096) == 0) continue;
      ++changed;
      uint64_t number = regions[i].guest_address / 4096 + page;
      EXPECT_NE(log[number / 8] >> (number % 8) & 1, 0) << "page " << number;
    }
  }
  EXPECT_GE(changed, 4);
}

// Random packets of all kinds, with random fields that are often near the valid ones: nothing may crash, nothing may
// outgrow its limit, and a fresh guest finds a working device afterwards.
TEST_F(DeviceLimitsTest, RandomPacketsHarmNothing) {
  constexpr uint32_t kSeed = 4711;
  std::mt19937 random(kSeed);
  Limits limits;
  limits.connections = 8;
  Build({}, limits);
  auto pick = [&](std::initializer_list<uint32_t> values) {
    return *(values.begin() + static_cast<long>(random() % values.size()));
  };
  std::vector<std::shared_ptr<StreamState>> asked;
  for (int i = 0; i < 50'000; ++i) {
    if (random() % 8 == 0) asked.push_back(HostAsks(pick({1, 2, 3})));
    if (random() % 16 == 0 && !asked.empty()) device->OnHostGone(asked[random() % asked.size()]->id);
    if (host.last != nullptr && random() % 4 == 0) {
      host.last->outgoing.clear();
      host.last->outgoing_room = pick({0, 100, 1'000'000});
      host.last->incoming_ended = random() % 4 == 0;
      host.last->incoming = std::string(random() % 9000, 'x');
      device->OnReadable(host.last->id);
      device->OnWritable(host.last->id, now_us);
    }
    virtio_vsock_hdr header = driver->Header(static_cast<uint16_t>(random() % 9), pick({1, 2, 3}),
                                             pick({kHostPort, 2, (1u << 30) + 12345, (1u << 30) + 12346}));
    if (random() % 64 == 0) header.src_cid = random();
    if (random() % 64 == 0) header.type = static_cast<uint16_t>(random());
    header.flags = random() % 4;
    header.buf_alloc = pick({0, 1, 4096, UINT32_MAX});
    header.fwd_cnt = pick({0, 100, UINT32_MAX});
    std::string data(random() % 3000, 'g');
    header.len = random() % 32 == 0 ? random() : static_cast<uint32_t>(data.size());
    driver->SendRaw(header, data);
    now_us += random() % 1'000'000;
    if (random() % 4 != 0) ReceiveAll();
    ASSERT_LE(device->connection_count(), limits.connections);
    ASSERT_FALSE(device->broken());
  }
  device->Stop();
  device->ResetConnections();
  driver->cid = FakeDriver::kGuestCid;
  driver->window = 10000;
  ASSERT_TRUE(device->Start(true, now_us));
  ReceiveAll();
  std::shared_ptr<StreamState> state = GuestConnects(99);
  Guest(VIRTIO_VSOCK_OP_RW, 99, kHostPort, "fine");
  EXPECT_EQ(state->outgoing, "fine");
}

}  // namespace
}  // namespace still::vsock
