// Session: a booted VM and everything that must outlive it being started: its hypervisor process, its vsock listener,
// the connection to its agent, the leases of a capture.
//
//   STILL_ASSIGN_OR_RETURN(std::unique_ptr<Session> session, Session::Start(config, {}));
//   SessionEnd end = session->Wait();
//
// Thread-safe. What drives the VM runs on the session's own serial executor, one operation after the other; Stop() does
// not queue, because it must work when an operation hangs. Destroying a session ends its VM.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/serial_executor.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"
#include "session/capture/critical_window.h"
#include "session/disk_server.h"
#include "session/guest/guest_link.h"
#include "session/guest/guest_thaw.h"
#include "session/hypervisor/hypervisor.h"
#include "session/vm_keeper.h"
#include "session/vsock/vsock_host.h"

namespace still::session {

using SessionEnd = sessionpb::SessionEnd;

// A request to the guest's agent. Exec is the only action there is; desktop actions will be declared when they work.
struct Action {
  guestpb::ExecRequest exec;
};
struct ResponseHeader {
  guestpb::ExecExit exit;
  std::string stderr_text;  // Up to 1 MiB.
  bool truncated = false;   // The guest wrote more than we keep.
};
struct Response {
  ResponseHeader header;
  std::string payload;  // Exec: standard output, up to 16 MiB.
};

// Runs actions from any thread, also after the Session that made it is gone (then UNAVAILABLE). Cheap to copy: it
// shares the agent connection with the Session, which closes with its last holder.
class SessionClient {
 public:
  explicit SessionClient(std::shared_ptr<GuestLink> link) : link_(std::move(link)) {}
  absl::StatusOr<Response> Request(const Action& action) const;

 private:
  std::shared_ptr<GuestLink> link_;  // Null: vsock is off.
};

struct StartOptions {
  std::string directory;  // The session's: exists, mode 0700. Sockets and logs are made in it.
  OwnedFd ram;            // With config.restore: the memory image, writable, consumed.
  OwnedFd disk_secret;    // With config.disk_server: the passphrase it needs, or invalid.
  Clock* clock = &Clock::Real();
  // The hypervisor; empty: chosen by config.machine.hypervisor.
  std::function<absl::StatusOr<std::unique_ptr<Vm>>(const VmConfig&)> start_vm;
};

class Session {
 public:
  // Returns once the VM has been asked to start; the boot goes on. A restored VM is left paused: see
  // restore_launch.h.
  // INVALID_ARGUMENT for a configuration that can never work; other errors name what is missing.
  static absl::StatusOr<std::unique_ptr<Session>> Start(const sessionpb::SessionConfig& config, StartOptions options);
  ~Session();

  const sessionpb::SessionConfig& config() const { return config_; }
  // Resolved once, also for an automatic port; nothing when vsock is off.
  std::optional<uint32_t> vsock_port() const;
  // The kernel command line as assembled; empty when the firmware boots a disk.
  const std::string& cmdline() const { return cmdline_; }

  // Blocks until the session has ended and says how: the first end that was recorded, for ever, to every caller.
  SessionEnd Wait();
  std::optional<SessionEnd> WaitFor(absl::Duration timeout);
  // Ends the VM and unblocks Wait. With a grace period the guest is asked to power off first. No-op when it has ended.
  void Stop(absl::Duration grace = absl::ZeroDuration());
  // Ends it at once, as one that could not be started.
  void Fail(const absl::Status& why);
  // Stop() from anywhere, also when the Session is gone by then.
  std::function<void(absl::Duration grace)> stop_handle() const;

  absl::StatusOr<Response> Request(const Action& action) const { return client().Request(action); }
  SessionClient client() const { return SessionClient(link_); }

  // Waits until the agent answers. FAILED_PRECONDITION without vsock; ABORTED when the session ends first, or when the
  // guest is reset again and again.
  absl::Status WaitForAgent(absl::Duration timeout);
  // What to tell whoever waited for the guest; nullopt: it lives.
  std::optional<absl::Status> EndedError();
  // Copies what lazily restored disks still lack, in the background. No-op without such disks.
  void Hydrate(uint64_t bytes_per_second);

