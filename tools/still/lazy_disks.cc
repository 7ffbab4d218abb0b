// hydrate: completes the disks of a lazily restored session.
#include "tools/still/lazy_disks.h"

#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/quantity.h"
#include "proto/aliases.h"
#include "proto/grpc_status.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

constexpr absl::Duration kDescribeInterval = absl::Milliseconds(200);

struct HydrateArguments {
  std::string session;
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

absl::Status Hydrate(Context& context, const HydrateArguments& arguments) {
  sessionpb::HydrateRequest request;
  if (!arguments.rate.empty()) {
    STILL_ASSIGN_OR_RETURN(uint64_t rate, ParseSize(arguments.rate));
    request.set_bytes_per_second(rate);
  }
  STILL_ASSIGN_OR_RETURN(auto stub, context.sessions().Connect(arguments.session));
  grpc::ClientContext call;
  sessionpb::HydrateResponse response;
  STILL_RETURN_IF_ERROR(FromGrpc(stub->Hydrate(&call, request, &response)));
  snapshot::ProgressSink progress = context.MakeProgress();
  std::string trouble;
  while (!arguments.no_wait) {
    grpc::ClientContext describe_call;
    sessionpb::DescribeResponse description;
    STILL_RETURN_IF_ERROR(FromGrpc(stub->Describe(&describe_call, {}, &description)));
    if (description.lazy_disks().empty()) break;
    if (description.disk_trouble() != trouble) {
      trouble = description.disk_trouble();
      if (!trouble.empty()) std::cerr << "still: " << Printable(trouble) << "\n";
    }
    Totals totals = TotalsOf(description);
    progress({.stage = "hydrate", .done = totals.hydrated, .total = totals.size});
    Clock::Real().Sleep(kDescribeInterval);
  }
  context.ProgressDone();
  context.Print({{"session", arguments.session}, {"complete", !arguments.no_wait}}, [&] {
    std::cout << "session " << arguments.session
              << (arguments.no_wait ? " is being completed\n" : " needs the repository no more\n");
  });
  return absl::OkStatus();
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
      context.AddCommand(app, "hydrate", "Complete a lazily restored session's disks, so that it needs no repository",
                         [=](Context& c) { return Hydrate(c, *arguments); });
  hydrate->add_option("session", arguments->session, "Its name, or the beginning of it")
      ->required()
      ->type_name(kSessionType);
  hydrate->add_option("--rate", arguments->rate, "Bytes a second (default: as fast as it goes)");
  hydrate->add_flag("--no-wait", arguments->no_wait, "Only begin; `still ps` shows how far it is");
}

}  // namespace still::cli
