// GuestServer: one gRPC server without a port of its own; connections are handed to it as descriptors.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "base/fd.h"
#include "base/status.h"
#include "guest-agent/guest_service.h"

namespace still::agent {

class GuestServer {
 public:
  // `service` must outlive it.
  static absl::StatusOr<std::unique_ptr<GuestServer>> Start(GuestService& service);
  GuestServer(const GuestServer&) = delete;
  GuestServer& operator=(const GuestServer&) = delete;
  // Ends all connections and cancels their calls; waits for the handlers.
  ~GuestServer();

  // Serves a connected, non-blocking socket; returns when the connection has ended or `stop_fd` is readable (false).
  // May be called from several threads at once.
  absl::StatusOr<bool> Serve(OwnedFd connection, int stop_fd);

 private:
  GuestServer(GuestService& service, std::unique_ptr<grpc::Server> server)
      : service_(service), server_(std::move(server)) {}

  GuestService& service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace still::agent
