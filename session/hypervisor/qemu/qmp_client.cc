#include "session/hypervisor/qemu/qmp_client.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr size_t kReadBytes = 64 << 10;

absl::Status StatusOfError(const json& error) {
  std::string text = TextAt(error, "desc");
  std::string error_class = TextAt(error, "class");
  if (error_class == "CommandNotFound") return absl::UnimplementedError(text);
  if (error_class == "DeviceNotFound") return absl::NotFoundError(text);
  return absl::FailedPreconditionError(text);
}

absl::Time TimeOfEvent(const json& message) {
  const json& stamp = Member(message, "timestamp");
  const json& seconds = Member(stamp, "seconds");
  const json& microseconds = Member(stamp, "microseconds");
  if (!seconds.is_number_integer() || !microseconds.is_number_integer()) return absl::UnixEpoch();
  return absl::FromUnixSeconds(seconds.get<int64_t>()) + absl::Microseconds(microseconds.get<int64_t>());
}

absl::Status SendAll(int socket, absl::string_view data) {
  while (!data.empty()) {
    ssize_t sent = ::send(socket, data.data(), data.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return ErrnoStatus(errno, "write the QMP socket");
    data.remove_prefix(static_cast<size_t>(sent));
  }
  return absl::OkStatus();
}

}  // namespace

const json& Member(const json& object, const char* key) {
  static const json* const null = new json;
  if (!object.is_object()) return *null;
  auto found = object.find(key);
  return found == object.end() ? *null : *found;
}

std::string TextAt(const json& object, const char* key) {
  const json& member = Member(object, key);
  return member.is_string() ? member.get<std::string>() : std::string();
}

uint64_t NumberAt(const json& object, const char* key) {
  const json& value = Member(object, key);
  return value.is_number_unsigned() ? value.get<uint64_t>() : 0;
}

struct QmpSubscription::Queue {
  explicit Queue(std::vector<std::string> event_names) : names(std::move(event_names)) {}

  const std::vector<std::string> names;
  absl::Mutex mutex;
  std::deque<QmpEvent> events ABSL_GUARDED_BY(mutex);
  absl::Status lost ABSL_GUARDED_BY(mutex);
  bool dropping ABSL_GUARDED_BY(mutex) = false;  // It has been logged once.

  bool Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return !events.empty() || !lost.ok(); }
};

absl::StatusOr<QmpEvent> QmpSubscription::Next(absl::Duration timeout) {
  absl::MutexLock lock(&queue_->mutex);
  queue_->mutex.AwaitWithTimeout(absl::Condition(queue_.get(), &Queue::Ready), timeout);
  if (!queue_->events.empty()) {
    QmpEvent event = std::move(queue_->events.front());
    queue_->events.pop_front();
    return event;
  }
  if (!queue_->lost.ok()) return queue_->lost;
  return absl::DeadlineExceededError(
      absl::StrCat("no event ", queue_->names.front(), " within ", absl::FormatDuration(timeout)));
}

absl::StatusOr<std::unique_ptr<QmpClient>> QmpClient::Connect(OwnedFd socket, Options options) {
  absl::Duration deadline = options.handshake_deadline;
  std::unique_ptr<QmpClient> client(new QmpClient(std::move(socket), std::move(options)));
  // A QEMU that has not read hundreds of kilobytes of commands for this long will not answer either.
  timeval send_timeout{.tv_sec = 5, .tv_usec = 0};
  if (::setsockopt(client->socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &send_timeout, sizeof send_timeout) != 0) {
    return ErrnoStatus(errno, "set the time-out of the QMP socket");
  }
  QmpClient* raw = client.get();
  client->reader_ = std::thread([raw] { raw->ReadLoop(); });
  absl::Time start = absl::Now();
  {
    absl::MutexLock lock(&client->mutex_);
    auto greeted_or_lost = [raw]()
                               ABSL_EXCLUSIVE_LOCKS_REQUIRED(raw->mutex_) { return raw->greeted_ || !raw->lost_.ok(); };
    if (!client->mutex_.AwaitWithTimeout(absl::Condition(&greeted_or_lost), deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat("the hypervisor did not greet within ", absl::FormatDuration(deadline)));
    }
    if (!client->lost_.ok()) return client->lost_;
  }
  absl::Duration left = std::max(deadline - (absl::Now() - start), absl::Milliseconds(100));
  STILL_RETURN_IF_ERROR(client->Run("qmp_capabilities", json::object(), left));
  return client;
}

QmpClient::~QmpClient() {
  ::shutdown(socket_.get(), SHUT_RDWR);
  if (reader_.joinable()) reader_.join();
}

absl::StatusOr<json> QmpClient::Execute(absl::string_view command, const json& arguments, absl::Duration deadline) {
  return Send(command, arguments, -1, deadline);
}

absl::Status QmpClient::Run(absl::string_view command, const json& arguments, absl::Duration deadline) {
  return Send(command, arguments, -1, deadline).status();
}

absl::Status QmpClient::RunWithFd(absl::string_view command, const json& arguments, int fd, absl::Duration deadline) {
  return Send(command, arguments, fd, deadline).status();
}

absl::StatusOr<uint64_t> QmpClient::SendLine(json message, int fd, const std::shared_ptr<Call>& call) {
  absl::MutexLock send_lock(&send_mutex_);
  uint64_t id;
  {
    absl::MutexLock lock(&mutex_);
    if (!lost_.ok()) return lost_;
    id = next_id_++;
    if (call != nullptr) calls_[id] = call;
  }
  message["id"] = id;
  // A path may hold any bytes; what is not UTF-8 is replaced rather than thrown about.
  std::string line = message.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  absl::Status sent = fd >= 0 ? SendWithFd(socket_.get(), line, fd) : SendAll(socket_.get(), line);
  if (!sent.ok()) Lose(sent);
  return id;
}

