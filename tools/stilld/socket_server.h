// SocketServer: gRPC services on a listening UNIX socket that may come from systemd (socket activation), with the
// standard health service. Connections are accepted by a thread of its own. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <thread>

#include "base/fd.h"
#include "base/status.h"

namespace still::daemon {

class SocketServer {
 public:
  // Takes the listening socket. `service` must outlive it.
  static absl::StatusOr<std::unique_ptr<SocketServer>> Start(OwnedFd listening, grpc::Service& service);
  // Ends what is under way after five seconds.
  ~SocketServer();
  // What the health service answers: SERVING from the start.
  void SetServing(bool serving);

 private:
  SocketServer(OwnedFd listening, OwnedFd stop_read, OwnedFd stop_write, std::unique_ptr<grpc::Server> server);
  void Accept();

  const OwnedFd listening_;
  const OwnedFd stop_read_;  // Readable at the end, when stop_write_ is closed.
  OwnedFd stop_write_;
  const std::unique_ptr<grpc::Server> server_;
  std::thread thread_;
};

}  // namespace still::daemon
