// A fake guest before a VhostVsock: the driver that kicks and is interrupted through eventfds, only when the other side
// has asked for it, so that a lost wake-up shows as a test that waits in vain; and the hypervisor's ioctls.
#pragma once

#include <linux/vhost.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "gtest/gtest.h"
#include "session/vsock/device/vhost_vsock.h"
#include "tests/unit/session-vsock/fake_driver.h"

namespace still::vsock {

constexpr int kPatienceMs = 20'000;  // For what must happen; never reached when all is well.

// The driver's and the hypervisor's part in front of a VhostVsock.
class Machine {
 public:
  explicit Machine(VhostVsock* vhost, const FakeDriver::Options& options = {})
      : driver(options), vhost_(vhost), event_index_(options.event_index) {
    for (int i = 0; i < 2; ++i) {
      kick_[i] = OwnedFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
      call_[i] = OwnedFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    }
  }

  template <typename T>
  int Ioctl(unsigned long request, T value) {
    return vhost_->Ioctl(request, &value);
  }

  // The sequence of QEMU 7.2, with `base` as the first index of both rings.
  void Start(uint16_t base = 0) { ASSERT_EQ(TryStart(base), 0); }
  int TryStart(uint16_t base = 0) {
    uint64_t offered = 0;
    EXPECT_EQ(vhost_->Ioctl(VHOST_GET_FEATURES, &offered), 0);
    uint64_t no_event_index = ~(uint64_t{event_index_ ? 0u : 1u} << VIRTIO_RING_F_EVENT_IDX);
    EXPECT_EQ(Ioctl<uint64_t>(VHOST_VSOCK_SET_GUEST_CID, driver.cid), 0);
    EXPECT_EQ(Ioctl<uint64_t>(VHOST_SET_FEATURES, offered & ~(uint64_t{1} << VHOST_F_LOG_ALL) & no_event_index), 0);
    SetMemory();
    FakeRing* rings[2] = {&driver.to_guest(), &driver.from_guest()};
    for (unsigned i = 0; i < 2; ++i) {
      EXPECT_EQ(Ioctl<vhost_vring_state>(VHOST_SET_VRING_NUM, {i, rings[i]->size()}), 0);
      EXPECT_EQ(Ioctl<vhost_vring_state>(VHOST_SET_VRING_BASE, {i, base}), 0);
      Virtqueue::Layout layout = rings[i]->layout();
      EXPECT_EQ(Ioctl<vhost_vring_addr>(VHOST_SET_VRING_ADDR, {.index = i,
                                                               .flags = 0,
                                                               .desc_user_addr = layout.descriptors,
                                                               .used_user_addr = layout.used,
                                                               .avail_user_addr = layout.available,
                                                               .log_guest_addr = layout.used_guest_address}),
                0);
      EXPECT_EQ(Ioctl<vhost_vring_file>(VHOST_SET_VRING_KICK, {i, kick_[i].get()}), 0);
      EXPECT_EQ(Ioctl<vhost_vring_file>(VHOST_SET_VRING_CALL, {i, call_[i].get()}), 0);
    }
    return Ioctl<int>(VHOST_VSOCK_SET_RUNNING, 1);
  }

  // Gives the index of the transmit ring.
  uint16_t Stop() {
    EXPECT_EQ(Ioctl<int>(VHOST_VSOCK_SET_RUNNING, 0), 0);
    vhost_vring_state state[2] = {{0, 0}, {1, 0}};
    for (auto& ring : state) EXPECT_EQ(vhost_->Ioctl(VHOST_GET_VRING_BASE, &ring), 0);
    return static_cast<uint16_t>(state[1].num);
  }

  void Offer(int count) {
    uint16_t before = driver.to_guest().avail_index();
    driver.Offer(count);
    Kick(0, before);
  }

  // Waits while the ring is full.
  void Send(uint16_t op, uint32_t guest_port, uint32_t host_port, const std::string& data = "", uint32_t flags = 0) {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
    for (;;) {
      uint16_t before = driver.from_guest().avail_index();
      if (driver.Send(op, guest_port, host_port, data, flags)) {
        Kick(1, before);
        return;
      }
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "the transmit ring stays full";
      if (event_index_) driver.from_guest().SetUsedEvent(driver.from_guest().used_index());
      pollfd ready{.fd = call_[1].get(), .events = POLLIN, .revents = 0};
      // Short: the wish above may have come too late for the last completion.
      ::poll(&ready, 1, 10);
      Drain(call_[1].get());
    }
  }

  std::optional<Packet> Receive(int patience_ms = kPatienceMs) {
    for (;;) {
      uint16_t before = driver.to_guest().avail_index();
      if (std::optional<Packet> packet = driver.Receive()) {
        Kick(0, before);
        return packet;
      }
      // Wish first, look again, then sleep: as a driver does.
      uint16_t seen = driver.to_guest().used_index();
      if (event_index_) driver.to_guest().SetUsedEvent(seen);
      __atomic_thread_fence(__ATOMIC_SEQ_CST);
      if (driver.to_guest().used_index() != seen) continue;
      pollfd ready{.fd = call_[0].get(), .events = POLLIN, .revents = 0};
      if (::poll(&ready, 1, patience_ms) <= 0) return std::nullopt;
      Drain(call_[0].get());
    }
  }

  // The next packet that is not only about credit.
  Packet Expect(uint16_t op) {
    for (;;) {
      std::optional<Packet> packet = Receive();
      if (!packet.has_value()) {
        ADD_FAILURE() << "no packet came; expected op " << op;
        return {};
      }
      if (packet->header.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE || packet->header.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST) {
        continue;
      }
      EXPECT_EQ(packet->header.op, op);
      return *packet;
    }
  }

  void SetMemory() {
    std::vector<MemoryRegion> regions = driver.memory().regions();
    std::vector<uint64_t> bytes((sizeof(vhost_memory) + regions.size() * sizeof(vhost_memory_region)) / 8);
    auto* table = reinterpret_cast<vhost_memory*>(bytes.data());
    table->nregions = static_cast<uint32_t>(regions.size());
    for (size_t i = 0; i < regions.size(); ++i) {
      table->regions[i] = {regions[i].guest_address, regions[i].size, regions[i].user_address, 0};
    }
    ASSERT_EQ(vhost_->Ioctl(VHOST_SET_MEM_TABLE, table), 0);
  }

  int call_fd(int queue) const { return call_[queue].get(); }

  FakeDriver driver;

 private:
  void Kick(int queue, uint16_t before) {
    FakeRing& ring = queue == 0 ? driver.to_guest() : driver.from_guest();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    auto added = static_cast<uint16_t>(ring.avail_index() - before);
    bool wanted = event_index_ ? static_cast<uint16_t>(ring.avail_index() - ring.avail_event() - 1) < added
                               : (ring.used_flags() & VRING_USED_F_NO_NOTIFY) == 0;
    uint64_t one = 1;
    if (wanted) {
      ASSERT_EQ(::write(kick_[queue].get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
    }
  }
  static void Drain(int fd) {
    uint64_t count;
    (void)!::read(fd, &count, sizeof count);
  }

  VhostVsock* vhost_;
  const bool event_index_;
  OwnedFd kick_[2];
  OwnedFd call_[2];
};

}  // namespace still::vsock
