// The guest's half of the vsock device: memory in a memfd, the driver's side of its two rings, packets in and out.
// Written against the virtio specification and independent of the device's own ring code.
#pragma once

#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "session/vsock/device/guest_memory.h"
#include "session/vsock/device/virtqueue.h"

namespace still::vsock {

// Two mappings of one memfd with a gap in the guest's address space between them, as a PC has.
class FakeMemory {
 public:
  static constexpr uint64_t kLowAddress = 0x10000;
  static constexpr uint64_t kHighAddress = 0x100000000;
  static constexpr uint64_t kRegionBytes = 2 << 20;

  FakeMemory();
  ~FakeMemory();
  FakeMemory(const FakeMemory&) = delete;
  FakeMemory& operator=(const FakeMemory&) = delete;

  std::vector<MemoryRegion> regions() const;
  uint8_t* At(uint64_t guest_address) const;
  // Never used twice; all buffers of a test fit in.
  uint64_t Allocate(uint64_t size, uint64_t alignment = 16);

 private:
  int fd_;
  uint8_t* base_;
  uint64_t next_ = kLowAddress;
};

// The driver's side of one ring.
class FakeRing {
 public:
  FakeRing(FakeMemory* memory, uint16_t size, bool event_index);

  struct Part {
    uint64_t address = 0;
    uint32_t size = 0;
  };
  // Makes a chain available and gives its head. Descriptors of completed chains are used again.
  uint16_t Add(const std::vector<Part>& parts, bool writable, bool indirect = false);
  // The next completed chain: its head and length.
  struct Used {
    uint32_t head = 0;
    uint32_t length = 0;
  };
  std::optional<Used> Take();
  // The driver's wish: no interrupt before so many more chains are completed (event index) or none at all.
  void SetUsedEvent(uint16_t index);
  void SetNoInterrupt(bool on);
  // What the device asks for.
  uint16_t avail_event() const;
  uint16_t used_flags() const;
  uint16_t used_index() const;
  uint16_t avail_index() const { return avail_index_; }
  uint16_t size() const { return size_; }
  size_t free_descriptors() const { return free_.size(); }

  Virtqueue::Layout layout() const;
  // For tests that break rules.
  vring_desc* descriptor(uint16_t index);
  void Publish(uint16_t head);
  void SetAvailableIndex(uint16_t index);
  // Both indices begin here instead of at 0: for wrap-around.
  void StartAt(uint16_t index);

 private:
  FakeMemory* memory_;
  const uint16_t size_;
  uint64_t descriptors_;
  uint64_t available_;
  uint64_t used_;
  std::vector<uint16_t> free_;
  std::vector<std::vector<uint16_t>> chains_;  // By head: all descriptors of the chain.
  std::vector<uint64_t> tables_;               // By head: where its indirect table is, once it had one.
  uint16_t avail_index_ = 0;
  uint16_t taken_ = 0;
};

struct Packet {
  virtio_vsock_hdr header{};
  std::string data;
};

// A guest that speaks vsock over two such rings.
class FakeDriver {
 public:
  static constexpr uint64_t kGuestCid = 77;

  struct Options {
    uint16_t ring_size = 64;
    bool event_index = true;
    bool indirect = false;
    uint32_t buffer_bytes = 4096;  // Of data, in each receive buffer ...
    bool split_header = true;      // ... with the header in a descriptor of its own, as Linux 6.1 does.
    uint32_t window = 256 * 1024;  // buf_alloc in what it sends.
    uint16_t start_index = 0;
  };
  FakeDriver() : FakeDriver(Options()) {}
  explicit FakeDriver(const Options& options);

  FakeMemory& memory() { return memory_; }
  FakeRing& to_guest() { return to_guest_; }
  FakeRing& from_guest() { return from_guest_; }

  // Gives the device so many receive buffers.
  void Offer(int count);
  // False when the ring is full. CIDs, type and credit are filled in.
  bool Send(uint16_t op, uint32_t guest_port, uint32_t host_port, const std::string& data = "", uint32_t flags = 0);
  // As it is.
  bool SendRaw(const virtio_vsock_hdr& header, const std::string& data);
  bool SendBytes(const std::string& bytes);
  // The next packet that the device sent; its buffer is offered again at once, unless told otherwise.
  std::optional<Packet> Receive(bool offer_again = true);
  virtio_vsock_hdr Header(uint16_t op, uint32_t guest_port, uint32_t host_port) const;

  // Completed transmit chains are reclaimed; gives how many were since the last call.
  int Reclaim();

  uint64_t cid = kGuestCid;
  uint32_t window;
  uint32_t forwarded = 0;

 private:
  struct Buffer {
    uint64_t header = 0;
    uint64_t data = 0;
  };
  void OfferBuffer(const Buffer& buffer);

  Options options_;
  FakeMemory memory_;
  FakeRing to_guest_;
  FakeRing from_guest_;
  std::vector<Buffer> buffers_;       // By head, of what was offered.
  std::vector<uint64_t> send_slots_;  // Free transmit buffers.
  std::vector<uint64_t> sending_;     // By head.
};

}  // namespace still::vsock
