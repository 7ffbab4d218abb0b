#include "session/guest/guest_client.h"

#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/byte_buffer.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "base/nonblocking.h"
#include "proto/grpc_status.h"
#include "session/guest/guest_words.h"

namespace still::session {
namespace {

// gRPC drops what is longer with RESOURCE_EXHAUSTED. A little more than ReadAnswer takes, so that its error is told.
constexpr int kMaxMessageBytes = kMaxGuestAnswer + (64 << 10);
constexpr char kService[] = "/stillpoint.guest.v1.Guest/";
// What Exec may take beyond the program's own time limit: starting it, killing it, the way there and back.
constexpr absl::Duration kExecMargin = absl::Seconds(15);
constexpr uint32_t kDefaultExecTimeoutMs = 60'000;
constexpr absl::Duration kCancelPoll = absl::Milliseconds(20);
constexpr absl::Duration kWatchInterval = absl::Seconds(1);

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
}

// The text may be the guest's.
absl::Status Result(const grpc::Status& status, absl::string_view call) {
  const absl::Status result = FromGrpc(status);
  return Annotate(absl::Status(result.code(), CleanWords(result.message())), absl::StrCat("guest agent, ", call));
}

absl::StatusOr<std::string> Bytes(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  STILL_RETURN_IF_ERROR(FromGrpc(buffer.DumpToSingleSlice(&slice)));
  return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
}

}  // namespace

GuestClient::GuestClient(const std::shared_ptr<grpc::Channel>& channel, OwnedFd connection)
    : stub_(guestpb::Guest::NewStub(channel)), generic_stub_(channel), connection_(std::move(connection)) {}

void GuestClient::Disconnect() { ::shutdown(connection_.get(), SHUT_RDWR); }

absl::Status GuestClient::Ask(const char* call, const google::protobuf::Message& request,
                              google::protobuf::Message& answer, const AskOptions& options) {
  grpc::ClientContext context;
  SetDeadline(context, options.timeout);
  const std::string text = request.SerializeAsString();
  const grpc::Slice slice(text);
  const grpc::ByteBuffer asked(&slice, 1);
  grpc::ByteBuffer answered;
  absl::Notification done;
  grpc::Status status;
  generic_stub_.UnaryCall(&context, absl::StrCat(kService, call), grpc::StubOptions(), &asked, &answered,
                          [&](grpc::Status result) {
                            status = std::move(result);
                            done.Notify();
                          });
  absl::Status watched;
  while (options.watch && watched.ok() && !done.WaitForNotificationWithTimeout(options.watch_interval)) {
    watched = options.watch();
    if (!watched.ok()) context.TryCancel();
  }
  done.WaitForNotification();  // The context has a deadline.
  STILL_RETURN_IF_ERROR(watched);
  STILL_RETURN_IF_ERROR(Result(status, call));
  STILL_ASSIGN_OR_RETURN(std::string bytes, Bytes(answered));
  return Annotate(ReadAnswer(bytes, answer, options.text_limit), absl::StrCat("guest agent, ", call));
}

absl::StatusOr<std::unique_ptr<GuestClient>> GuestClient::Connect(OwnedFd connection, const GuestHello& hello,
                                                                  absl::Duration timeout) {
  // gRPC wants a non-blocking descriptor and owns it from here on.
  STILL_RETURN_IF_ERROR(SetNonBlocking(connection.get()));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  // A channel made from a descriptor is bound to it, but channels with equal arguments may share subchannels: not ours.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  STILL_ASSIGN_OR_RETURN(OwnedFd duplicate, connection.Duplicate());
  auto client = absl::WrapUnique(new GuestClient(
      grpc::CreateCustomInsecureChannelFromFd("guest", connection.Release(), arguments), std::move(duplicate)));
  guestpb::InitRequest request;
  request.set_session(hello.session);
  request.set_restore_id(hello.restore_id);
  STILL_RETURN_IF_ERROR(client->Ask("Init", request, client->init_, {.timeout = timeout, .text_limit = kMaxGuestName}));
  return client;
}

