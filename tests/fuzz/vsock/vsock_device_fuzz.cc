// A guest that does anything at all: raw writes into its rings, well-formed and malformed packets, at any moment, while
// streams on the host come, stall and go. Nothing may crash, reach outside guest memory (each region is a heap block of
// its own, so that the sanitizer sees it), outgrow a limit or keep the device busy for ever.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "session/vsock/device/device.h"
#include "tests/unit/session-vsock/fake_host.h"

namespace still::vsock {
namespace {

constexpr uint64_t kRegionBytes = 0x8000;
constexpr uint16_t kRingSize = 8;
constexpr uint64_t kRingsAt[2] = {0x0000, 0x0400};  // Descriptors, then at +0x100 available, at +0x200 used.
constexpr uint64_t kSlots = 0x1000;                 // Of what the structured operations write; the rest is free.
constexpr uint64_t kSlotBytes = 0x700;
constexpr uint32_t kListening = 1024;
constexpr uint32_t kPortSeed = 7;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  bool empty() const { return at_ == end_; }
  uint8_t Byte() { return empty() ? 0 : *at_++; }
  uint16_t Short() {
    uint16_t low = Byte();
    return static_cast<uint16_t>(low | Byte() << 8);
  }
  uint32_t Word() {
    uint32_t low = Short();
    return low | static_cast<uint32_t>(Short()) << 16;
  }
  // One of a few values that matter, or anything.
  uint32_t Interesting(std::initializer_list<uint32_t> values) {
    uint8_t which = Byte();
    return which < values.size() ? *(values.begin() + which) : Word();
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

class Guest {
 public:
  explicit Guest(Input* in) : in_(in) {
    limits_.connections = 6;
    limits_.replies = 12;
    device_ = std::make_unique<VsockDevice>(limits_, &host_, kPortSeed);
    device_->SetGuestCid(3);
    host_.listening.insert(kListening);
    MemoryRegion regions[] = {{0, kRegionBytes, reinterpret_cast<uint64_t>(low_.get())},
                              {kRegionBytes, kRegionBytes, reinterpret_cast<uint64_t>(high_.get())}};
    if (!device_->memory().SetRegions(regions, 2)) std::abort();
    device_->memory().SetLog(log_.get());
    Start(0);
  }

  void Step() {
    switch (in_->Byte() % 10) {
      case 0:
        RawWrite();
        break;
      case 1:
        Send();
        break;
      case 2:
        Offer();
        break;
      case 3:
        HostConnects();
        break;
      case 4:
        HostSends();
        break;
      case 5:
        HostReads();
        break;
      case 6:
        now_us_ += in_->Word();
        break;
      case 7:
        device_->Stop();
        if (in_->Byte() % 2 == 0) device_->ResetConnections();
        Start(in_->Byte() % 4 == 0 ? in_->Short() : device_->queue(1).base());
        break;
      case 8:
        Publish(in_->Byte() % 2, in_->Short());
        break;
      default:
        if (in_->Byte() % 8 == 0) device_->SetGuestCid(3 + in_->Byte() % 2);
        if (in_->Byte() % 8 == 0) device_->RequestStop();
    }
    Run();
  }

 private:
  void Start(uint16_t base) {
    event_index_ = in_->Byte() % 4 != 0;
    for (int i = 0; i < 2; ++i) {
      auto rings = reinterpret_cast<uint64_t>(low_.get()) + kRingsAt[i];
      if (!device_->queue(i).SetSize(kRingSize) ||
          !device_->queue(i).SetLayout({.descriptors = rings,
                                        .available = rings + 0x100,
                                        .used = rings + 0x200,
                                        .log_used = true,
                                        .used_guest_address = kRingsAt[i] + 0x200})) {
        std::abort();
      }
      device_->queue(i).SetBase(base);
      available_[i] = base;
    }
    if (!device_->Start(event_index_, now_us_)) std::abort();
  }

  void Run() {
    int rounds = 0;
    for (;; ++rounds) {
      device_->Tick(now_us_);
      bool more = device_->Process(now_us_);
      device_->NeedsInterrupt(0);
      device_->NeedsInterrupt(1);
      if (!more && !device_->PrepareToWait()) break;
      if (rounds > 1000) std::abort();  // It would spin.
    }
    if (device_->connection_count() > limits_.connections) std::abort();
    if (device_->broken() && device_->running()) std::abort();
  }

  uint8_t* At(uint64_t address) {
    return address < kRegionBytes ? low_.get() + address : high_.get() + (address - kRegionBytes);
  }
  void Put(uint64_t address, const void* data, size_t size) {
    for (size_t i = 0; i < size && address + i < 2 * kRegionBytes; ++i) {
      *At(address + i) = static_cast<const uint8_t*>(data)[i];
    }
  }

  void RawWrite() {
    uint64_t address = in_->Short();
    int size = in_->Byte() % 32;
    for (int i = 0; i < size; ++i) {
      uint8_t byte = in_->Byte();
      Put(address + static_cast<uint64_t>(i), &byte, 1);
    }
  }

  void Publish(int queue, uint16_t head) {
    uint64_t available = kRingsAt[queue] + 0x100;
    Put(available + 4 + 2 * (available_[queue] % kRingSize), &head, 2);
    ++available_[queue];
    Put(available + 2, &available_[queue], 2);
  }

  // A chain in one or two pieces, or an indirect one.
  void AddChain(int queue, uint64_t address, uint32_t size, uint8_t shape) {
    auto head = static_cast<uint16_t>(in_->Byte() % kRingSize);
    uint16_t write = queue == 0 ? VRING_DESC_F_WRITE : 0;
    uint64_t table = kRingsAt[queue];
    uint32_t first = shape % 3 == 0 ? size : std::min<uint32_t>(size, shape % 64);
    auto second = static_cast<uint16_t>((head + 1) % kRingSize);
    if (shape % 3 == 2) {
      vring_desc indirect{kSlots - 64, 32, VRING_DESC_F_INDIRECT, 0};
      Put(table + sizeof indirect * head, &indirect, sizeof indirect);
      table = kSlots - 64;
      second = 1;
    }
    vring_desc pieces[2] = {{address, first, write, second}, {address + first, size - first, write, 0}};
    if (first != size) pieces[0].flags = static_cast<uint16_t>(write | VRING_DESC_F_NEXT);
    uint16_t at = shape % 3 == 2 ? 0 : head;
    Put(table + sizeof pieces[0] * at, &pieces[0], sizeof pieces[0]);
    if (first != size) Put(table + sizeof pieces[0] * second, &pieces[1], sizeof pieces[1]);
    Publish(queue, head);
  }

  void Send() {
    virtio_vsock_hdr header{};
    header.op = in_->Byte() % 9;
    header.src_cid = in_->Interesting({3, 3, 3, 4});
    header.dst_cid = in_->Interesting({2, 2, 2, 3});
    header.type = static_cast<uint16_t>(in_->Interesting({1, 1, 1, 2}));
    header.src_port = in_->Byte() % 4;
    header.dst_port = in_->Interesting({kListening, kListening, 5, (1u << 30) + kPortSeed, (1u << 30) + kPortSeed + 1});
    header.flags = in_->Byte() % 8;
    header.buf_alloc = in_->Interesting({0, 10, 4096, UINT32_MAX});
    header.fwd_cnt = in_->Interesting({0, 10, 4096, UINT32_MAX});
    uint32_t payload = in_->Short() % 1500;
    header.len = in_->Byte() % 8 == 0 ? in_->Word() : payload;
    uint64_t slot = kSlots + kSlotBytes * (in_->Byte() % 32);
    Put(slot, &header, sizeof header);
    AddChain(1, slot, sizeof header + payload, in_->Byte());
  }

  void Offer() {
    uint64_t slot = kSlots + kSlotBytes * (in_->Byte() % 32);
    AddChain(0, slot, in_->Interesting({kSlotBytes, 44, 45, 43, 0, 1000}), in_->Byte());
  }

  void HostConnects() {
    auto state = std::make_shared<StreamState>();
    state->id = device_->NewId();
    asked_.push_back(state);
    device_->Connect(state->id, std::make_unique<FakeStream>(state), in_->Byte() % 4, now_us_);
  }

  std::shared_ptr<StreamState> Stream() {
    uint8_t which = in_->Byte();
    if (which % 2 == 0 || asked_.empty()) return host_.last;
    return asked_[which / 2 % asked_.size()];
  }

  void HostSends() {
    std::shared_ptr<StreamState> state = Stream();
    if (state == nullptr) return;
    state->incoming.append(in_->Short() % 5000, 'h');
    uint8_t how = in_->Byte();
    state->incoming_ended = how % 4 == 0;
    if (how % 8 == 1) {
      device_->OnHostGone(state->id);
    } else {
      device_->OnReadable(state->id);
    }
  }

  void HostReads() {
    std::shared_ptr<StreamState> state = Stream();
    if (state == nullptr) return;
    state->outgoing.clear();
    state->outgoing_room = in_->Interesting({0, 1, 1000, UINT32_MAX});
    state->writes_break = in_->Byte() % 8 == 0;
    device_->OnWritable(state->id, now_us_);
  }

  Input* in_;
  std::unique_ptr<uint8_t[]> low_ = std::make_unique<uint8_t[]>(kRegionBytes);
  std::unique_ptr<uint8_t[]> high_ = std::make_unique<uint8_t[]>(kRegionBytes);
  std::unique_ptr<uint8_t[]> log_ = std::make_unique<uint8_t[]>(2 * kRegionBytes / 4096 / 8);
  Limits limits_;
  FakeHost host_;
  std::vector<std::shared_ptr<StreamState>> asked_;
  std::unique_ptr<VsockDevice> device_;
  bool event_index_ = true;
  uint16_t available_[2] = {0, 0};
  uint64_t now_us_ = 1;
};

}  // namespace
}  // namespace still::vsock

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  still::vsock::Input input(data, size);
  still::vsock::Guest guest(&input);
  constexpr int kMaxSteps = 400;
  for (int step = 0; step < kMaxSteps && !input.empty(); ++step) guest.Step();
  return 0;
}
