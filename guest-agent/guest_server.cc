#include "guest-agent/guest_server.h"

#include <grpcpp/server_posix.h>
#include <sys/socket.h>

#include <chrono>
#include <utility>

#include "guest-agent/connection.h"

namespace still::agent {
namespace {

// Exec's largest request (1 MiB of input, 128 KiB of arguments) and room for the encoding.
constexpr int kMaxReceivedBytes = 2 << 20;
// A peer that answers nothing for this long is gone, whatever its socket says; the agent dials anew.
constexpr int kKeepaliveMs = 30000;

}  // namespace

absl::StatusOr<std::unique_ptr<GuestServer>> GuestServer::Start(GuestService& service) {
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(kMaxReceivedBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // The host may ping as often as it likes: it is trusted here.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::InternalError("gRPC server does not start");
  return std::unique_ptr<GuestServer>(new GuestServer(service, std::move(server)));
}

GuestServer::~GuestServer() {
  // A deadline that has passed: calls in progress are cancelled at once.
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

absl::StatusOr<bool> GuestServer::Serve(OwnedFd connection, int stop_fd) {
  STILL_ASSIGN_OR_RETURN(OwnedFd watched, connection.Duplicate());
  const std::string name = GuestService::ConnectionName(connection.get());
  service_.ConnectionBegan(name);
  grpc::AddInsecureChannelFromFd(server_.get(), connection.Release());
  bool ended = WaitForConnectionEnd(watched.get(), stop_fd);
  // gRPC may not have read the end yet; now it will.
  ::shutdown(watched.get(), SHUT_RDWR);
  service_.ConnectionEnded(name);
  return ended;
}

}  // namespace still::agent