absl::Status GuestClient::Ping(absl::Duration timeout) {
  guestpb::PingResponse response;
  return Ask("Ping", guestpb::PingRequest(), response, {.timeout = timeout});
}

absl::Status GuestClient::Shutdown(absl::Duration timeout) {
  guestpb::ShutdownResponse response;
  return Ask("Shutdown", guestpb::ShutdownRequest(), response, {.timeout = timeout});
}

absl::StatusOr<guestpb::QuiesceResponse> GuestClient::Quiesce(const guestpb::QuiesceRequest& request,
                                                              absl::Duration timeout,
                                                              const std::function<bool()>& cancelled) {
  auto watch = [&cancelled] { return cancelled() ? absl::CancelledError("cancelled") : absl::OkStatus(); };
  guestpb::QuiesceResponse response;
  STILL_RETURN_IF_ERROR(
      Ask("Quiesce", request, response, {.timeout = timeout, .watch = watch, .watch_interval = kCancelPoll}));
  return response;
}

absl::StatusOr<guestpb::RenewQuiesceResponse> GuestClient::RenewQuiesce(const std::string& token,
                                                                        absl::Duration timeout) {
  guestpb::RenewQuiesceRequest request;
  request.set_token(token);
  guestpb::RenewQuiesceResponse response;
  STILL_RETURN_IF_ERROR(Ask("RenewQuiesce", request, response, {.timeout = timeout}));
  return response;
}

absl::StatusOr<guestpb::ThawResponse> GuestClient::Thaw(const guestpb::ThawRequest& request, absl::Duration timeout) {
  guestpb::ThawResponse response;
  STILL_RETURN_IF_ERROR(Ask("Thaw", request, response, {.timeout = timeout}));
  return response;
}

absl::StatusOr<guestpb::QuiesceStatusResponse> GuestClient::QuiesceStatus(absl::Duration timeout) {
  guestpb::QuiesceStatusResponse response;
  STILL_RETURN_IF_ERROR(Ask("QuiesceStatus", guestpb::QuiesceStatusRequest(), response, {.timeout = timeout}));
  return response;
}

absl::StatusOr<guestpb::AdoptIdentityResponse> GuestClient::AdoptIdentity(const guestpb::AdoptIdentityRequest& request,
                                                                          absl::Duration timeout,
                                                                          const std::function<absl::Status()>& watch) {
  guestpb::AdoptIdentityResponse response;
  STILL_RETURN_IF_ERROR(
      Ask("AdoptIdentity", request, response, {.timeout = timeout, .watch = watch, .watch_interval = kWatchInterval}));
  return response;
}

absl::StatusOr<guestpb::ExecExit> GuestClient::Exec(const guestpb::ExecRequest& request, const ExecSink& sink,
                                                    const grpc::ServerContextBase* caller) {
  // gRPC cancels it with the caller's: nobody here could, who waits for the next part.
  const std::unique_ptr<grpc::ClientContext> context =
      caller == nullptr ? std::make_unique<grpc::ClientContext>() : grpc::ClientContext::FromServerContext(*caller);
  uint32_t timeout_ms = request.timeout_ms() != 0 ? request.timeout_ms() : kDefaultExecTimeoutMs;
  SetDeadline(*context, absl::Milliseconds(timeout_ms) + kExecMargin);
  std::unique_ptr<grpc::ClientReader<guestpb::ExecOutput>> reader = stub_->Exec(context.get(), request);
  guestpb::ExecOutput output;
  guestpb::ExecExit exit;
  bool ended = false;
  while (reader->Read(&output)) {
    if (output.has_exit()) {
      exit = output.exit();
      ended = true;
    }
    if (!sink(output)) context->TryCancel();
  }
  STILL_RETURN_IF_ERROR(Result(reader->Finish(), "Exec"));
  if (!ended) return absl::UnavailableError("guest agent, Exec: the stream ended without an exit status");
  return exit;
}

}  // namespace still::session
