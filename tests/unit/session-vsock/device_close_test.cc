// How connections end: each side's half, both halves, and what is still under way then.
#include "session/vsock/device/device.h"
#include "tests/unit/session-vsock/device_fixture.h"

namespace still::vsock {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class DeviceCloseTest : public DeviceFixture {
 protected:
  void SetUp() override { Build(); }
};

TEST_F(DeviceCloseTest, TheGuestEndsItsSideAndStillReceives) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->outgoing_room = 0;
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "last words");
  Guest(VIRTIO_VSOCK_OP_SHUTDOWN, kGuestPort, kHostPort, "", VIRTIO_VSOCK_SHUTDOWN_SEND);
  EXPECT_FALSE(state->end_of_guest_data) << "the end comes after the data";
  state->outgoing_room = SIZE_MAX;
  device->OnWritable(state->id, now_us);
  EXPECT_EQ(state->outgoing, "last words");
  EXPECT_TRUE(state->end_of_guest_data);
  HostSends(state, "answer");
  EXPECT_EQ(ReceiveOne().data, "answer");
}

TEST_F(DeviceCloseTest, DataAfterTheEndResetsTheConnection) {
  std::shared_ptr<StreamState> state = GuestConnects();
  Guest(VIRTIO_VSOCK_OP_SHUTDOWN, kGuestPort, kHostPort, "", VIRTIO_VSOCK_SHUTDOWN_SEND);
  EXPECT_TRUE(state->end_of_guest_data);
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "more");
  EXPECT_TRUE(state->closed);
  EXPECT_EQ(state->outgoing, "");
}

TEST_F(DeviceCloseTest, TheGuestStopsReading) {
  std::shared_ptr<StreamState> state = GuestConnects();
  Guest(VIRTIO_VSOCK_OP_SHUTDOWN, kGuestPort, kHostPort, "", VIRTIO_VSOCK_SHUTDOWN_RCV);
  EXPECT_TRUE(state->guest_stopped_reading);
  HostSends(state, "unwanted");
  EXPECT_THAT(ReceiveAll(), IsEmpty());
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "still sends");
  EXPECT_EQ(state->outgoing, "still sends");
}

TEST_F(DeviceCloseTest, TheHostEndsItsSideAndStillReceives) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->incoming_ended = true;
  HostSends(state, "last words");
  std::vector<Packet> packets = ReceiveAll();
  EXPECT_THAT(OpsOf(packets), ElementsAre(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_SHUTDOWN));
  EXPECT_EQ(packets.at(1).header.flags, uint32_t{VIRTIO_VSOCK_SHUTDOWN_SEND});
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "answer");
  EXPECT_EQ(state->outgoing, "answer");
  EXPECT_FALSE(state->closed);
}

TEST_F(DeviceCloseTest, TheHostClosesAndItsLastBytesArrive) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->incoming = "last words";
  state->incoming_ended = true;
  device->OnHostGone(state->id);
  std::vector<Packet> packets = ReceiveAll();
  EXPECT_THAT(OpsOf(packets), ElementsAre(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_SHUTDOWN));
  EXPECT_EQ(packets.at(1).header.flags, kBoth);
  EXPECT_TRUE(state->closed);
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "into the void");
  EXPECT_EQ(device->connection_count(), 1u) << "it is the guest's turn to confirm";
  Guest(VIRTIO_VSOCK_OP_RST, kGuestPort, kHostPort);
  EXPECT_EQ(device->connection_count(), 0u);
  EXPECT_THAT(ReceiveAll(), IsEmpty());
}

TEST_F(DeviceCloseTest, ACloseThatTheGuestDoesNotConfirmEndsInAReset) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->incoming_ended = true;
  device->OnHostGone(state->id);
  ReceiveOne();
  Advance(Limits().close_us);
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST);
  EXPECT_EQ(device->connection_count(), 0u);
}

TEST_F(DeviceCloseTest, AHostThatReadsNoMoreIsStillHeard) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->writes_break = true;
  state->incoming = "what it had sent";
  state->incoming_ended = true;
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "too late");
  std::vector<Packet> packets = ReceiveAll();
  EXPECT_EQ(DataOf(packets), "what it had sent");
  EXPECT_EQ(packets.back().header.op, VIRTIO_VSOCK_OP_SHUTDOWN);
  EXPECT_EQ(packets.back().header.flags, kBoth);
}

TEST_F(DeviceCloseTest, TheGuestClosesAndItsLastBytesArrive) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->outgoing_room = 4;
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "last words");
  Guest(VIRTIO_VSOCK_OP_SHUTDOWN, kGuestPort, kHostPort, "", kBoth);
  EXPECT_EQ(ReceiveOne().header.op, VIRTIO_VSOCK_OP_RST) << "confirmed at once: the guest's ports are free again";
  EXPECT_FALSE(state->closed);
  std::shared_ptr<StreamState> again = GuestConnects();
  EXPECT_NE(again->id, state->id);
  state->outgoing_room = SIZE_MAX;
  device->OnWritable(state->id, now_us);
  EXPECT_EQ(state->outgoing, "last words");
  EXPECT_TRUE(state->closed);
  EXPECT_FALSE(again->closed);
  EXPECT_THAT(ReceiveAll(), IsEmpty());
}

TEST_F(DeviceCloseTest, WhatADepartedGuestLeftIsKeptForAReaderThatGoesOnReading) {
  std::shared_ptr<StreamState> state = GuestConnects();
  state->outgoing_room = 0;
  Guest(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "last words");
  Guest(VIRTIO_VSOCK_OP_SHUTDOWN, kGuestPort, kHostPort, "", kBoth);
  ReceiveOne();
  Advance(Limits().drain_us - 1);
  state->outgoing_room = 1;
  device->OnWritable(state->id, now_us);
  Advance(Limits().drain_us - 1);
  EXPECT_FALSE(state->closed);
  Advance(1);
  EXPECT_TRUE(state->closed);
  EXPECT_THAT(ReceiveAll(), IsEmpty()) << "the guest has long forgotten it";
}

TEST_F(DeviceCloseTest, AResetOfTheGuestClosesTheHostsEnd) {
  std::shared_ptr<StreamState> state = GuestConnects();
  Guest(VIRTIO_VSOCK_OP_RST, kGuestPort, kHostPort);
  EXPECT_TRUE(state->closed);
  EXPECT_THAT(ReceiveAll(), IsEmpty());
}

}  // namespace
}  // namespace still::vsock
