#include "session/guest/qga_client.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/unix_socket.h"
#include "nlohmann/json.hpp"
#include "session/guest/guest_words.h"

namespace still::session {
namespace {

using nlohmann::json;

// An answer that we ask for has some hundred bytes.
constexpr size_t kMaxAnswerLine = 4096;
// What may lie in the port from before: a guest that sends more than this is not one that answers.
constexpr size_t kMaxStale = 64 << 10;
constexpr uint32_t kMostFileSystems = 1'000'000;
constexpr char kDelimiter = '\xff';

json Parse(const std::string& line) { return json::parse(line, nullptr, /*allow_exceptions=*/false); }

}  // namespace

absl::StatusOr<uint32_t> QgaClient::Thaw(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  STILL_RETURN_IF_ERROR(Synchronize(deadline));
  STILL_RETURN_IF_ERROR(Send({{"execute", "guest-fsfreeze-thaw"}}, /*delimited=*/false));
  STILL_ASSIGN_OR_RETURN(std::string line, ReadLine(deadline));
  const json answer = Parse(line);
  if (answer.is_object() && answer.contains("return") && answer["return"].is_number_unsigned()) {
    return static_cast<uint32_t>(std::min<uint64_t>(answer["return"].get<uint64_t>(), kMostFileSystems));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the QEMU guest agent does not thaw: ", CleanWords(line, kMaxGuestName)));
}

absl::Status QgaClient::Synchronize(absl::Duration deadline) {
  // Fits into every number that JSON knows exactly.
  const uint64_t id = RandomU64() >> 12;
  STILL_RETURN_IF_ERROR(Send({{"execute", "guest-sync-delimited"}, {"arguments", {{"id", id}}}}, /*delimited=*/true));
  for (size_t stale = 0; stale < kMaxStale;) {
    STILL_ASSIGN_OR_RETURN(std::string line, ReadLine(deadline));
    const json answer = Parse(line);
    if (answer.is_object() && answer.contains("return") && answer["return"] == id) return absl::OkStatus();
    stale += line.size() + 1;
  }
  return absl::UnavailableError("the QEMU guest agent: what comes from its port is no answer");
}

absl::Status QgaClient::Send(const json& request, bool delimited) {
  // A request that was cut ends at the delimiter, too.
  std::string text = absl::StrCat(delimited ? absl::string_view(&kDelimiter, 1) : "", request.dump(), "\n");
  const ssize_t sent = ::send(channel_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(text.size())) return absl::OkStatus();
  // The port takes nothing: full of what nobody has read.
  if (sent >= 0 || errno == EAGAIN) return absl::UnavailableError("no QEMU guest agent reads its port");
  return absl::UnavailableError(ErrnoStatus(errno, "QEMU guest agent's port").message());
}

absl::StatusOr<std::string> QgaClient::ReadLine(absl::Duration deadline) {
  for (;;) {
    if (const size_t end = received_.find('\n'); end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      if (const size_t last = line.rfind(kDelimiter); last != std::string::npos) line.erase(0, last + 1);
      return line;
    }
    if (received_.size() > kMaxAnswerLine) {
      return absl::UnavailableError("the QEMU guest agent: a line of its has no end");
    }
    absl::Status readable = WaitReadable(channel_.get(), deadline - Clock::Real().Monotonic(), "its answer");
    if (!readable.ok()) return absl::UnavailableError("no QEMU guest agent answers in the guest");
    char buffer[kMaxAnswerLine];
    const ssize_t got = ::recv(channel_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0) return absl::UnavailableError("the QEMU guest agent's port is closed");
    received_.append(buffer, static_cast<size_t>(got));
  }
}

}  // namespace still::session
