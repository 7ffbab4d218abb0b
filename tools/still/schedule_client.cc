#include "tools/still/schedule_client.h"

#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/host_identity.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "proto/grpc_status.h"
#include "session/control/session_registry.h"

namespace still::cli {

schedule::AnnouncerOptions ConfiguredChannels(const std::string& configuration) {
  schedule::AnnouncerOptions options = schedule::AnnouncerOptions::FromEnvironment();
  const std::pair<const char*, std::string*> channels[] = {{"notify-command", &options.command},
                                                           {"webhook", &options.webhook},
                                                           {"mail-to", &options.mail_to},
                                                           {"ping", &options.ping}};
  std::ifstream file(configuration);
  if (!file) return options;
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigINI().from_config(file);  // As stilld reads it.
  } catch (const CLI::Error& error) {
    LogWarning("the channels of stilld are not read", {{"file", configuration}, {"error", error.what()}});
  }
  for (const CLI::ConfigItem& item : items) {
    for (const auto& [name, value] : channels) {
      if (item.name == name && value->empty() && !item.inputs.empty()) *value = item.inputs.front();
    }
  }
  return options;
}

absl::StatusOr<std::unique_ptr<schedule::Supervisor>> OpenSupervisor(const Context& context) {
  schedule::SupervisorOptions options{.state = context.state_directory(),
                                      .repository = {.path = context.repository_path()}};
  STILL_ASSIGN_OR_RETURN(options.repository.credentials, context.GivenCredentials());
  STILL_ASSIGN_OR_RETURN(options.repository.here, ReadHostIdentity(context.state_directory()));
  options.announcer = ConfiguredChannels();
  STILL_ASSIGN_OR_RETURN(options.worker_program, session::FindSibling("stilld", "STILL_STILLD_PROGRAM"));
  return schedule::Supervisor::Open(options);
}

absl::StatusOr<std::unique_ptr<ScheduleClient>> ScheduleClient::Connect(const Context& context) {
  std::unique_ptr<ScheduleClient> client(new ScheduleClient);
  absl::StatusOr<OwnedFd> socket = ConnectUnix(schedule::SocketPath(context.state_directory()));
  if (socket.ok()) {
    if (::fcntl(socket->get(), F_SETFL, ::fcntl(socket->get(), F_GETFL) | O_NONBLOCK) != 0) {
      return ErrnoStatus(errno, "stilld's socket");
    }
    client->stub_ = ScheduleControl::NewStub(grpc::CreateInsecureChannelFromFd("stilld", socket->Release()));
    return client;
  }
  STILL_ASSIGN_OR_RETURN(client->supervisor_, OpenSupervisor(context));
  client->service_ = std::make_unique<schedule::ScheduleService>(*client->supervisor_);
  grpc::ServerBuilder builder;
  builder.RegisterService(client->service_.get());
  client->server_ = builder.BuildAndStart();
  if (client->server_ == nullptr) return absl::InternalError("the schedule service does not start");
  client->stub_ = ScheduleControl::NewStub(client->server_->InProcessChannel({}));
  return client;
}

bool ScheduleClient::DaemonListens(const Context& context) {
  return ConnectUnix(schedule::SocketPath(context.state_directory())).ok();
}

absl::Status ScheduleClient::Failed(const grpc::Status& status) { return FromGrpc(status); }

}  // namespace still::cli
