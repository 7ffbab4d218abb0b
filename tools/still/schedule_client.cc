#include "tools/still/schedule_client.h"

#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "base/host_identity.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "proto/grpc_status.h"
#include "schedule/in_background.h"
#include "session/control/session_registry.h"

namespace still::cli {
namespace {

absl::StatusOr<schedulepb::CheckReport> LookByOurselves(const Context& context, const std::string& trouble) {
  STILL_ASSIGN_OR_RETURN(auto supervisor, OpenSupervisor(context));
  return supervisor->LookForTrouble(trouble);
}

absl::StatusOr<schedule::SupervisorOptions> OptionsOfSupervisor(const Context& context) {
  schedule::SupervisorOptions options{.state = context.state_directory(),
                                      .repository = {.path = context.repository_path()}};
  STILL_ASSIGN_OR_RETURN(options.repository.credentials, context.GivenCredentials());
  STILL_ASSIGN_OR_RETURN(options.repository.here, ReadHostIdentity(context.state_directory()));
  options.announcer = ConfiguredChannels();
  STILL_ASSIGN_OR_RETURN(options.worker_program, FindSibling("stilld", "STILL_STILLD_PROGRAM"));
  return options;
}

// Whether a channel took it.
bool Tell(const absl::Status& why) {
  const std::vector<schedule::Announcer::Outcome> outcomes = schedule::TellOnce(
      ConfiguredChannels(), {.kind = schedule::Event::Kind::kScheduler,
                             .at = Clock::Real().Now(),
                             .message = absl::StrCat("the schedules cannot be looked at: ", why.message())});
  return std::any_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.delivered; });
}

}  // namespace

schedule::AnnouncerOptions ConfiguredChannels(const std::string& configuration) {
  schedule::AnnouncerOptions options = schedule::AnnouncerOptions::FromEnvironment();
  const std::pair<const char*, std::string*> channels[] = {{"notify-command", &options.command},
                                                           {"webhook", &options.webhook},
                                                           {"mail-to", &options.mail_to},
                                                           {"ping", &options.ping}};
  std::map<std::string, std::string> values = ReadConfiguration(configuration);
  for (const auto& [name, value] : channels) {
    if (value->empty()) *value = values[name];
  }
  return options;
}

absl::StatusOr<std::unique_ptr<schedule::Supervisor>> OpenSupervisor(const Context& context) {
  STILL_ASSIGN_OR_RETURN(schedule::SupervisorOptions options, OptionsOfSupervisor(context));
  return schedule::Supervisor::Open(options);
}

absl::StatusOr<std::unique_ptr<schedule::Supervisor>> OpenSupervisorInCharge(const Context& context) {
  STILL_ASSIGN_OR_RETURN(schedule::SupervisorOptions options, OptionsOfSupervisor(context));
  options.without_repository = true;
  options.failing_after = absl::ZeroDuration();
  return schedule::Supervisor::Open(options);
}

absl::Status TellWithoutBook(const absl::Status& why) {
  (void)Tell(why);
  return why;
}

absl::Status TellWithoutBookHourly(const Context& context, const absl::Status& why) {
  // There is no book to write down that it was told: the age of a file says it.
  const std::string mark = JoinPath(context.state_directory(), "told-without-book");
  struct stat marked {};
  const absl::Duration ago = ::stat(mark.c_str(), &marked) == 0
                                 ? Clock::Real().Now() - absl::TimeFromTimespec(marked.st_mtim)
                                 : absl::InfiniteDuration();
  if (ago >= absl::ZeroDuration() && ago < absl::Hours(1)) return why;
  if (!Tell(why)) return why;
  // Where it cannot be written, it is told each time: better than never.
  if (absl::Status kept = WriteFileAtomically(mark, absl::StrCat(why.message(), "\n")); !kept.ok()) {
    LogWarning("it is told again with the next call", {{"error", kept.ToString()}});
  }
  return why;
}

absl::StatusOr<schedulepb::CheckReport> LookWithinLimit(const Context& context, const std::string& trouble,
                                                        absl::Duration limit) {
  schedule::InBackground<schedulepb::CheckReport> looking;
  std::optional<absl::StatusOr<schedulepb::CheckReport>> looked =
      looking.Try([&context, trouble] { return LookByOurselves(context, trouble); }, limit);
  if (looked.has_value()) return *std::move(looked);
  // The process ends under the thread: nothing ends a system call that hangs.
  const absl::Status hangs = TellWithoutBook(absl::DeadlineExceededError(
      absl::StrCat("the repository or the book hangs; look whether ", context.repository_path(), " and ",
                   context.state_directory(), " can be read", trouble.empty() ? "" : "; ", trouble)));
  std::cerr << "still: " << hangs.message() << std::endl;
  ::_exit(ExitCode(hangs));
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