absl::StatusOr<json> QmpClient::Send(absl::string_view command, const json& arguments, int fd,
                                     absl::Duration deadline) {
  json message = {{"execute", std::string(command)}};
  if (!arguments.is_null() && !arguments.empty()) message["arguments"] = arguments;
  auto call = std::make_shared<Call>();
  absl::StatusOr<uint64_t> id = SendLine(std::move(message), fd, call);
  if (!id.ok()) return Annotate(id.status(), command);
  absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithTimeout(absl::Condition(&call->done), deadline)) {
    calls_.erase(*id);
    return absl::DeadlineExceededError(absl::StrCat(command, ": no answer within ", absl::FormatDuration(deadline)));
  }
  if (!call->result.ok()) return Annotate(call->result.status(), command);
  return std::move(call->result);
}

void QmpClient::Post(absl::string_view command) {
  // When the socket is lost there is nobody to tell.
  (void)SendLine({{"execute", std::string(command)}}, -1, nullptr);
}

QmpSubscription QmpClient::Subscribe(std::vector<std::string> event_names) {
  STILL_CHECK(!event_names.empty());
  auto queue = std::make_shared<QmpSubscription::Queue>(std::move(event_names));
  absl::MutexLock lock(&mutex_);
  std::erase_if(subscriptions_, [](const auto& weak) { return weak.expired(); });
  subscriptions_.push_back(queue);
  if (!lost_.ok()) {
    absl::MutexLock queue_lock(&queue->mutex);
    queue->lost = lost_;
  }
  return QmpSubscription(std::move(queue));
}

bool QmpClient::connected() const {
  absl::MutexLock lock(&mutex_);
  return lost_.ok();
}

void QmpClient::ReadLoop() {
  std::string buffer;
  size_t searched = 0;
  for (;;) {
    size_t held = buffer.size();
    buffer.resize(held + kReadBytes);
    ssize_t got = ::recv(socket_.get(), buffer.data() + held, kReadBytes, 0);
    buffer.resize(held + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Lose(ErrnoStatus(errno, "read the QMP socket"));
    if (got == 0) return Lose(absl::UnavailableError("the hypervisor closed its QMP socket"));
    size_t begin = 0;
    for (size_t end; (end = buffer.find('\n', std::max(begin, searched))) != std::string::npos; begin = end + 1) {
      absl::Status handled = HandleLine(absl::string_view(buffer).substr(begin, end - begin));
      if (!handled.ok()) return Lose(handled);
    }
    buffer.erase(0, begin);
    searched = buffer.size();
    if (buffer.size() > kMaxLineBytes) return Lose(absl::UnavailableError("QMP line longer than 4 MiB"));
  }
}

absl::Status QmpClient::HandleLine(absl::string_view line) {
  if (line.find_first_not_of(" \r") == absl::string_view::npos) return absl::OkStatus();
  json message = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!message.is_object()) return absl::UnavailableError("QMP line is not a JSON object");
  if (message.contains("QMP")) {
    absl::MutexLock lock(&mutex_);
    greeted_ = true;
  } else if (message.contains("event")) {
    HandleEvent(message);
  } else {
    HandleAnswer(message);
  }
  return absl::OkStatus();
}

void QmpClient::HandleEvent(const json& message) {
  QmpEvent event{.name = TextAt(message, "event"), .data = Member(message, "data"), .time = TimeOfEvent(message)};
  if (!event.data.is_object()) event.data = json::object();
  if (options_.on_event) options_.on_event(event);
  absl::MutexLock lock(&mutex_);
  for (const auto& weak : subscriptions_) {
    auto queue = weak.lock();
    if (queue == nullptr || std::find(queue->names.begin(), queue->names.end(), event.name) == queue->names.end()) {
      continue;
    }
    absl::MutexLock queue_lock(&queue->mutex);
    if (queue->events.size() >= kMaxQueuedEvents) {
      if (!std::exchange(queue->dropping, true)) LogWarning("QMP events are dropped", {{"event", event.name}});
      continue;
    }
    queue->events.push_back(event);
  }
}

void QmpClient::HandleAnswer(const json& message) {
  const json& id = Member(message, "id");
  absl::MutexLock lock(&mutex_);
  // An answer without a known id is one whose caller has given up.
  if (!id.is_number_unsigned()) return;
  auto found = calls_.find(id.get<uint64_t>());
  if (found == calls_.end()) return;
  Call& call = *found->second;
  if (message.contains("error")) {
    call.result = StatusOfError(message["error"]);
  } else if (message.contains("return")) {
    call.result = message["return"];
  } else {
    call.result = absl::InternalError("QMP answer with neither return nor error");
  }
  call.done = true;
  calls_.erase(found);
}

void QmpClient::Lose(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  if (!lost_.ok()) return;
  lost_ = absl::UnavailableError(absl::StrCat("the hypervisor is gone: ", why.message()));
  for (auto& [id, call] : calls_) {
    call->result = lost_;
    call->done = true;
  }
  calls_.clear();
  for (const auto& weak : subscriptions_) {
    auto queue = weak.lock();
    if (queue == nullptr) continue;
    absl::MutexLock queue_lock(&queue->mutex);
    queue->lost = lost_;
  }
  // Whoever still writes gets an error instead of a full buffer.
  ::shutdown(socket_.get(), SHUT_RDWR);
}

}  // namespace still::session
