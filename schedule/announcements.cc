#include "schedule/announcements.h"

#include <curl/curl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/host_identity.h"
#include "base/log.h"
#include "base/process.h"

namespace still::schedule {
namespace {

constexpr absl::Duration kCommandTimeout = absl::Seconds(60);
constexpr long kWebhookTimeoutMs = 10'000;  // NOLINT: libcurl's type.

constexpr absl::string_view kJournal = "journal";

size_t Discard(char*, size_t size, size_t count, void*) { return size * count; }

// GET, or POST of JSON.
absl::Status Call(const std::string& url, const std::optional<std::string>& body) {
  std::unique_ptr<CURL, decltype(&::curl_easy_cleanup)> handle(::curl_easy_init(), &::curl_easy_cleanup);
  if (handle == nullptr) return absl::ResourceExhaustedError("curl_easy_init");
  std::unique_ptr<curl_slist, decltype(&::curl_slist_free_all)> headers(
      ::curl_slist_append(nullptr, "Content-Type: application/json"), &::curl_slist_free_all);
  char error[CURL_ERROR_SIZE] = {};
  ::curl_easy_setopt(handle.get(), CURLOPT_URL, url.c_str());
  ::curl_easy_setopt(handle.get(), CURLOPT_PROTOCOLS_STR, "http,https");
  if (body.has_value()) {
    ::curl_easy_setopt(handle.get(), CURLOPT_HTTPHEADER, headers.get());
    ::curl_easy_setopt(handle.get(), CURLOPT_POSTFIELDS, body->c_str());
  }
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

// One line of a header: ASCII without control characters.
std::string HeaderText(absl::string_view text) {
  std::string line;
  for (char c : text) line += c >= ' ' && c < 0x7f ? c : '?';
  return line;
}

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

std::string EventMail(const Event& event, const std::string& to) {
  const std::string about = event.session.empty() ? event.schedule : event.session;
  return absl::StrCat("To: ", HeaderText(to), "\nSubject: stillpoint on ", HeaderText(HostName()), ": ",
                      event.about.empty() ? "" : HeaderText(event.about + " is over "), EventName(event.kind), " ",
                      HeaderText(about), "\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n",
                      event.message, "\n\n", EventJson(event), "\n");
}

AnnouncerOptions AnnouncerOptions::FromEnvironment() {
  const auto setting = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  AnnouncerOptions options{.command = setting("STILL_NOTIFY_COMMAND"),
                           .webhook = setting("STILL_WEBHOOK"),
                           .mail_to = setting("STILL_MAIL_TO"),
                           .ping = setting("STILL_PING")};
  if (std::string program = setting("STILL_SENDMAIL"); !program.empty()) options.sendmail = program;
  return options;
}

// One way out, with its thread.
class HookAnnouncer::Channel {
 public:
  using Carry = std::function<absl::Status(const Event& event)>;
  using Report = std::function<void(const Delivery& delivery, const absl::Status& status)>;
  Channel(std::string name, Carry carry, Report report)
      : name_(std::move(name)), carry_(std::move(carry)), report_(std::move(report)) {
    thread_ = std::thread([this] { Work(); });
  }
  ~Channel() {
    closing_ = true;
    waiting_.Close();
    thread_.join();
  }
  const std::string& name() const { return name_; }
  // Never waits: Alerts has one delivery of an alert under way, and what does not fit fails, to be tried again.
  void Push(const Delivery& delivery) {
    if (count_.fetch_add(1) >= kMostWaiting) {
      --count_;
      report_(delivery, absl::ResourceExhaustedError("too many alerts wait"));
      return;
    }
    waiting_.Push(delivery);
  }

 private:
  static constexpr size_t kMostWaiting = 1000;
  void Work() {
    while (std::optional<Delivery> delivery = waiting_.Pop()) {
      if (!closing_) report_(*delivery, carry_(delivery->event));
      --count_;
    }
  }

  const std::string name_;
  const Carry carry_;
  const Report report_;
  std::atomic<bool> closing_ = false;
  std::atomic<size_t> count_ = 0;
  BoundedQueue<Delivery> waiting_{kMostWaiting};
  std::thread thread_;
};

HookAnnouncer::HookAnnouncer(AnnouncerOptions options) : options_(std::move(options)) {
  // Once for the process, before threads use it; it is harmless to do it again.
  ::curl_global_init(CURL_GLOBAL_DEFAULT);
  const auto add = [this](const char* name, Channel::Carry carry) {
    channels_.push_back(std::make_unique<Channel>(
        name, std::move(carry), [this](const Delivery& of, const absl::Status& status) { Done(of, status); }));
  };
  if (!options_.command.empty()) add("command", [this](const Event& event) { return RunHook(event); });
  if (!options_.webhook.empty()) add("webhook", [this](const Event& event) { return Post(event); });
  if (!options_.mail_to.empty()) add("mail", [this](const Event& event) { return Mail(event); });
  if (!options_.ping.empty()) {
    ping_ = std::make_unique<Channel>(
        "ping", [this](const Event&) { return Ping(); },
        [](const Delivery&, const absl::Status& status) {
          // Whoever waits for it is alarmed by its absence.
          if (!status.ok()) LogWarning("the ping was not taken", {{"error", status.ToString()}});
        });
  }
}

HookAnnouncer::~HookAnnouncer() = default;

std::vector<Announcer::Outcome> TellOnce(const AnnouncerOptions& options, const Event& event) {
  HookAnnouncer announcer(options);
  const std::vector<std::string> channels = announcer.Channels();
  for (const std::string& channel : channels) announcer.Deliver({.key = "", .channel = channel, .event = event});
  // Each has a time limit of its own.
  std::vector<Announcer::Outcome> all;
  while (all.size() < channels.size()) {
    for (Announcer::Outcome& outcome : announcer.TakeOutcomes()) all.push_back(std::move(outcome));
    if (all.size() < channels.size()) Clock::Real().Sleep(absl::Milliseconds(50));
  }
  return all;
}

std::vector<std::string> HookAnnouncer::Channels() const {
  std::vector<std::string> names;
  for (const auto& channel : channels_) names.push_back(channel->name());
  if (names.empty()) names.emplace_back(kJournal);
  return names;
}

void HookAnnouncer::Deliver(const Delivery& delivery) {
  for (const auto& channel : channels_) {
    if (channel->name() == delivery.channel) return channel->Push(delivery);
  }
  // Nothing else is configured: whoever reads the journal is told.
  const LogLevel level = delivery.event.kind == Event::Kind::kRecovered ? LogLevel::kInfo : LogLevel::kError;
  Log(level, "alert told",
      {{"event", EventName(delivery.event.kind)},
       {"schedule", delivery.event.schedule},
       {"session", delivery.event.session},
       {"message", delivery.event.message}});
  Done(delivery, absl::OkStatus());
}

void HookAnnouncer::Done(const Delivery& delivery, const absl::Status& status) {
  if (!status.ok()) {
    LogWarning("notification not delivered", {{"by", delivery.channel}, {"error", status.ToString()}});
  }
  absl::MutexLock lock(&mutex_);
  outcomes_.push_back({.key = delivery.key,
                       .channel = delivery.channel,
                       .recovery = delivery.event.kind == Event::Kind::kRecovered,
                       .delivered = status.ok()});
}

std::vector<Announcer::Outcome> HookAnnouncer::TakeOutcomes() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(outcomes_, {});
}

void HookAnnouncer::AllWell() {
  if (ping_ == nullptr) return;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = Clock::Real().Monotonic();
    if (now - pinged_ < options_.ping_every) return;
    pinged_ = now;
  }
  ping_->Push({.key = "", .channel = "ping", .event = {}});
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

absl::Status HookAnnouncer::Mail(const Event& event) const {
  // A file rather than a pipe: a program that reads nothing must not hold us up.
  OwnedFd letter(::memfd_create("still-mail", MFD_CLOEXEC));
  if (!letter.valid()) return ErrnoStatus(errno, "memfd_create");
  const std::string text = EventMail(event, options_.mail_to);
  STILL_RETURN_IF_ERROR(WriteAll(letter.get(), text.data(), text.size(), "the mail"));
  if (::lseek(letter.get(), 0, SEEK_SET) != 0) return ErrnoStatus(errno, "rewind the mail");
  ProcessOptions options{.argv = {options_.sendmail, "-t", "-i"}, .stdin_fd = letter.get()};
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand(std::move(options), kCommandTimeout));
  if (output.exit.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("sendmail ended with ", output.exit.ToString(), " ", output.stderr_text));
}

absl::Status HookAnnouncer::Post(const Event& event) const { return Call(options_.webhook, EventJson(event)); }

absl::Status HookAnnouncer::Ping() const { return Call(options_.ping, std::nullopt); }

}  // namespace still::schedule
