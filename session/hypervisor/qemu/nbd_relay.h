// NbdRelay: stands between QEMU's NBD server and whoever reads pinned disks, so that QEMU never has a client that hangs.
//
// Why it must exist: QEMU 7.2 cannot get rid of a client that has stopped reading in the middle of an answer. Of a full
// UNIX socket that was shut down poll(2) reports only the hang-up, which a waiting writer is not woken by, so neither
// block-export-del nor nbd-server-stop ends it. The guest's writes do not wait for such a client, but whatever drains
// block nodes does, with QEMU's global lock held: `stop`, moving the guest's device off the filter, a reset of the disk
// controller by the guest. So what a client leaves lying for kPatience is taken off QEMU and held for it: a drain waits for
// the reads that are under way and for no client. A *closed* peer does wake that writer, and the peer is ours.
//
// Data is moved with splice(2) and only copied when it has to be held; what is held for a client is what it has asked for
// and not taken, and bounded. One thread; the public calls are thread-safe.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/pipe.h"
#include "base/status.h"
#include "base/waker.h"

namespace still::session {

class NbdRelay {
 public:
  // As many clients at once; more wait to be accepted.
  static constexpr int kMaxClients = 64;
  // A client that has asked for more and takes none of it is cut off. Ours asks for 8 MiB at a time.
  static constexpr size_t kMaxHeldBytes = 32 << 20;

  struct Options {
    std::string path;         // Where clients connect; made by Start, removed by the destructor.
    std::string server_path;  // Where QEMU listens, with a backlog of at least kMaxClients.
    // A client that takes nothing for so long, while there is something to take, is cut off.
    absl::Duration stall_limit = absl::Seconds(60);
  };

  static absl::StatusOr<std::unique_ptr<NbdRelay>> Start(Options options);
  // Cuts everybody off: QEMU has no client of ours any more when this returns.
  ~NbdRelay();

  // DEADLINE_EXCEEDED once a client has been cut off because it stalled, RESOURCE_EXHAUSTED for what it had asked for.
  absl::Status status() const;

 private:
  // One direction of a connection.
  struct Flow {
    int from = -1;
    int to = -1;
    Pipe pipe;
    size_t in_pipe = 0;
    std::string held;           // What comes behind the pipe.
    size_t held_begin = 0;      // The part of it before this has been taken.
    bool ended = false;         // `from` gives no more.
    absl::Duration moved_at;    // When `to` last took something, or there was nothing to take.
    absl::Duration emptied_at;  // When there last was nothing to take.

    bool empty() const { return in_pipe == 0 && held.empty(); }
  };
  struct Connection {
    OwnedFd client;
    OwnedFd server;
    Flow requests;
    Flow answers;
  };

  NbdRelay(Options options, Waker stop) : options_(std::move(options)), stop_(std::move(stop)) {}
  void Relay();
  // Waits until something can be done, and at most until the next client may have stalled.
  void Await() const;
  void AcceptOne();
  absl::StatusOr<std::unique_ptr<Connection>> Connect(OwnedFd client) const;
  // False when the connection is over.
  bool Advance(Connection& connection);
  // False when the taker is gone.
  static bool Move(Flow& flow);
  static bool MoveHeld(Flow& flow);
  // Takes from the giver what the taker is too slow for.
  static void Hold(Flow& flow);
  // Whether the client is to be cut off; status() then says why.
  bool Hangs(const Flow& answers);

  const Options options_;
  OwnedFd listening_;
  const Waker stop_;                                      // The relay is to end.
  std::vector<std::unique_ptr<Connection>> connections_;  // Relay thread only.
  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace still::session
