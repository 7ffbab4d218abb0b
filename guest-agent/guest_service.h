// GuestService: the RPCs of guest.proto on top of the parts. It owns the rules about calls (Init first, little while
// frozen, sizes); what a call does is in the parts.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "guest-agent/freeze_controller.h"
#include "guest-agent/identity/identity.h"
#include "guest-agent/power.h"
#include "proto/guest.grpc.pb.h"

namespace still::agent {

class GuestService final : public pb::Guest::Service {
 public:
  GuestService(FreezeController& controller, IdentityAdopter& identity, Power& power, Clock& clock)
      : controller_(controller), identity_(identity), power_(power), clock_(clock) {}

  // The name that gRPC gives a connection over descriptor `fd` (ServerContext::peer).
  static std::string ConnectionName(int fd);
  // Around the life of each connection, by whoever serves it.
  void ConnectionBegan(const std::string& connection);
  void ConnectionEnded(const std::string& connection);

  grpc::Status Init(grpc::ServerContext* context, const pb::InitRequest* request, pb::InitResponse* response) override;
  grpc::Status Ping(grpc::ServerContext* context, const pb::PingRequest* request, pb::PingResponse* response) override;
  grpc::Status Shutdown(grpc::ServerContext* context, const pb::ShutdownRequest* request,
                        pb::ShutdownResponse* response) override;
  grpc::Status Quiesce(grpc::ServerContext* context, const pb::QuiesceRequest* request,
                       pb::QuiesceResponse* response) override;
  grpc::Status RenewQuiesce(grpc::ServerContext* context, const pb::RenewQuiesceRequest* request,
                            pb::RenewQuiesceResponse* response) override;
  grpc::Status Thaw(grpc::ServerContext* context, const pb::ThawRequest* request, pb::ThawResponse* response) override;
  grpc::Status QuiesceStatus(grpc::ServerContext* context, const pb::QuiesceStatusRequest* request,
                             pb::QuiesceStatusResponse* response) override;
  grpc::Status AdoptIdentity(grpc::ServerContext* context, const pb::AdoptIdentityRequest* request,
                             pb::AdoptIdentityResponse* response) override;
  grpc::Status Exec(grpc::ServerContext* context, const pb::ExecRequest* request,
                    grpc::ServerWriter<pb::ExecOutput>* writer) override;

 private:
  enum class WhileFrozen { kAllowed, kRefused };
  absl::Status Admit(const grpc::ServerContext& context, WhileFrozen rule) ABSL_LOCKS_EXCLUDED(mutex_);

  FreezeController& controller_;
  IdentityAdopter& identity_;
  Power& power_;
  Clock& clock_;
  std::atomic<int> running_commands_ = 0;
  absl::Mutex mutex_;
  std::set<std::string> initialised_ ABSL_GUARDED_BY(mutex_);  // Connections that have called Init.
  std::string restore_id_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::agent
