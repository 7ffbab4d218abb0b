// The host's side of the device, in memory: streams whose both ends a test holds.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "session/vsock/device/device.h"
#include "session/vsock/device/host_side.h"

namespace still::vsock {

// What a test sees and sets of a stream; outlives it.
struct StreamState {
  ConnectionId id = 0;
  std::string incoming;  // For the guest.
  bool incoming_ended = false;
  std::string outgoing;  // From the guest.
  size_t outgoing_room = SIZE_MAX;
  bool writes_break = false;
  bool accepted = false;
  uint32_t host_port = 0;
  bool end_of_guest_data = false;
  bool guest_stopped_reading = false;
  bool closed = false;
};

class FakeStream : public HostStream {
 public:
  explicit FakeStream(std::shared_ptr<StreamState> state) : state_(std::move(state)) {}
  ~FakeStream() override { state_->closed = true; }

  IoResult Read(const iovec* parts, int count) override {
    if (state_->incoming.empty()) {
      return {state_->incoming_ended ? IoResult::kEnd : IoResult::kWouldBlock, 0};
    }
    size_t done = 0;
    for (int i = 0; i < count && done < state_->incoming.size(); ++i) {
      size_t size = std::min(parts[i].iov_len, state_->incoming.size() - done);
      std::memcpy(parts[i].iov_base, state_->incoming.data() + done, size);
      done += size;
    }
    state_->incoming.erase(0, done);
    return {IoResult::kDone, done};
  }

  IoResult Write(const iovec* parts, int count) override {
    if (state_->writes_break) return {IoResult::kBroken, 0};
    size_t done = 0;
    for (int i = 0; i < count && state_->outgoing_room > 0; ++i) {
      size_t size = std::min(parts[i].iov_len, state_->outgoing_room);
      state_->outgoing.append(static_cast<const char*>(parts[i].iov_base), size);
      if (state_->outgoing_room != SIZE_MAX) state_->outgoing_room -= size;
      done += size;
    }
    if (done == 0) return {IoResult::kWouldBlock, 0};
    return {IoResult::kDone, done};
  }

  bool Accepted(uint32_t host_port) override {
    state_->accepted = true;
    state_->host_port = host_port;
    return true;
  }
  void EndOfGuestData() override { state_->end_of_guest_data = true; }
  void GuestStoppedReading() override { state_->guest_stopped_reading = true; }

 private:
  std::shared_ptr<StreamState> state_;
};

class FakeHost : public HostSide {
 public:
  std::unique_ptr<HostStream> Connect(const GuestDial& dial, ConnectionId id) override {
    if (listening.count(dial.host_port) == 0) return nullptr;
    auto state = std::make_shared<StreamState>();
    state->id = id;
    last = state;
    ++connects;
    return std::make_unique<FakeStream>(state);
  }

  std::set<uint32_t> listening;
  std::shared_ptr<StreamState> last;
  int connects = 0;
};

}  // namespace still::vsock
