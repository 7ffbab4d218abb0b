// The state machine: what each side does, and what the other sees of it.
#include "session/vsock/device/device.h"

#include <cstring>
#include <random>

#include "tests/unit/session-vsock/device_fixture.h"

namespace still::vsock {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class DeviceTest : public DeviceFixture {
 protected:
  void SetUp() override { Build(); }
};

TEST_F(DeviceTest, TheGuestConnectsAndBytesGoBothWays) {
  Guest(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, kHostPort);
  Packet response = ReceiveOne();
  EXPECT_EQ(response.header.op, VIRTIO_VSOCK_OP_RESPONSE);
  EXPECT_EQ(response.header.src_cid, 2u);
  EXPECT_EQ(response.header.dst_cid, FakeDriver::kGuestCid);
  EXPECT_EQ(response.header.src_port, kHostPort);
  EXPECT_EQ(response.header.dst_port, kGuestPort);
  EXPECT_EQ(response.header.type, VIRTIO_VSOCK_TYPE_STREAM);
  EXPECT_EQ(response.header.buf_alloc, Limits().window);
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "from the guest");
  EXPECT_EQ(host.last->outgoing, "from the guest");
  HostSends(host.last, "from the host");
  Packet data = ReceiveOne();
  EXPECT_EQ(data.header.op, VIRTIO_VSOCK_OP_RW);
  EXPECT_EQ(data.data, "from the host");
  EXPECT_EQ(data.header.fwd_cnt, 14u);
}

TEST_F(DeviceTest, NobodyListensOnTheHost) {
  Guest(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, 9);
  Packet reset = ReceiveOne();
  EXPECT_EQ(reset.header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(reset.header.src_port, 9u);
  EXPECT_EQ(reset.header.dst_port, kGuestPort);
  EXPECT_EQ(device->connection_count(), 0u);
}

TEST_F(DeviceTest, TheHostConnectsAndBytesGoBothWays) {
  std::shared_ptr<StreamState> state = HostAsks();
  state->incoming = "sent with the request";
  Packet request = ReceiveOne();
  EXPECT_EQ(request.header.op, VIRTIO_VSOCK_OP_REQUEST);
  EXPECT_EQ(request.header.dst_port, kGuestPort);
  EXPECT_GE(request.header.src_port, 1u << 30);
  EXPECT_FALSE(state->accepted) << "nothing may be said before the guest has answered";
  Guest(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, request.header.src_port);
  EXPECT_TRUE(state->accepted);
  EXPECT_EQ(state->host_port, request.header.src_port);
  EXPECT_EQ(ReceiveOne().data, "sent with the request");
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, request.header.src_port, "answer");
  EXPECT_EQ(state->outgoing, "answer");
}

TEST_F(DeviceTest, NobodyListensInTheGuest) {
  std::shared_ptr<StreamState> state = HostAsks();
  Packet request = ReceiveOne();
  Guest(VIRTIO_VSOCK_OP_RST, kGuestPort, request.header.src_port);
  EXPECT_TRUE(state->closed);
  EXPECT_FALSE(state->accepted);
  EXPECT_THAT(ReceiveAll(), IsEmpty()) << "a reset is not answered";
}

TEST_F(DeviceTest, TheGuestDoesNotAnswerInTime) {
  std::shared_ptr<StreamState> state = HostAsks();
  Packet request = ReceiveOne();
  Advance(Limits().connect_us - 1);
  EXPECT_FALSE(state->closed);
  Advance(1);
  EXPECT_TRUE(state->closed);
  Packet reset = ReceiveOne();
  EXPECT_EQ(reset.header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(reset.header.src_port, request.header.src_port);
}

TEST_F(DeviceTest, AStoppedMachinesTimeIsNotTheGuestsFault) {
  std::shared_ptr<StreamState> state = HostAsks();
  Packet request = ReceiveOne();
  device->Stop();
  now_us += 10 * Limits().connect_us;
  device->Tick(now_us);
  EXPECT_FALSE(state->closed);
  ASSERT_TRUE(device->Start(true, now_us));
  Guest(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, request.header.src_port);
  EXPECT_TRUE(state->accepted);
}

TEST_F(DeviceTest, AHostThatGivesUpBeforeItsRequestWasSentLeavesNoTrace) {
  device->Stop();
  for (int i = 0; i < 2000; ++i) device->OnHostGone(HostAsks()->id);
  EXPECT_EQ(device->connection_count(), 0u);
  ASSERT_TRUE(device->Start(true, now_us));
  EXPECT_THAT(ReceiveAll(), IsEmpty());
}

TEST_F(DeviceTest, AHostThatGivesUpAfterwardsResetsTheGuest) {
  std::shared_ptr<StreamState> state = HostAsks();
  ReceiveOne();
  device->OnHostGone(state->id);
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST);
}

