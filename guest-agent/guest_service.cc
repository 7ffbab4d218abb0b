#include "guest-agent/guest_service.h"

#include <sys/utsname.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/clean_text.h"
#include "base/file.h"
#include "base/log.h"
#include "guest-agent/call_watch.h"
#include "guest-agent/command.h"
#include "guest-agent/valid_texts.h"

namespace still::agent {
namespace {

constexpr char kClockSource[] = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
constexpr uint32_t kProtocolVersion = 1;
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxPingBytes = 4 << 10;
// Each holds a thread and some pipes.
constexpr int kMaxCommands = 32;
// Of one list in an answer: mount points are long, there may be thousands, and the host takes answers of 2 MiB.
constexpr size_t kMaxListBytes = 512 << 10;
constexpr size_t kMaxErrorBytes = 1024;

grpc::Status ToGrpc(const absl::Status& status) {
  // The codes have the same numbers by design (absl/status/status.h).
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), CleanText(status.message(), kMaxErrorBytes));
}

size_t BytesOf(const std::string& text) { return text.size(); }
size_t BytesOf(const google::protobuf::Message& message) { return message.ByteSizeLong(); }

// Drops the end of a list that is too long; gives how many.
template <typename List>
int DropSurplus(List& list) {
  size_t bytes = 0;
  int kept = 0;
  while (kept < list.size() && bytes < kMaxListBytes) bytes += BytesOf(list.Get(kept++));
  const int dropped = list.size() - kept;
  list.DeleteSubrange(kept, dropped);
  return dropped;
}

std::string AndMore(int count) { return absl::StrCat("and ", count, " more"); }

// The host compares their number with that of the thaw, so those beyond the limit lose only their names.
void BoundFrozen(google::protobuf::RepeatedPtrField<pb::FrozenMount>& frozen) {
  const int nameless = DropSurplus(frozen);
  if (nameless == 0) return;
  frozen.Add()->set_mount_point(AndMore(nameless));
  for (int i = 1; i < nameless; ++i) frozen.Add();
}

void BoundLists(google::protobuf::Message&) {}  // Other answers have none that grow with the guest's mounts.
void BoundLists(pb::QuiesceResponse& response) {
  BoundFrozen(*response.mutable_frozen());
  const int dropped = DropSurplus(*response.mutable_skipped());
  if (dropped > 0) response.add_skipped()->set_detail(AndMore(dropped));
}
void BoundLists(pb::QuiesceStatusResponse& response) { BoundFrozen(*response.mutable_frozen()); }
void BoundLists(pb::ThawResponse& response) {
  const int dropped = DropSurplus(*response.mutable_thawed_early());
  if (dropped > 0) response.add_thawed_early(AndMore(dropped));
}
void BoundLists(pb::AdoptIdentityResponse& response) { BoundLists(*response.mutable_thaw()); }

template <typename Response>
grpc::Status Answer(absl::StatusOr<Response> result, Response* response) {
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  // In this order: what is no UTF-8 grows fourfold when it is made valid.
  MakeTextsValid(*response);
  BoundLists(*response);
  return grpc::Status::OK;
}

}  // namespace

std::string GuestService::ConnectionName(int fd) { return absl::StrCat("fd:", fd); }

void GuestService::ConnectionBegan(const std::string& connection) {
  absl::MutexLock lock(&mutex_);
  initialised_.erase(connection);
}

void GuestService::ConnectionEnded(const std::string& connection) {
  {
    absl::MutexLock lock(&mutex_);
    initialised_.erase(connection);
  }
  controller_.ConnectionLost(connection);
}

absl::Status GuestService::Admit(const grpc::ServerContext& context, WhileFrozen rule) {
  {
    absl::MutexLock lock(&mutex_);
    if (!initialised_.contains(context.peer())) {
      return absl::FailedPreconditionError("Init must be the first call on a connection");
    }
  }
  if (rule == WhileFrozen::kRefused && controller_.gated()) {
    return absl::FailedPreconditionError("refused while the guest is frozen");
  }
  return absl::OkStatus();
}

