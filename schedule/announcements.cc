#include "schedule/announcements.h"

#include <curl/curl.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/process.h"

namespace still::schedule {
namespace {

constexpr int kTries = 4;
constexpr absl::Duration kCommandTimeout = absl::Seconds(60);
constexpr long kWebhookTimeoutMs = 10'000;  // NOLINT: libcurl's type.

std::string HostName() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

size_t Discard(char*, size_t size, size_t count, void*) { return size * count; }

}  // namespace

std::string EventJson(const Event& event) {
  nlohmann::json json = {{"event", EventName(event.kind)},
                         {"about", event.about},
                         {"schedule", event.schedule},
                         {"session", event.session},
                         {"time", absl::FormatTime(absl::RFC3339_sec, event.at, absl::UTCTimeZone())},
                         {"host", HostName()},
                         {"message", event.message}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

HookAnnouncer::HookAnnouncer(AnnouncerOptions options) : options_(std::move(options)) {
  // Once for the process, before threads use it; it is harmless to do it again.
  ::curl_global_init(CURL_GLOBAL_DEFAULT);
  thread_ = std::thread([this] { Deliver(); });
}

HookAnnouncer::~HookAnnouncer() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  events_.Close();
  thread_.join();
}

void HookAnnouncer::Announce(const Event& event) {
  const LogLevel level = event.kind == Event::Kind::kRecovered ? LogLevel::kInfo : LogLevel::kError;
  Log(level, "alert",
      {{"event", EventName(event.kind)},
       {"schedule", event.schedule},
       {"session", event.session},
       {"message", event.message}});
  {
    absl::MutexLock lock(&mutex_);
    // Whoever decides must not wait for a slow receiver.
    if (waiting_ >= kMostWaiting) return;
    ++waiting_;
  }
  events_.Push(event);
}

void HookAnnouncer::Deliver() {
  while (std::optional<Event> event = events_.Pop()) {
    if (!options_.command.empty()) Try(*event, "command", &HookAnnouncer::RunHook);
    if (!options_.webhook.empty()) Try(*event, "webhook", &HookAnnouncer::Post);
    absl::MutexLock lock(&mutex_);
    --waiting_;
  }
}

void HookAnnouncer::Try(const Event& event, absl::string_view how,
                        absl::Status (HookAnnouncer::*deliver)(const Event&) const) {
  absl::Duration pause = options_.retry_after;
  for (int tries = 1;; ++tries, pause *= 2) {
    absl::Status status = (this->*deliver)(event);
    if (status.ok()) return;
    LogWarning("notification not delivered", {{"by", how}, {"try", tries}, {"error", status.ToString()}});
    if (tries == kTries || !WaitUnlessClosing(pause)) return;
  }
}

bool HookAnnouncer::WaitUnlessClosing(absl::Duration time) {
  absl::MutexLock lock(&mutex_);
  return !mutex_.AwaitWithTimeout(absl::Condition(&closing_), time);
}

absl::Status HookAnnouncer::RunHook(const Event& event) const {
  ProcessOptions options{.argv = {"/bin/sh", "-c", options_.command}};
  options.environment = {{"STILL_EVENT", EventName(event.kind)},
                         {"STILL_SCHEDULE", event.schedule},
                         {"STILL_SESSION", event.session},
                         {"STILL_MESSAGE", event.message},
                         {"STILL_JSON", EventJson(event)}};
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand(std::move(options), kCommandTimeout));
  if (output.exit.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the command ended with ", output.exit.ToString()));
}

absl::Status HookAnnouncer::Post(const Event& event) const {
  std::unique_ptr<CURL, decltype(&::curl_easy_cleanup)> handle(::curl_easy_init(), &::curl_easy_cleanup);
  if (handle == nullptr) return absl::ResourceExhaustedError("curl_easy_init");
  const std::string body = EventJson(event);
  std::unique_ptr<curl_slist, decltype(&::curl_slist_free_all)> headers(
      ::curl_slist_append(nullptr, "Content-Type: application/json"), &::curl_slist_free_all);
  char error[CURL_ERROR_SIZE] = {};
  ::curl_easy_setopt(handle.get(), CURLOPT_URL, options_.webhook.c_str());
  ::curl_easy_setopt(handle.get(), CURLOPT_PROTOCOLS_STR, "http,https");
  ::curl_easy_setopt(handle.get(), CURLOPT_HTTPHEADER, headers.get());
  ::curl_easy_setopt(handle.get(), CURLOPT_POSTFIELDS, body.c_str());
  ::curl_easy_setopt(handle.get(), CURLOPT_TIMEOUT_MS, kWebhookTimeoutMs);
  ::curl_easy_setopt(handle.get(), CURLOPT_NOSIGNAL, 1L);
  ::curl_easy_setopt(handle.get(), CURLOPT_WRITEFUNCTION, &Discard);
  ::curl_easy_setopt(handle.get(), CURLOPT_ERRORBUFFER, error);
  CURLcode code = ::curl_easy_perform(handle.get());
  if (code != CURLE_OK) return absl::UnavailableError(absl::StrCat(::curl_easy_strerror(code), " ", error));
  long answer = 0;  // NOLINT: libcurl's type.
  ::curl_easy_getinfo(handle.get(), CURLINFO_RESPONSE_CODE, &answer);
  if (answer >= 200 && answer < 300) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the receiver answered ", answer));
}

}  // namespace still::schedule