  // For the launch of a restored session, for its description, and for captures. All of it stays valid as long as the
  // session.
  Vm& vm() { return *vm_; }
  GuestLink* link() const { return link_.get(); }  // Null: vsock is off.
  GuestThaw& guest_thaw() { return *guest_thaw_; }
  VmKeeper& keeper() { return *keeper_; }
  SerialExecutor& executor() { return executor_; }
  // As a snapshot of this moment would have to remember it.
  manifestpb::Machine machine() const;
  const std::string& directory() const { return directory_; }
  absl::Time started() const { return started_; }
  // How often the guest has been reset, and when last.
  struct Reboots {
    uint32_t count = 0;
    absl::Time last = absl::InfinitePast();
  };
  Reboots reboots() const;
  absl::Duration Age() const { return clock_.Monotonic() - started_monotonic_; }
  // What the agent of a restored session says that it became; nothing before.
  void SetIdentity(guestpb::AdoptIdentityResponse identity);
  std::optional<guestpb::AdoptIdentityResponse> identity() const;

 private:
  // The end and who waits for it; shared with stop handles, which may outlive the session.
  struct End {
    absl::Mutex mutex;
    std::optional<SessionEnd> end ABSL_GUARDED_BY(mutex);
    bool stop_asked ABSL_GUARDED_BY(mutex) = false;  // What the guest does from now on, it was asked to do.
    // Null when they must no longer be touched.
    Vm* vm ABSL_GUARDED_BY(mutex) = nullptr;
    GuestLink* link ABSL_GUARDED_BY(mutex) = nullptr;
  };

  // Shared with the hypervisor, which may tell of its guest until after our end.
  struct RebootBook {
    absl::Mutex mutex;
    Reboots reboots ABSL_GUARDED_BY(mutex);
  };

  Session(sessionpb::SessionConfig config, StartOptions options);
  absl::Status StartVsock();
  absl::Status StartDiskServer(OwnedFd secret);
  absl::StatusOr<VmConfig> MakeVmConfig(OwnedFd ram);
  // Gives the hypervisor's end of the port; invalid: there is none.
  absl::StatusOr<OwnedFd> OpenQgaPort();
  void FillMachine();
  void WatchExit();
  SessionEnd HowItExited(const ProcessExit& exit) const;
  void WatchTimeLimit();
  // Records an end unless there is one, ends the VM, and whoever waits for its agent.
  static void EndWith(End& end, SessionEnd how);
  // What Stop() does. `link`: null without vsock.
  static void StopWith(End& end, GuestLink* link, Clock& clock, absl::Duration grace);
  static std::optional<SessionEnd> AwaitEnd(End& end, absl::Duration timeout);

  sessionpb::SessionConfig config_;
  const std::string directory_;
  Clock& clock_;
  std::function<absl::StatusOr<std::unique_ptr<Vm>>(const VmConfig&)> start_vm_;
  std::string cmdline_;
  manifestpb::Machine machine_;
  absl::Time started_;
  absl::Duration started_monotonic_;
  SerialExecutor executor_{"session"};
  std::unique_ptr<VsockHost> vsock_;
  std::shared_ptr<GuestLink> link_;          // Shared with SessionClients.
  std::optional<GuestThaw> guest_thaw_;      // Once the VM is being started.
  std::unique_ptr<DiskServer> disk_server_;  // Until keeper_ has it.
  std::unique_ptr<Vm> vm_;
  mutable absl::Mutex identity_mutex_;
  std::optional<guestpb::AdoptIdentityResponse> identity_ ABSL_GUARDED_BY(identity_mutex_);
  const std::shared_ptr<RebootBook> reboot_book_ = std::make_shared<RebootBook>();
  std::unique_ptr<VmKeeper> keeper_;  // Null until the VM is there.
  std::shared_ptr<End> end_ = std::make_shared<End>();
  std::thread exit_watcher_;
  std::thread time_limit_watcher_;
};

}  // namespace still::session