grpc::Status GuestService::Init(grpc::ServerContext* context, const pb::InitRequest* request,
                                pb::InitResponse* response) {
  if (request->session().size() > kMaxNameBytes || request->restore_id().size() > kMaxNameBytes) {
    return ToGrpc(absl::InvalidArgumentError("init: a name is too long"));
  }
  {
    absl::MutexLock lock(&mutex_);
    initialised_.insert(context->peer());
    restore_id_ = request->restore_id();
  }
  utsname name{};
  ::uname(&name);
  response->set_agent_version(STILL_VERSION);
  response->set_protocol_version(kProtocolVersion);
  response->set_kernel_release(name.release);
  response->set_hostname(name.nodename);
  std::string boot_id = ReadFile("/proc/sys/kernel/random/boot_id", 64).value_or("");
  absl::StripAsciiWhitespace(&boot_id);
  response->set_boot_id(boot_id);
  std::string clock = ReadFile(kClockSource, 64).value_or("");
  absl::StripAsciiWhitespace(&clock);
  response->set_clock_source(clock);
  response->add_features("identity");
  response->add_features("disks");
  response->set_quiesce_state(controller_.Status().state());
  MakeTextsValid(*response);
  LogInfo("host connected", {{"session", request->session()}, {"restore", request->restore_id()}});
  return grpc::Status::OK;
}

grpc::Status GuestService::Ping(grpc::ServerContext* context, const pb::PingRequest* request,
                                pb::PingResponse* response) {
  if (absl::Status status = Admit(*context, WhileFrozen::kAllowed); !status.ok()) return ToGrpc(status);
  if (request->payload().size() > kMaxPingBytes) return ToGrpc(absl::InvalidArgumentError("ping: payload too long"));
  response->set_payload(request->payload());
  response->set_quiesce_state(controller_.Status().state());
  response->set_monotonic_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(clock_.Monotonic())));
  response->set_wall_ns(absl::ToUnixNanos(clock_.Now()));
  absl::MutexLock lock(&mutex_);
  response->set_restore_id(restore_id_);
  return grpc::Status::OK;
}

grpc::Status GuestService::Shutdown(grpc::ServerContext* context, const pb::ShutdownRequest* request,
                                    pb::ShutdownResponse*) {
  if (absl::Status status = Admit(*context, WhileFrozen::kRefused); !status.ok()) return ToGrpc(status);
  power_.Off(request->reboot());
  return grpc::Status::OK;
}

grpc::Status GuestService::Quiesce(grpc::ServerContext* context, const pb::QuiesceRequest* request,
                                   pb::QuiesceResponse* response) {
  if (absl::Status status = Admit(*context, WhileFrozen::kAllowed); !status.ok()) return ToGrpc(status);
  absl::StatusOr<pb::QuiesceResponse> result;
  {
    CallWatch watch({.cancelled = [context] { return context->IsCancelled(); },
                     .on_cancel = [this, request] { controller_.Abandon(request->token()); }});
    result = controller_.Quiesce(*request, context->peer());
  }
  return Answer(std::move(result), response);
}

grpc::Status GuestService::RenewQuiesce(grpc::ServerContext* context, const pb::RenewQuiesceRequest* request,
                                        pb::RenewQuiesceResponse* response) {
  if (absl::Status status = Admit(*context, WhileFrozen::kAllowed); !status.ok()) return ToGrpc(status);
  return Answer(controller_.Renew(*request), response);
}

grpc::Status GuestService::Thaw(grpc::ServerContext* context, const pb::ThawRequest* request,
                                pb::ThawResponse* response) {
  if (absl::Status status = Admit(*context, WhileFrozen::kAllowed); !status.ok()) return ToGrpc(status);
  return Answer(controller_.Thaw(*request), response);
}

grpc::Status GuestService::QuiesceStatus(grpc::ServerContext* context, const pb::QuiesceStatusRequest*,
                                         pb::QuiesceStatusResponse* response) {
  if (absl::Status status = Admit(*context, WhileFrozen::kAllowed); !status.ok()) return ToGrpc(status);
  return Answer<pb::QuiesceStatusResponse>(controller_.Status(), response);
}

grpc::Status GuestService::AdoptIdentity(grpc::ServerContext* context, const pb::AdoptIdentityRequest* request,
                                         pb::AdoptIdentityResponse* response) {
  if (absl::Status status = Admit(*context, WhileFrozen::kAllowed); !status.ok()) return ToGrpc(status);
  return Answer(identity_.Adopt(*request), response);
}

grpc::Status GuestService::Exec(grpc::ServerContext* context, const pb::ExecRequest* request,
                                grpc::ServerWriter<pb::ExecOutput>* writer) {
  if (absl::Status status = Admit(*context, WhileFrozen::kRefused); !status.ok()) return ToGrpc(status);
  absl::Cleanup leave = [this] { --running_commands_; };
  if (++running_commands_ > kMaxCommands) return ToGrpc(absl::ResourceExhaustedError("exec: too many programs run"));
  return ToGrpc(RunCommandStreaming(
      *request, [writer](const pb::ExecOutput& part) { return writer->Write(part); },
      [context] { return context->IsCancelled(); }));
}

}  // namespace still::agent
