#include "session/guest/guest_client.h"

#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/memory/memory.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "base/nonblocking.h"
#include "proto/grpc_status.h"

namespace still::session {
namespace {

// An answer of the agent: the largest is Quiesce over a guest with thousands of mounts.
constexpr int kMaxAnswerBytes = 4 << 20;
// What Exec may take beyond the program's own time limit: starting it, killing it, the way there and back.
constexpr absl::Duration kExecMargin = absl::Seconds(15);
constexpr uint32_t kDefaultExecTimeoutMs = 60'000;
constexpr absl::Duration kCancelPoll = absl::Milliseconds(20);
constexpr absl::Duration kWatchInterval = absl::Seconds(1);

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
}

absl::Status Result(const grpc::Status& status, absl::string_view call) {
  return Annotate(FromGrpc(status), absl::StrCat("guest agent, ", call));
}

}  // namespace

GuestClient::GuestClient(const std::shared_ptr<grpc::Channel>& channel, OwnedFd connection)
    : stub_(guestpb::Guest::NewStub(channel)), connection_(std::move(connection)) {}

void GuestClient::Disconnect() { ::shutdown(connection_.get(), SHUT_RDWR); }

absl::StatusOr<std::unique_ptr<GuestClient>> GuestClient::Connect(OwnedFd connection, const GuestHello& hello,
                                                                  absl::Duration timeout) {
  // gRPC wants a non-blocking descriptor and owns it from here on.
  STILL_RETURN_IF_ERROR(SetNonBlocking(connection.get()));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxAnswerBytes);
  // A channel made from a descriptor is bound to it, but channels with equal arguments may share subchannels: not ours.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  STILL_ASSIGN_OR_RETURN(OwnedFd duplicate, connection.Duplicate());
  auto client = absl::WrapUnique(new GuestClient(
      grpc::CreateCustomInsecureChannelFromFd("guest", connection.Release(), arguments), std::move(duplicate)));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  guestpb::InitRequest request;
  request.set_session(hello.session);
  request.set_restore_id(hello.restore_id);
  STILL_RETURN_IF_ERROR(Result(client->stub_->Init(&context, request, &client->init_), "Init"));
  return client;
}

absl::Status GuestClient::Ping(absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  guestpb::PingResponse response;
  return Result(stub_->Ping(&context, {}, &response), "Ping");
}

absl::Status GuestClient::Shutdown(absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  guestpb::ShutdownResponse response;
  return Result(stub_->Shutdown(&context, {}, &response), "Shutdown");
}

absl::StatusOr<guestpb::QuiesceResponse> GuestClient::Quiesce(const guestpb::QuiesceRequest& request,
                                                              absl::Duration timeout,
                                                              const std::function<bool()>& cancelled) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  absl::Notification ended;
  std::thread watch([&] {
    while (!ended.WaitForNotificationWithTimeout(kCancelPoll)) {
      if (cancelled()) context.TryCancel();
    }
  });
  absl::Cleanup join = [&] {
    ended.Notify();
    watch.join();
  };
  guestpb::QuiesceResponse response;
  STILL_RETURN_IF_ERROR(Result(stub_->Quiesce(&context, request, &response), "Quiesce"));
  return response;
}

absl::StatusOr<guestpb::RenewQuiesceResponse> GuestClient::RenewQuiesce(const std::string& token,
                                                                        absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  guestpb::RenewQuiesceRequest request;
  request.set_token(token);
  guestpb::RenewQuiesceResponse response;
  STILL_RETURN_IF_ERROR(Result(stub_->RenewQuiesce(&context, request, &response), "RenewQuiesce"));
  return response;
}

absl::StatusOr<guestpb::ThawResponse> GuestClient::Thaw(const guestpb::ThawRequest& request, absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  guestpb::ThawResponse response;
  STILL_RETURN_IF_ERROR(Result(stub_->Thaw(&context, request, &response), "Thaw"));
  return response;
}

absl::StatusOr<guestpb::QuiesceStatusResponse> GuestClient::QuiesceStatus(absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  guestpb::QuiesceStatusResponse response;
  STILL_RETURN_IF_ERROR(Result(stub_->QuiesceStatus(&context, {}, &response), "QuiesceStatus"));
  return response;
}

absl::StatusOr<guestpb::AdoptIdentityResponse> GuestClient::AdoptIdentity(const guestpb::AdoptIdentityRequest& request,
                                                                          absl::Duration timeout,
                                                                          const std::function<absl::Status()>& watch) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  guestpb::AdoptIdentityResponse response;
  grpc::Status answer;
  absl::Notification answered;
  stub_->async()->AdoptIdentity(&context, &request, &response, [&](grpc::Status status) {
    answer = std::move(status);
    answered.Notify();
  });
  absl::Status watched;
  while (!answered.WaitForNotificationWithTimeout(kWatchInterval)) {
    watched = watch();
    if (watched.ok()) continue;
    context.TryCancel();
    answered.WaitForNotification();
  }
  STILL_RETURN_IF_ERROR(watched);
  STILL_RETURN_IF_ERROR(Result(answer, "AdoptIdentity"));
  return response;
}

absl::StatusOr<guestpb::ExecExit> GuestClient::Exec(const guestpb::ExecRequest& request, const ExecSink& sink) {
  grpc::ClientContext context;
  uint32_t timeout_ms = request.timeout_ms() != 0 ? request.timeout_ms() : kDefaultExecTimeoutMs;
  SetDeadline(context, absl::Milliseconds(timeout_ms) + kExecMargin);
  std::unique_ptr<grpc::ClientReader<guestpb::ExecOutput>> reader = stub_->Exec(&context, request);
  guestpb::ExecOutput output;
  guestpb::ExecExit exit;
  bool ended = false;
  while (reader->Read(&output)) {
    if (output.has_exit()) {
      exit = output.exit();
      ended = true;
    }
    if (!sink(output)) context.TryCancel();
  }
  STILL_RETURN_IF_ERROR(Result(reader->Finish(), "Exec"));
  if (!ended) return absl::UnavailableError("guest agent, Exec: the stream ended without an exit status");
  return exit;
}

}  // namespace still::session
