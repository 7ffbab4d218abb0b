// ProcessHost: runs as processes of their own ("workers": stilld --execute ID), so that whatever happens to the one that
// started them, a capture goes on to its end and writes it into its row.
//
// A worker holds a lock (flock(2)) on <state>/runs/<id> as long as it lives: that is how it is recognised by a later
// process, without trusting process ids that are used again. Not thread-safe.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/process.h"
#include "schedule/scheduler.h"
#include "schedule/session_watch.h"
#include "session/control/session_registry.h"
#include "store/repository.h"

namespace still::schedule {

struct ProcessHostOptions {
  std::string state;                 // The state directory.
  std::vector<std::string> command;  // A worker, but for the id of its run and its passphrase, which come last.
  std::string passphrase;            // It gets it in a descriptor; empty: it needs none.
};

class ProcessHost final : public Host {
 public:
  // Without a repository: how old snapshots are is UNAVAILABLE until there is one.
  ProcessHost(HostIdentity here, ProcessHostOptions options)
      : here_(std::move(here)), options_(std::move(options)), registry_(options_.state), watch_(registry_) {}
  ProcessHost(store::Repository& repository, HostIdentity here, ProcessHostOptions options)
      : ProcessHost(std::move(here), std::move(options)) {
    UseRepository(repository);
  }
  // It must outlive the host, or be replaced before it ends.
  void UseRepository(store::Repository& repository) { repository_ = &repository; }
  // Workers live on.
  ~ProcessHost() override;

  absl::StatusOr<std::vector<SessionState>> Sessions() override;
  absl::StatusOr<std::map<std::string, Newest>> NewestGood(const std::set<std::string>& sessions) override;
  absl::Status Start(const Schedule& schedule, const store::RunRow& run) override;
  bool Alive(int64_t run) override;
  void Stop(int64_t run) override;

  // Lets sessions go on that are paused or frozen though nobody takes a snapshot of them. Gives how many. What cannot be
  // reached, or healed, is logged.
  absl::StatusOr<int> HealSessions();
  // How the sessions are, of which only they themselves know.
  SessionWatch& watch() { return watch_; }
  // Forgets the locks of workers that are gone.
  absl::Status SweepLocks();

 private:
  std::string LockPath(int64_t run) const;
  std::string Directory() const;
  // True when there was something to heal.
  absl::StatusOr<bool> HealSession(const std::string& name, sessionpb::DescribeResponse state);

  store::Repository* repository_ = nullptr;
  const HostIdentity here_;
  const ProcessHostOptions options_;
  const session::SessionRegistry registry_;
  SessionWatch watch_;
  std::map<int64_t, ChildProcess> children_;
};

}  // namespace still::schedule
