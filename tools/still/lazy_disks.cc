// hydrate: completes the disks of lazily restored sessions.
#include "tools/still/lazy_disks.h"

#include <iostream>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/quantity.h"
#include "proto/aliases.h"
#include "proto/grpc_status.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/each_session.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

constexpr absl::Duration kDescribeInterval = absl::Milliseconds(200);
constexpr size_t kHydratedAtOnce = 8;  // Each is somebody else's work, and only waited for.

struct HydrateArguments {
  std::vector<std::string> sessions;
  std::string rate;
  bool no_wait = false;
};

struct Totals {
  uint64_t size = 0;
  uint64_t hydrated = 0;
  bool hydrating = false;
};

// Of the disks that are not complete.
Totals TotalsOf(const sessionpb::DescribeResponse& description) {
  Totals totals;
  for (const sessionpb::LazyDisk& disk : description.lazy_disks()) {
    totals.size += disk.size();
    totals.hydrated += disk.hydrated();
    totals.hydrating |= disk.hydrating();
  }
  return totals;
}

// One bar for all of them: of their bytes together. Thread-safe.
class HydrateProgress {
 public:
  explicit HydrateProgress(snapshot::ProgressSink sink) : sink_(std::move(sink)) {}
  void Update(const std::string& session, const Totals& totals) {
    absl::MutexLock lock(&mutex_);
    of_[session] = totals;
    snapshot::Progress sum{.stage = "hydrate"};
    for (const auto& [name, one] : of_) {
      sum.done += one.hydrated;
      sum.total += one.size;
    }
    sink_(sum);
  }

 private:
  absl::Mutex mutex_;
  const snapshot::ProgressSink sink_;
  std::map<std::string, Totals> of_ ABSL_GUARDED_BY(mutex_);
};

absl::Status AwaitComplete(sessionpb::SessionControl::Stub& session, const std::string& name,
                           HydrateProgress& progress) {
  std::string trouble;
  for (;;) {
    grpc::ClientContext call;
    sessionpb::DescribeResponse description;
    STILL_RETURN_IF_ERROR(FromGrpc(session.Describe(&call, {}, &description)));
    if (description.lazy_disks().empty()) return absl::OkStatus();
    if (description.disk_trouble() != trouble) {
      trouble = description.disk_trouble();
      if (!trouble.empty()) std::cerr << absl::StrCat("still: ", name, ": ", Printable(trouble), "\n");
    }
    progress.Update(name, TotalsOf(description));
    Clock::Real().Sleep(kDescribeInterval);
  }
}

absl::StatusOr<Done> HydrateOne(const session::SessionRegistry& sessions, const std::string& name,
                                const sessionpb::HydrateRequest& request, bool wait, HydrateProgress& progress) {
  STILL_ASSIGN_OR_RETURN(auto stub, sessions.Connect(name));
  grpc::ClientContext call;
  sessionpb::HydrateResponse response;
  STILL_RETURN_IF_ERROR(FromGrpc(stub->Hydrate(&call, request, &response)));
  if (wait) STILL_RETURN_IF_ERROR(AwaitComplete(*stub, name, progress));
  return Done{absl::StrCat("session ", name, wait ? " needs the repository no more" : " is being completed"),
              {{"session", name}, {"complete", wait}}};
}

absl::Status Hydrate(Context& context, const HydrateArguments& arguments) {
  sessionpb::HydrateRequest request;
  if (!arguments.rate.empty()) {
    STILL_ASSIGN_OR_RETURN(uint64_t rate, ParseSize(arguments.rate));
    request.set_bytes_per_second(rate);
  }
  HydrateProgress progress(context.MakeProgress());
  const session::SessionRegistry sessions = context.sessions();
  return WithEachSession(
      context, arguments.sessions, /*beginnings=*/true, kHydratedAtOnce,
      [&](const std::string& name) { return HydrateOne(sessions, name, request, !arguments.no_wait, progress); });
}

}  // namespace

std::optional<std::string> LazyDiskState(const sessionpb::DescribeResponse& description) {
  if (description.state() == sessionpb::DescribeResponse::PAUSED) {
    return description.disk_trouble().empty() ? std::nullopt : std::optional<std::string>("held");
  }
  if (description.lazy_disks().empty()) return std::nullopt;
  Totals totals = TotalsOf(description);
  if (!totals.hydrating || totals.size == 0) return "lazy";
  return absl::StrCat("hydrating ", totals.hydrated * 100 / totals.size, "%");
}

void AddHydrateCommand(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<HydrateArguments>();
  CLI::App* hydrate =
      context.AddCommand(app, "hydrate", "Complete lazily restored sessions' disks, so that they need no repository",
                         [=](Context& c) { return Hydrate(c, *arguments); });
  hydrate->add_option("sessions", arguments->sessions, "Names, beginnings of them, or patterns: 'fork-*'")
      ->required()
      ->type_name(kExactSessionType);
  hydrate->add_option("--rate", arguments->rate, "Bytes a second, of each (default: as fast as it goes)");
  hydrate->add_flag("--no-wait", arguments->no_wait, "Only begin; `still ps` shows how far it is");
}

}  // namespace still::cli
