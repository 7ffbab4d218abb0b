#include "store/lock/process_view.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"

namespace still::store {
namespace {

constexpr size_t kMaxProcFile = 4096;

// proc(5): field 22 of stat, counted from 1. The command's name (field 2) may contain anything, also ") ", so fields
// are counted from the last ')'.
std::optional<uint64_t> StartTicks(absl::string_view pid) {
  absl::StatusOr<std::string> stat = ReadFile(absl::StrCat("/proc/", pid, "/stat"), kMaxProcFile);
  if (!stat.ok()) return std::nullopt;
  size_t name_end = stat->rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(*stat).substr(name_end + 1), ' ', absl::SkipEmpty());
  constexpr size_t kStartField = 22 - 3;
  uint64_t ticks;
  if (fields.size() <= kStartField || !absl::SimpleAtoi(fields[kStartField], &ticks)) return std::nullopt;
  return ticks;
}

class RealProcessView final : public ProcessView {
 public:
  explicit RealProcessView(ProcessIdentity self) : self_(std::move(self)) {}
  const ProcessIdentity& self() const override { return self_; }

  bool IsRunning(int64_t pid, uint64_t start_ticks) const override {
    if (pid <= 0 || pid > std::numeric_limits<pid_t>::max()) return false;
    // Not by /proc alone: mounted with hidepid it hides the processes of other users.
    if (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return false;
    std::optional<uint64_t> ticks = StartTicks(absl::StrCat(pid));
    return !ticks.has_value() || *ticks == start_ticks;
  }

 private:
  const ProcessIdentity self_;
};

absl::StatusOr<ProcessIdentity> ReadSelf() {
  ProcessIdentity self;
  STILL_ASSIGN_OR_RETURN(self.boot, ReadFile("/proc/sys/kernel/random/boot_id", kMaxProcFile));
  absl::StripAsciiWhitespace(&self.boot);
  // Without one (a minimal container) the host name alone has to do.
  absl::StatusOr<std::string> machine = ReadFile("/etc/machine-id", kMaxProcFile);
  std::string machine_id = machine.ok() ? std::string(absl::StripAsciiWhitespace(*machine)) : "";
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return ErrnoStatus(errno, "gethostname");
  self.host = absl::StrCat(machine_id, ":", name);
  struct stat status {};
  if (::stat("/proc/self/ns/pid", &status) != 0) return ErrnoStatus(errno, "stat /proc/self/ns/pid");
  self.pid_namespace = status.st_ino;
  self.pid = ::getpid();
  std::optional<uint64_t> ticks = StartTicks("self");
  if (!ticks.has_value()) return absl::FailedPreconditionError("read /proc/self/stat: not in the form of proc(5)");
  self.start_ticks = *ticks;
  return self;
}

}  // namespace

absl::StatusOr<const ProcessView*> ProcessView::Real() {
  static absl::Mutex mutex(absl::kConstInit);
  static const RealProcessView* view = nullptr;
  absl::MutexLock lock(&mutex);
  // After fork(2) the child is another process. The parent's view stays: somebody may use it.
  if (view == nullptr || view->self().pid != ::getpid()) {
    STILL_ASSIGN_OR_RETURN(ProcessIdentity self, ReadSelf());
    view = new RealProcessView(std::move(self));
  }
  return view;
}

}  // namespace still::store
