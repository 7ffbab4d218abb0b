// GuestClient: the `Guest` service (proto/guest.proto) over one connection that the guest's agent made.
//
// The guest is hostile: every call has a deadline, every answer is bounded and cleaned (guest_words.h) before a caller
// sees it, and what it says is data, never a path or a command. Thread-safe. All calls block. Errors: UNAVAILABLE when the connection is gone (wait for the agent to dial
// again), DEADLINE_EXCEEDED, or what the agent answered.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/server_context.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/guest.grpc.pb.h"
#include "session/guest/guest_words.h"

namespace still::session {

struct GuestHello {
  std::string session;     // Our name for it.
  std::string restore_id;  // Empty after a plain boot.
};

class GuestClient {
 public:
  // Takes the connection and calls Init. `timeout` covers both.
  static absl::StatusOr<std::unique_ptr<GuestClient>> Connect(OwnedFd connection, const GuestHello& hello,
                                                              absl::Duration timeout);

  const guestpb::InitResponse& init() const { return init_; }

  absl::Status Ping(absl::Duration timeout);
  absl::Status Shutdown(absl::Duration timeout);
  // `cancelled` is asked every few milliseconds; when it is true the call ends with CANCELLED.
  absl::StatusOr<guestpb::QuiesceResponse> Quiesce(const guestpb::QuiesceRequest& request, absl::Duration timeout,
                                                   const std::function<bool()>& cancelled);
  absl::StatusOr<guestpb::RenewQuiesceResponse> RenewQuiesce(const std::string& token, absl::Duration timeout);
  absl::StatusOr<guestpb::ThawResponse> Thaw(const guestpb::ThawRequest& request, absl::Duration timeout);
  absl::StatusOr<guestpb::QuiesceStatusResponse> QuiesceStatus(absl::Duration timeout);
  // Takes minutes on a slow guest: `watch` is called about every second meanwhile, and may call the agent itself; an error
  // of its cancels the call and is returned.
  absl::StatusOr<guestpb::AdoptIdentityResponse> AdoptIdentity(const guestpb::AdoptIdentityRequest& request,
                                                               absl::Duration timeout,
                                                               const std::function<absl::Status()>& watch);

  // `sink` gets each part as it comes and returns false to cancel (the program in the guest is then killed). The
  // returned exit is also passed to it. The time limit of the program is in the request; ours is that plus a margin.
  // `caller`: the call that asked for it, or null. When that is cancelled, or whoever made it is gone, so is this one, also
  // while the program prints nothing.
  using ExecSink = std::function<bool(const guestpb::ExecOutput&)>;
  absl::StatusOr<guestpb::ExecExit> Exec(const guestpb::ExecRequest& request, const ExecSink& sink,
                                         const grpc::ServerContextBase* caller);

  // Ends the connection: what is under way and what comes later fails with UNAVAILABLE. Returns at once.
  void Disconnect();

 private:
  struct AskOptions {
    absl::Duration timeout;
    size_t text_limit = kMaxGuestText;
    // Called now and then while the answer is awaited; an error of its cancels the call and is returned.
    std::function<absl::Status()> watch;
    absl::Duration watch_interval;
  };

  GuestClient(const std::shared_ptr<grpc::Channel>& channel, OwnedFd connection);
  // Every call but Exec goes through this: the generated stub would parse the guest's bytes before they are looked at.
  absl::Status Ask(const char* call, const google::protobuf::Message& request, google::protobuf::Message& answer,
                   const AskOptions& options);

  std::unique_ptr<guestpb::Guest::Stub> stub_;
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer> generic_stub_;
  const OwnedFd connection_;  // A duplicate of the channel's, to end it.
  guestpb::InitResponse init_;
};

}  // namespace still::session
