#include "tools/stilld/socket_server.h"

#include <fcntl.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "base/log.h"
#include "base/unix_socket.h"

namespace still::daemon {
namespace {

constexpr std::chrono::seconds kEndWithin(5);
// Schedules are small; whoever sends more is not our client.
constexpr int kMaxReceivedBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<SocketServer>> SocketServer::Start(OwnedFd listening, grpc::Service& service) {
  STILL_ASSIGN_OR_RETURN(SocketPair stop, MakeSocketPair());
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(kMaxReceivedBytes);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::InternalError("gRPC server does not start");
  return std::unique_ptr<SocketServer>(
      new SocketServer(std::move(listening), std::move(stop.first), std::move(stop.second), std::move(server)));
}

SocketServer::SocketServer(OwnedFd listening, OwnedFd stop_read, OwnedFd stop_write,
                           std::unique_ptr<grpc::Server> server)
    : listening_(std::move(listening)),
      stop_read_(std::move(stop_read)),
      stop_write_(std::move(stop_write)),
      server_(std::move(server)) {
  SetServing(true);
  thread_ = std::thread([this] { Accept(); });
}

SocketServer::~SocketServer() {
  SetServing(false);
  stop_write_.Reset();
  thread_.join();
  server_->Shutdown(std::chrono::system_clock::now() + kEndWithin);
  server_->Wait();
}

void SocketServer::SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus(serving); }

void SocketServer::Accept() {
  for (;;) {
    pollfd wait[] = {{.fd = listening_.get(), .events = POLLIN}, {.fd = stop_read_.get(), .events = POLLIN}};
    if (::poll(wait, 2, -1) < 0 && errno != EINTR) break;
    if (wait[1].revents != 0) return;
    if (wait[0].revents == 0) continue;
    OwnedFd connection(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (connection.valid()) {
      grpc::AddInsecureChannelFromFd(server_.get(), connection.Release());
    } else if (errno != EINTR && errno != EAGAIN && errno != ECONNABORTED) {
      // Out of descriptors, most likely: let some go before the next try.
      LogWarning("connection not accepted", {{"error", ErrnoStatus(errno, "accept").ToString()}});
      (void)::poll(&wait[1], 1, 100);
    }
  }
  LogError("no connections are accepted any more", {{"errno", errno}});
}

}  // namespace still::daemon