TEST_F(DeviceTest, NoMoreIsSentThanTheGuestHasRoomFor) {
  driver->window = 100;
  std::shared_ptr<StreamState> state = GuestConnects();
  HostSends(state, std::string(250, 'h'));
  std::vector<Packet> packets = ReceiveAll();
  EXPECT_THAT(OpsOf(packets), ElementsAre(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_CREDIT_REQUEST));
  EXPECT_EQ(DataOf(packets).size(), 100u);
  HostSends(state, "");
  EXPECT_THAT(ReceiveAll(), IsEmpty()) << "credit is asked for once";
  driver->forwarded = 60;
  Guest(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kGuestPort, kHostPort);
  EXPECT_EQ(DataOf(ReceiveAll()).size(), 60u);
  driver->forwarded = 160;
  Guest(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kGuestPort, kHostPort);
  EXPECT_EQ(DataOf(ReceiveAll()).size(), 90u);
}

TEST_F(DeviceTest, CreditCountersWrapAround) {
  std::shared_ptr<StreamState> state = GuestConnects();
  driver->window = 3000;
  // The guest claims to have taken what was never sent: from then on its counter is "ahead" and gives no credit.
  driver->forwarded = 0xfffffff0;
  Guest(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kGuestPort, kHostPort);
  HostSends(state, std::string(5000, 'x'));
  std::vector<Packet> packets = ReceiveAll();
  EXPECT_EQ(DataOf(packets).size(), 2984u) << "16 bytes are under way as far as the guest says";
}

TEST_F(DeviceTest, ACreditRequestIsAnswered) {
  GuestConnects();
  Guest(VIRTIO_VSOCK_OP_CREDIT_REQUEST, kGuestPort, kHostPort);
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
}

TEST_F(DeviceTest, ASlowHostReaderStopsOnlyItsOwnConnection) {
  std::shared_ptr<StreamState> slow = GuestConnects(1);
  slow->outgoing_room = 1000;
  std::string sent;
  uint32_t left = Limits().window;
  while (left > 0) {
    std::string piece(std::min<uint32_t>(left, 60000), static_cast<char>('a' + sent.size() % 26));
    Guest(VIRTIO_VSOCK_OP_RW, 1, kHostPort, piece);
    sent += piece;
    left -= static_cast<uint32_t>(piece.size());
  }
  EXPECT_FALSE(slow->closed);
  EXPECT_EQ(slow->outgoing.size(), 1000u);
  std::shared_ptr<StreamState> other = GuestConnects(2);
  Guest(VIRTIO_VSOCK_OP_RW, 2, kHostPort, "still moves");
  EXPECT_EQ(other->outgoing, "still moves");

  slow->outgoing_room = SIZE_MAX;
  device->OnWritable(slow->id, now_us);
  Packet update = ReceiveOne();
  EXPECT_EQ(update.header.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  EXPECT_EQ(update.header.fwd_cnt, Limits().window);
  EXPECT_EQ(slow->outgoing, sent);
}

TEST_F(DeviceTest, MoreThanItsCreditResetsTheConnection) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->outgoing_room = 0;
  for (int i = 0; i < 4; ++i) Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, std::string(65536, 'x'));
  EXPECT_FALSE(state->closed);
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "x");
  EXPECT_TRUE(state->closed);
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(device->connection_count(), 0u);
}

TEST_F(DeviceTest, PacketsOfUnknownConnectionsAreReset) {
  for (uint16_t op : {VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_RESPONSE, VIRTIO_VSOCK_OP_SHUTDOWN,
                      VIRTIO_VSOCK_OP_CREDIT_UPDATE, VIRTIO_VSOCK_OP_CREDIT_REQUEST, VIRTIO_VSOCK_OP_INVALID}) {
    Guest(op, 1, 2, "");
    EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST) << op;
  }
  Guest(VIRTIO_VSOCK_OP_RST, 1, 2);
  EXPECT_THAT(ReceiveAll(), IsEmpty());
}

