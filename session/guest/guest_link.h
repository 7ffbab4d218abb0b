// GuestLink: keeps the connection to a guest's agent. The agent dials; this accepts, says Init, and offers the newest
// connection to whoever asks. When the agent dials again (it was restarted, the VM was restored), the new connection
// takes the place of the old one. Thread-safe.
#pragma once

#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "session/guest/guest_client.h"
#include "session/vsock/vsock_host.h"

namespace still::session {

class GuestLink {
 public:
  // Starts to accept at once.
  GuestLink(std::unique_ptr<VsockHost> vsock, GuestHello hello);
  ~GuestLink();
  GuestLink(const GuestLink&) = delete;
  GuestLink& operator=(const GuestLink&) = delete;

  // The agent's newest connection that answers a Ping, waiting for one up to `timeout`. Shared by the link and the
  // requests in flight: the connection closes with its last holder. UNAVAILABLE: no agent within the time.
  absl::StatusOr<std::shared_ptr<GuestClient>> Client(absl::Duration timeout);
  // Accepts no more; waiting and later Client() calls fail. Clients that are held stay usable. Idempotent.
  void Shutdown();
  // The guest was reset: its agent is gone, and with it what it had frozen. Ends its connection, so that nobody waits for
  // an answer. Returns at once.
  void GuestRestarted();
  // How often; whoever keeps a promise of the agent compares it.
  uint64_t restarts() const;
  VsockHost& vsock() { return *vsock_; }
  // Whether an agent has ever said Init; says nothing about now.
  bool ever_connected() const;
  // Of the agent that said Init last; empty: none did.
  std::string agent_version() const;
  // What the guest's kernel told the time by when its agent said Init; empty: not known.
  std::string clock_source() const;

 private:
  void AcceptLoop();

  const std::unique_ptr<VsockHost> vsock_;
  const GuestHello hello_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<GuestClient> client_ ABSL_GUARDED_BY(mutex_);
  uint64_t connections_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t restarts_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string agent_version_ ABSL_GUARDED_BY(mutex_);
  std::string clock_source_ ABSL_GUARDED_BY(mutex_);
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace still::session
