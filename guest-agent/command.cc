#include "guest-agent/command.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "base/process.h"
#include "guest-agent/call_watch.h"

namespace still::agent {
namespace {

constexpr int kMaxArguments = 256;
constexpr size_t kMaxArgumentBytes = 128 << 10;
constexpr size_t kMaxStdinBytes = 1 << 20;
constexpr size_t kMaxPartBytes = 64 << 10;
constexpr uint32_t kDefaultTimeoutMs = 60000;

bool HasNul(absl::string_view text) { return text.find('\0') != absl::string_view::npos; }

absl::Status Validate(const pb::ExecRequest& request) {
  if (request.argv().empty() || request.argv(0).empty()) return absl::InvalidArgumentError("exec: no program given");
  if (request.argv_size() > kMaxArguments) return absl::InvalidArgumentError("exec: too many arguments");
  size_t bytes = request.working_directory().size();
  bool has_nul = HasNul(request.working_directory());
  for (const std::string& argument : request.argv()) {
    bytes += argument.size() + 1;
    has_nul |= HasNul(argument);
  }
  for (const auto& [name, value] : request.env()) {
    bytes += name.size() + value.size() + 2;
    has_nul |= HasNul(name) || HasNul(value);
    if (name.empty() || name.find('=') != std::string::npos) {
      return absl::InvalidArgumentError("exec: an environment variable's name is empty or has '='");
    }
  }
  if (has_nul) return absl::InvalidArgumentError("exec: an argument contains a zero byte");
  if (bytes > kMaxArgumentBytes) return absl::InvalidArgumentError("exec: arguments too long");
  if (request.stdin_data().size() > kMaxStdinBytes) return absl::InvalidArgumentError("exec: stdin too long");
  return absl::OkStatus();
}

struct Streams {
  Pipe in, out, err;
};

// Only our ends are non-blocking.
absl::StatusOr<Streams> MakeStreams() {
  Streams streams;
  STILL_ASSIGN_OR_RETURN(streams.in, MakePipe());
  STILL_ASSIGN_OR_RETURN(streams.out, MakePipe());
  STILL_ASSIGN_OR_RETURN(streams.err, MakePipe());
  for (const OwnedFd* ours : {&streams.in.write_end, &streams.out.read_end, &streams.err.read_end}) {
    STILL_RETURN_IF_ERROR(SetNonBlocking(ours->get()));
  }
  return streams;
}

// Moves data between the program and `send` until the program has ended and what it wrote has been read.
class Pump {
 public:
  Pump(Streams& streams, absl::string_view stdin_data, const std::function<bool(const pb::ExecOutput&)>& send)
      : streams_(streams), unsent_(stdin_data), send_(send) {}

  // False when nobody listens any more.
  bool Run(const ChildProcess& child) {
    for (bool ended = false; !ended;) {
      if (unsent_.empty()) streams_.in.write_end.Reset();
      pollfd fds[4] = {{.fd = child.pidfd(), .events = POLLIN, .revents = 0},
                       {.fd = streams_.in.write_end.get(), .events = POLLOUT, .revents = 0},
                       {.fd = streams_.out.read_end.get(), .events = POLLIN, .revents = 0},
                       {.fd = streams_.err.read_end.get(), .events = POLLIN, .revents = 0}};
      if (::poll(fds, 4, -1) < 0) continue;  // Only EINTR is possible.
      // What it wrote before it ended is in the pipes now; background processes may hold them open for ever.
      ended = fds[0].revents != 0;
      if (fds[1].revents != 0) WriteStdin();
      if (!Forward(streams_.out.read_end, &pb::ExecOutput::set_stdout_data<std::string>) ||
          !Forward(streams_.err.read_end, &pb::ExecOutput::set_stderr_data<std::string>)) {
        return false;
      }
    }
    return true;
  }

 private:
  void WriteStdin() {
    ssize_t put = ::write(streams_.in.write_end.get(), unsent_.data(), unsent_.size());
    if (put >= 0) {
      unsent_.remove_prefix(static_cast<size_t>(put));
    } else if (errno != EAGAIN && errno != EINTR) {
      unsent_ = "";  // The program does not want the rest.
    }
  }

  template <typename Setter>
  bool Forward(OwnedFd& from, Setter setter) {
    while (from.valid()) {
      std::string data(kMaxPartBytes, '\0');
      ssize_t got = ::read(from.get(), data.data(), data.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && errno == EAGAIN) return true;
      if (got <= 0) {
        from.Reset();
        return true;
      }
      data.resize(static_cast<size_t>(got));
      pb::ExecOutput part;
      (part.*setter)(std::move(data));
      if (!send_(part)) return false;
    }
    return true;
  }

  Streams& streams_;
  absl::string_view unsent_;
  const std::function<bool(const pb::ExecOutput&)>& send_;
};

absl::StatusOr<ChildProcess> StartProgram(const pb::ExecRequest& request, Streams& streams) {
  ProcessOptions options;
  options.argv.assign(request.argv().begin(), request.argv().end());
  options.environment.assign(request.env().begin(), request.env().end());
  options.working_directory = request.working_directory();
  options.stdin_fd = streams.in.read_end.get();
  options.stdout_fd = streams.out.write_end.get();
  options.stderr_fd = streams.err.write_end.get();
  options.new_session = true;
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(options);
  streams.in.read_end.Reset();
  streams.out.write_end.Reset();
  streams.err.write_end.Reset();
  return child;
}

}  // namespace

absl::Status RunCommandStreaming(const pb::ExecRequest& request, const std::function<bool(const pb::ExecOutput&)>& send,
                                 const std::function<bool()>& cancelled) {
  STILL_RETURN_IF_ERROR(Validate(request));
  STILL_ASSIGN_OR_RETURN(Streams streams, MakeStreams());
  STILL_ASSIGN_OR_RETURN(ChildProcess child, StartProgram(request, streams));
  std::atomic<bool> was_cancelled = false;
  std::atomic<bool> timed_out = false;
  // By group, and only while the child is not reaped: its number cannot belong to anybody else.
  auto kill_group = [group = child.pid()] { ::kill(-group, SIGKILL); };
  bool listened;
  {
    CallWatch watch({.cancelled = cancelled,
                     .on_cancel =
                         [&] {
                           was_cancelled = true;
                           kill_group();
                         },
                     .limit = absl::Milliseconds(request.timeout_ms() == 0 ? kDefaultTimeoutMs : request.timeout_ms()),
                     .on_limit =
                         [&] {
                           timed_out = true;
                           kill_group();
                         }});
    listened = Pump(streams, request.stdin_data(), send).Run(child);
  }
  if (!listened) kill_group();
  STILL_ASSIGN_OR_RETURN(ProcessExit exit, child.Wait());
  if (!listened || was_cancelled) return absl::AbortedError("exec: cancelled");
  pb::ExecOutput last;
  last.mutable_exit()->set_exit_code(exit.exit_code);
  last.mutable_exit()->set_signal(exit.signal);
  last.mutable_exit()->set_timed_out(timed_out);
  if (!send(last)) return absl::AbortedError("exec: cancelled");
  return absl::OkStatus();
}

}  // namespace still::agent