TEST_F(DeviceTest, WhatDoesNotFitTheStateResetsTheConnection) {
  for (int number : {int{VIRTIO_VSOCK_OP_REQUEST}, int{VIRTIO_VSOCK_OP_RESPONSE}, int{VIRTIO_VSOCK_OP_INVALID}, 99}) {
    auto op = static_cast<uint16_t>(number);
    std::shared_ptr<StreamState> state = GuestConnects();
    Guest(op, kGuestPort, kHostPort);
    EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST) << op;
    EXPECT_TRUE(state->closed) << op;
  }
  for (uint16_t op : {VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_OP_REQUEST}) {
    std::shared_ptr<StreamState> state = HostAsks();
    uint32_t port = ReceiveOne().header.src_port;
    Guest(op, kGuestPort, port);
    EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST) << op;
    EXPECT_TRUE(state->closed) << op;
  }
}

TEST_F(DeviceTest, AnAnswerToARequestThatWasNotYetSentIsNoAnswer) {
  Build({}, {}, /*buffers=*/0);  // So that nothing can be sent. The port is the first one; a guest could guess it.
  std::shared_ptr<StreamState> state = HostAsks();
  Guest(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, (1u << 30) + 12345);
  EXPECT_TRUE(state->closed);
  EXPECT_FALSE(state->accepted);
}

TEST_F(DeviceTest, ALengthBeyondThePacketResetsTheConnection) {
  std::shared_ptr<StreamState> state = GuestConnects();
  virtio_vsock_hdr header = driver->Header(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort);
  header.len = 11;
  ASSERT_TRUE(driver->SendRaw(header, "ten bytes."));
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(state->outgoing, "");
  EXPECT_TRUE(state->closed);
}

TEST_F(DeviceTest, WhatIsTooShortForAHeaderIsTakenAndIgnored) {
  ASSERT_TRUE(driver->SendBytes(std::string(43, 'x')));
  EXPECT_THAT(ReceiveAll(), IsEmpty());
  EXPECT_EQ(driver->Reclaim(), 1);
  EXPECT_TRUE(device->running());
}

TEST_F(DeviceTest, OtherSocketTypesAndAddressesAreReset) {
  virtio_vsock_hdr header = driver->Header(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, kHostPort);
  header.type = VIRTIO_VSOCK_TYPE_SEQPACKET;
  ASSERT_TRUE(driver->SendRaw(header, ""));
  Packet reset = ReceiveOne();
  EXPECT_EQ(reset.header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(reset.header.type, VIRTIO_VSOCK_TYPE_SEQPACKET);

  header.type = VIRTIO_VSOCK_TYPE_STREAM;
  header.dst_cid = 3;
  ASSERT_TRUE(driver->SendRaw(header, ""));
  reset = ReceiveOne();
  EXPECT_EQ(reset.header.src_cid, 3u);
  EXPECT_EQ(reset.header.dst_cid, FakeDriver::kGuestCid);
  EXPECT_EQ(host.connects, 0);
}

TEST_F(DeviceTest, ARestoredGuestThatAnswersFromItsOldCidIsAskedAgain) {
  std::shared_ptr<StreamState> state = HostAsks();
  Packet first = ReceiveOne();
  driver->cid = FakeDriver::kGuestCid + 1;  // The one it was saved with.
  Guest(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, first.header.src_port);
  EXPECT_FALSE(state->accepted);
  EXPECT_FALSE(state->closed);
  EXPECT_THAT(ReceiveAll(), IsEmpty()) << "not before the guest has had time to learn its new CID";
  EXPECT_EQ(device->NextDeadline(), now_us + Limits().stale_retry_us);
  Advance(Limits().stale_retry_us);
  Packet second = ReceiveOne();
  EXPECT_EQ(second.header.op, VIRTIO_VSOCK_OP_REQUEST);
  EXPECT_NE(second.header.src_port, first.header.src_port);
  // Still not there yet, and what it resets of the first attempt is not about the second.
  Guest(VIRTIO_VSOCK_OP_RST, kGuestPort, first.header.src_port);
  Guest(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, second.header.src_port);
  Advance(Limits().stale_retry_us);
  Packet third = ReceiveOne();
  driver->cid = FakeDriver::kGuestCid;
  Guest(VIRTIO_VSOCK_OP_RST, kGuestPort, second.header.src_port);
  Guest(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, third.header.src_port);
  EXPECT_TRUE(state->accepted);
  EXPECT_EQ(state->host_port, third.header.src_port);
  EXPECT_EQ(device->counters().stale_retries, 2u);
  HostSends(state, "hello");
  EXPECT_EQ(ReceiveOne().data, "hello");
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, third.header.src_port, "welcome");
  EXPECT_EQ(state->outgoing, "welcome");
}

