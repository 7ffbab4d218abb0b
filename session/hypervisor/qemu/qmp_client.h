// QmpClient: QEMU's machine protocol (QMP; qemu docs/interop/qmp-spec.txt) on one connected UNIX socket.
//
//   STILL_ASSIGN_OR_RETURN(auto qmp, QmpClient::Connect(std::move(socket), {}));
//   QmpSubscription resumed = qmp->Subscribe({"RESUME"});        // before the command that causes it
//   STILL_RETURN_IF_ERROR(qmp->Run("cont", {}, absl::Seconds(5)));
//   STILL_ASSIGN_OR_RETURN(QmpEvent event, resumed.Next(absl::Seconds(5)));
//
// Thread-safe: any thread may execute commands and wait for events; one thread of its own reads the socket. Commands
// of several threads are answered in the order in which they were sent. It knows nothing of what the commands mean.
//
// What comes from the socket is bounded: a line by kMaxLineBytes, a subscription by kMaxQueuedEvents. Once the socket
// is lost, every call, waiting or new, returns UNAVAILABLE.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace still::session {

struct QmpEvent {
  std::string name;
  nlohmann::json data;  // An object, empty when the event has none.
  absl::Time time;      // QEMU's own clock when it happened, microseconds.
};

// Reading answers without exceptions: a member of an object, null when there is none (or no object); a text member, empty
// when there is none; a number, 0 when there is none.
const nlohmann::json& Member(const nlohmann::json& object, const char* key);
std::string TextAt(const nlohmann::json& object, const char* key);
uint64_t NumberAt(const nlohmann::json& object, const char* key);

// The events of some names since the subscription was made, in order. Move-only; may outlive the client.
class QmpSubscription {
 public:
  QmpSubscription(QmpSubscription&&) = default;
  QmpSubscription& operator=(QmpSubscription&&) = default;

  // The next event; DEADLINE_EXCEEDED, or UNAVAILABLE once the socket is lost and everything before has been given.
  absl::StatusOr<QmpEvent> Next(absl::Duration timeout);

 private:
  friend class QmpClient;
  struct Queue;
  explicit QmpSubscription(std::shared_ptr<Queue> queue) : queue_(std::move(queue)) {}
  std::shared_ptr<Queue> queue_;  // Shared with the client's reader thread.
};

class QmpClient {
 public:
  // query-qmp-schema, the longest answer there is, takes 200 KB in QEMU 7.2; we never ask for it.
  static constexpr size_t kMaxLineBytes = 4u << 20;
  // An event that finds a queue of this length is dropped: a guest that floods events must not fill our memory.
  static constexpr size_t kMaxQueuedEvents = 256;

  struct Options {
    absl::Duration handshake_deadline = absl::Seconds(60);
    // Called in the reader thread for every event, before subscribers see it. Must not block or call the client.
    std::function<void(const QmpEvent&)> on_event;
  };
  // Reads the greeting and leaves the negotiation mode. UNAVAILABLE when the socket closes first.
  static absl::StatusOr<std::unique_ptr<QmpClient>> Connect(OwnedFd socket, Options options);
  ~QmpClient();

  // The command's "return". An error that QEMU reports is FAILED_PRECONDITION with QEMU's text (NOT_FOUND for class
  // DeviceNotFound, UNIMPLEMENTED for CommandNotFound); DEADLINE_EXCEEDED: QEMU may still execute it later, its answer
  // is dropped.
  absl::StatusOr<nlohmann::json> Execute(absl::string_view command, const nlohmann::json& arguments,
                                         absl::Duration deadline);
  // The same, without the answer.
  absl::Status Run(absl::string_view command, const nlohmann::json& arguments, absl::Duration deadline);
  // The same, with a descriptor passed along (getfd, add-fd). `fd` is only borrowed.
  absl::Status RunWithFd(absl::string_view command, const nlohmann::json& arguments, int fd, absl::Duration deadline);

  // Sends the command and waits for nothing; its answer is dropped.
  void Post(absl::string_view command);

  QmpSubscription Subscribe(std::vector<std::string> event_names);
  // False once the socket is lost.
  bool connected() const;

 private:
  struct Call {
    bool done = false;
    absl::StatusOr<nlohmann::json> result = nlohmann::json::object();
  };

  QmpClient(OwnedFd socket, Options options) : socket_(std::move(socket)), options_(std::move(options)) {}

  absl::StatusOr<nlohmann::json> Send(absl::string_view command, const nlohmann::json& arguments, int fd,
                                      absl::Duration deadline);
  // Returns the id under which `call` (null: nobody) waits for the answer.
  absl::StatusOr<uint64_t> SendLine(nlohmann::json message, int fd, const std::shared_ptr<Call>& call);
  void ReadLoop();
  absl::Status HandleLine(absl::string_view line);
  void HandleEvent(const nlohmann::json& message);
  void HandleAnswer(const nlohmann::json& message);
  void Lose(const absl::Status& why);

  const OwnedFd socket_;
  const Options options_;
  absl::Mutex send_mutex_;  // Held while one line is written, so that lines do not mix. Taken before mutex_.
  mutable absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, std::shared_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::weak_ptr<QmpSubscription::Queue>> subscriptions_ ABSL_GUARDED_BY(mutex_);
  bool greeted_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  std::thread reader_;
};

}  // namespace still::session
