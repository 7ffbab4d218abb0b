// One split virtqueue, seen from the device (virtio 1.1, section 2.6), with indirect descriptors and event indices.
//
// All that is read here is the guest's and may change while it is read: every descriptor is copied once and checked
// afterwards. A ring that breaks the rules is reported as kBroken and is not touched again until the next Start.
// Not thread-safe, but RequestStop may be called from any thread.
#pragma once

#include <linux/virtio_ring.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "session/vsock/device/guest_memory.h"

namespace still::vsock {

// A piece of a buffer, contiguous in this process.
struct Segment {
  uint8_t* data = nullptr;
  uint32_t size = 0;
  uint64_t guest_address = 0;
};

// One buffer the driver has made available: what it wrote for us, or where it wants us to write.
struct Chain {
  // Linux sends a packet in at most 20 pieces; the specification allows as many as the ring has entries (128 here).
  static constexpr size_t kMaxSegments = 256;

  uint16_t head = 0;
  bool writable = false;  // All of a chain is one or the other; vsock has no buffers that mix them.
  size_t count = 0;
  uint64_t bytes = 0;
  Segment segments[kMaxSegments];
};

class Virtqueue {
 public:
  static constexpr uint32_t kMaxSize = 32768;

  struct Layout {
    uint64_t descriptors = 0;  // Addresses in this process.
    uint64_t available = 0;
    uint64_t used = 0;
    bool log_used = false;            // Mark writes to the used ring in the dirty bitmap ...
    uint64_t used_guest_address = 0;  // ... from this guest address on.
  };
  enum class Next { kChain, kEmpty, kBroken };

  // `side` says which chains this queue carries: those that the device writes, or those that it reads.
  Virtqueue(const GuestMemory* memory, bool writable) : memory_(memory), writable_(writable) {}
  Virtqueue(const Virtqueue&) = delete;
  Virtqueue& operator=(const Virtqueue&) = delete;

  // False when not a power of two or too large.
  bool SetSize(uint32_t size);
  void SetBase(uint16_t base) { next_available_.store(base, std::memory_order_relaxed); }
  // The index of the next chain to be taken. Thread-safe.
  uint16_t base() const { return next_available_.load(std::memory_order_relaxed); }
  // May also be called while running, to turn logging on or off.
  bool SetLayout(const Layout& layout);

  // False when the ring does not lie in guest memory, or has no size or layout.
  bool Start(bool event_index);
  void Stop() { running_ = false; }
  bool running() const { return running_ && !stop_requested(); }
  // From another thread: nothing is taken or completed from now on, whatever the thread that owns us is in the midst
  // of. It may still end a write to guest memory that it has begun.
  void RequestStop() { stop_requested_.store(true, std::memory_order_release); }
  bool stop_requested() const { return stop_requested_.load(std::memory_order_acquire); }

  // The next chain, which stays available until Complete.
  Next Peek(Chain* chain);
  // Gives the peeked chain back, with the first `written` bytes of it filled in. No-op once a stop was requested.
  void Complete(const Chain& chain, uint32_t written);
  // True when something was completed since the last call and the driver wants an interrupt for it.
  bool NeedsInterrupt();
  // Asks for a kick at the next new chain. True when there is one already: then no kick will come for it.
  bool EnableKicks();
  void DisableKicks();

 private:
  uint16_t AvailableIndex() const;
  Next Broken();
  bool AddSegments(const vring_desc& descriptor, Chain* chain) const;
  bool ReadTable(const vring_desc& indirect, Chain* chain) const;
  void LogUsed(uint64_t offset, uint64_t size) const;

  const GuestMemory* memory_;
  const bool writable_;
  uint32_t size_ = 0;
  Layout layout_;
  vring_desc* descriptors_ = nullptr;
  vring_avail* available_ = nullptr;
  vring_used* used_ = nullptr;
  bool event_index_ = false;
  bool running_ = false;
  std::atomic<bool> stop_requested_{false};
  std::atomic<uint16_t> next_available_{0};
  uint16_t used_index_ = 0;
  bool completed_ = false;        // Something, since NeedsInterrupt was last asked.
  uint16_t signalled_ = 0;        // used_index_ when NeedsInterrupt was last asked ...
  bool signalled_valid_ = false;  // ... if it was, since Start.
};

}  // namespace still::vsock
