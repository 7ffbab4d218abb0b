#include "session/guest/adopt_identity.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/random.h"
#include "session/guest/guest_words.h"

namespace still::session {
namespace {

constexpr size_t kEntropyBytes = 64;
constexpr absl::Duration kRetryPause = absl::Milliseconds(50);
constexpr absl::Duration kSignOfLifeTimeout = absl::Seconds(2);
constexpr int kMaxStepsTold = 16;
constexpr char kFeature[] = "identity";
constexpr char kNetworkStep[] = "network";

guestpb::AdoptIdentityRequest RequestOf(const sessionpb::NewIdentity& identity) {
  guestpb::AdoptIdentityRequest request;
  request.set_restore_id(identity.restore_id());
  request.set_keep_identity(identity.keep());
  request.set_hostname(identity.hostname());
  *request.mutable_nics() = identity.nics();
  return request;
}

// Everything that ages is made for each attempt.
void Freshen(guestpb::AdoptIdentityRequest& request) {
  std::string entropy(kEntropyBytes, '\0');
  RandomBytes(entropy.data(), entropy.size());
  request.set_entropy(std::move(entropy));
  request.set_wall_ns(absl::ToUnixNanos(Clock::Real().Now()));
}

bool HasFeature(const GuestClient& client) {
  const auto& features = client.init().features();
  return std::find(features.begin(), features.end(), kFeature) != features.end();
}

// Fails once the agent has answered no Ping for `limit`: then it hangs, or its machine does.
std::function<absl::Status()> SilenceWatch(GuestClient& client, absl::Duration limit) {
  return [&client, limit, heard = Clock::Real().Monotonic()]() mutable -> absl::Status {
    if (client.Ping(std::min(limit, kSignOfLifeTimeout)).ok()) heard = Clock::Real().Monotonic();
    if (Clock::Real().Monotonic() - heard < limit) return absl::OkStatus();
    return absl::DeadlineExceededError(
        absl::StrCat("the guest hangs: while it took its identity its agent gave no sign of "
                     "life for ",
                     absl::FormatDuration(limit)));
  };
}

}  // namespace

absl::StatusOr<guestpb::AdoptIdentityResponse> AdoptIdentity(GuestLink& link, const sessionpb::NewIdentity& identity,
                                                             const AdoptLimits& limits) {
  const absl::Duration deadline = Clock::Real().Monotonic() + limits.timeout;
  const absl::Status too_slow = absl::DeadlineExceededError(
      absl::StrCat("the guest had no identity of its own within ", absl::FormatDuration(limits.timeout)));
  guestpb::AdoptIdentityRequest request = RequestOf(identity);
  absl::Status last = too_slow;
  for (;;) {
    absl::Duration left = deadline - Clock::Real().Monotonic();
    if (left <= absl::ZeroDuration()) return last;
    // A connection that breaks is dialled again at once.
    STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client, link.Client(std::min(left, limits.silence)));
    if (!HasFeature(*client)) {
      return absl::FailedPreconditionError(absl::StrCat("the guest's agent (version ", client->init().agent_version(),
                                                        ") cannot give a restored guest an identity of its own"));
    }
    Freshen(request);
    absl::StatusOr<guestpb::AdoptIdentityResponse> response =
        client->AdoptIdentity(request, deadline - Clock::Real().Monotonic(), SilenceWatch(*client, limits.silence));
    if (absl::IsDeadlineExceeded(response.status()) && Clock::Real().Monotonic() >= deadline) return too_slow;
    // A connection of the first instant after a restore may be reset (docs/vsock.md), and a file system may not be
    // thawed yet; the call is idempotent.
    if (response.ok() || !absl::IsUnavailable(response.status())) return response;
    last = response.status();
    Clock::Real().Sleep(kRetryPause);
  }
}

bool MayUseNetwork(const guestpb::AdoptIdentityResponse& response) {
  for (const guestpb::IdentityStep& step : response.steps()) {
    if (step.name() == kNetworkStep && step.outcome() == guestpb::IdentityStep::FAILED) return false;
  }
  return true;
}

std::vector<std::string> FailedSteps(const guestpb::AdoptIdentityResponse& response) {
  std::vector<std::string> told;
  for (const guestpb::IdentityStep& step : response.steps()) {
    if (step.outcome() != guestpb::IdentityStep::FAILED || std::ssize(told) == kMaxStepsTold) continue;
    told.push_back(absl::StrCat("identity: ", CleanWords(step.name(), kMaxGuestName),
                                " failed: ", CleanWords(step.detail(), kMaxGuestName)));
  }
  return told;
}

}  // namespace still::session
