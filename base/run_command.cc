#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/child_watch.h"
#include "base/clock.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "base/process.h"

namespace still {
namespace {

constexpr size_t kMaxCollectedBytes = 1 << 20;

std::function<bool(absl::string_view)> CollectInto(std::string& text) {
  return [&text](absl::string_view piece) {
    const size_t room = kMaxCollectedBytes - std::min(kMaxCollectedBytes, text.size());
    text.append(piece.data(), std::min(room, piece.size()));
    return true;
  };
}

}  // namespace

absl::StatusOr<CommandOutput> RunCommand(ProcessOptions options, absl::Duration timeout) {
  STILL_ASSIGN_OR_RETURN(Pipe out, MakePipe());
  STILL_ASSIGN_OR_RETURN(Pipe err, MakePipe());
  STILL_RETURN_IF_ERROR(SetNonBlocking(out.read_end.get()));
  STILL_RETURN_IF_ERROR(SetNonBlocking(err.read_end.get()));
  options.stdout_fd = out.write_end.get();
  options.stderr_fd = err.write_end.get();
  STILL_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(options));
  out.write_end.Reset();
  err.write_end.Reset();

  CommandOutput output;
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  STILL_ASSIGN_OR_RETURN(WatchedEnd end,
                         WatchChild(child, {.streams = {{out.read_end.get(), CollectInto(output.stdout_text)},
                                                        {err.read_end.get(), CollectInto(output.stderr_text)}},
                                            .kill_at = [deadline] { return deadline; },
                                            .kill_group = options.new_session}));
  if (end.killed) {
    return absl::DeadlineExceededError(
        absl::StrCat(options.argv[0], ": still running after ", absl::FormatDuration(timeout)));
  }
  output.exit = end.exit;
  return output;
}

}  // namespace still
