// GuestLink: keeps the connection to a guest's agent. The agent dials; this accepts, says Init, and offers the connection
// to whoever asks. Thread-safe.
//
// Who is the agent:
//   - only a privileged program of the guest (VsockHost::Accept);
//   - a connected agent stays it for as long as it answers. When another one dials, it is asked first: it takes no time
//     when its connection has ended (it was restarted), and kPingTimeout when it hangs;
//   - a connection that says nothing holds nobody up: each has a thread for its Init, and when there are kMaxHandshakes the
//     oldest is given up.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/log_limiter.h"
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

  static constexpr int kMaxHandshakes = 8;

  // The agent's connection that answers a Ping, waiting for one up to `timeout`. Shared by the link and the
  // requests in flight: the connection closes with its last holder. UNAVAILABLE: no agent within the time;
  // it says why somebody who dialled was turned away.
  absl::StatusOr<std::shared_ptr<GuestClient>> Client(absl::Duration timeout);
  // Accepts no more; waiting and later Client() calls fail. Clients that are held stay usable. Idempotent.
  void Shutdown();
  // Whether Shutdown() was called: no agent answers any more.
  bool ended() const;
  // Asks the agent to power its guest off. One that holds a freeze refuses (FAILED_PRECONDITION) and is asked again, until
  // `timeout` or until `vm_ended`, which waits up to the time that it is given, says that the VM has ended.
  absl::Status PowerOff(absl::Duration timeout, const std::function<bool(absl::Duration)>& vm_ended);
  // The guest was reset: its agent is gone, and with it what it had frozen. Ends its connection, so that nobody waits for
  // an answer. Returns at once.
  void GuestRestarted();
  // How often; whoever keeps a promise of the agent compares it.
  uint64_t restarts() const;
  VsockHost& vsock() { return *vsock_; }
  // Whether an agent has ever said Init; says nothing about now.
  bool ever_connected() const;
  // Why somebody who dialled since the agent did last was turned away; empty: nobody was.
  std::string refused() const;
  // Of the agent that said Init last; empty: none did.
  std::string agent_version() const;
  // What the guest's kernel told the time by when its agent said Init; empty: not known.
  std::string clock_source() const;

 private:
  // A connection whose Init is awaited.
  struct Handshake {
    OwnedFd connection;  // A duplicate, to end it before its time.
    std::thread thread;
    bool given_up = false;
    bool done = false;  // The thread touches nothing of ours any more.
  };

  void AcceptLoop();
  // Logs it as often as `lines` admits: each reason has lines of its own, so that none hides another.
  void Refused(const absl::Status& why, LogLimiter& lines);
  void BeginHandshake(OwnedFd connection);
  // Takes finished ones away, and with `all` ends and awaits the others.
  void ReapHandshakes(bool all);
  void Greet(OwnedFd connection, std::list<Handshake>::iterator handshake);
  void Offer(std::shared_ptr<GuestClient> client);

  const std::unique_ptr<VsockHost> vsock_;
  const GuestHello hello_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<GuestClient> client_ ABSL_GUARDED_BY(mutex_);
  uint64_t connections_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t restarts_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string agent_version_ ABSL_GUARDED_BY(mutex_);
  std::string clock_source_ ABSL_GUARDED_BY(mutex_);
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::string refused_ ABSL_GUARDED_BY(mutex_);
  std::list<Handshake> handshakes_ ABSL_GUARDED_BY(mutex_);  // The oldest first.
  absl::Mutex offer_mutex_;  // One newcomer after the other, while the present agent is asked.
  LogLimiter unprivileged_lines_;
  LogLimiter second_agent_lines_;
  LogLimiter handshake_lines_;
  std::thread thread_;
};

}  // namespace still::session