TEST_F(DeviceTest, AskingAgainEndsAtTheDeadline) {
  std::shared_ptr<StreamState> state = HostAsks();
  driver->cid = FakeDriver::kGuestCid + 1;
  uint64_t end = now_us + Limits().connect_us;
  while (now_us < end) {
    ASSERT_FALSE(state->closed);
    for (const Packet& packet : ReceiveAll()) {
      ASSERT_EQ(packet.header.op, VIRTIO_VSOCK_OP_REQUEST);
      Guest(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, packet.header.src_port);
    }
    Advance(Limits().stale_retry_us);
  }
  EXPECT_TRUE(state->closed);
  EXPECT_EQ(device->connection_count(), 0u);
}

TEST_F(DeviceTest, OtherPacketsFromTheOldCidAreResetThere) {
  driver->cid = 4711;
  Guest(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, kHostPort);
  Packet reset = ReceiveOne();
  EXPECT_EQ(reset.header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(reset.header.dst_cid, 4711u);
  EXPECT_EQ(host.connects, 0);
}

TEST_F(DeviceTest, ANewCidEndsAllConnections) {
  std::shared_ptr<StreamState> state = GuestConnects();
  device->SetGuestCid(FakeDriver::kGuestCid);
  EXPECT_FALSE(state->closed);
  device->SetGuestCid(FakeDriver::kGuestCid + 1);
  EXPECT_TRUE(state->closed);
}

TEST_F(DeviceTest, ConnectionsOutliveAPause) {
  std::shared_ptr<StreamState> state = GuestConnects();
  device->Stop();
  uint16_t bases[2] = {device->queue(0).base(), device->queue(1).base()};
  HostSends(state, "while it stood still");
  ASSERT_TRUE(driver->Send(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "left in the ring"));
  Run();
  EXPECT_FALSE(driver->Receive().has_value());
  EXPECT_EQ(state->outgoing, "");
  for (int i = 0; i < 2; ++i) device->queue(i).SetBase(bases[i]);
  ASSERT_TRUE(device->Start(true, now_us));
  EXPECT_EQ(ReceiveOne().data, "while it stood still");
  EXPECT_EQ(state->outgoing, "left in the ring");
}

TEST_F(DeviceTest, ManyBytesArriveUnchangedOverWrappingRings) {
  for (bool with_event_index : {false, true}) {
    for (bool indirect : {false, true}) {
      for (bool split : {false, true}) {
        FakeDriver::Options options;
        options.ring_size = 16;
        options.event_index = with_event_index;
        options.indirect = indirect;
        options.split_header = split;
        options.start_index = 65530;
        Build(options, {}, 6);
        std::shared_ptr<StreamState> state = GuestConnects();
        std::mt19937 random(7);
        std::string to_host;
        std::string to_guest;
        std::string got;
        for (int i = 0; i < 300; ++i) {
          std::string piece(random() % 5000, '\0');
          for (char& byte : piece) byte = static_cast<char>(random());
          Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, piece);
          to_host += piece;
          to_guest += piece;
          HostSends(state, piece);
          std::string part = DataOf(ReceiveAll());
          got += part;
          driver->forwarded += static_cast<uint32_t>(part.size());
          if (i % 10 == 0) Guest(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kGuestPort, kHostPort);
        }
        EXPECT_TRUE(got == to_guest);
        EXPECT_TRUE(state->outgoing == to_host);
      }
    }
  }
}

}  // namespace
}  // namespace still::vsock
