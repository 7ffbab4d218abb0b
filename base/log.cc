#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/clean_text.h"

namespace still {
namespace {

std::atomic<LogLevel> default_level{LogLevel::kWarning};
std::atomic<void (*)(absl::string_view)> log_sink{nullptr};

LogLevel Threshold() {
  const char* text = std::getenv("STILL_LOG_LEVEL");
  if (text == nullptr) return default_level;
  absl::string_view level(text);
  if (level == "debug") return LogLevel::kDebug;
  if (level == "info") return LogLevel::kInfo;
  if (level == "warning") return LogLevel::kWarning;
  if (level == "error") return LogLevel::kError;
  return default_level;
}

bool JsonWanted() {
  const char* text = std::getenv("STILL_LOG");
  return text != nullptr && absl::string_view(text) == "json";
}

// Beyond this a value is cut: no line can be used to fill a disk.
constexpr size_t kMaxValueBytes = 4096;

// A quoted string. What is in it was cleaned: log values may come from a hostile guest.
std::string QuotedValue(absl::string_view text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + "\"";
}

bool NeedsQuotes(absl::string_view text) {
  if (text.empty()) return true;
  for (unsigned char c : text) {
    if (c == ' ' || c == '"' || c == '\\' || c == '=') return true;
  }
  return false;
}

}  // namespace

void SetLogLevel(LogLevel level) { default_level = level; }

void SetLogSink(void (*sink)(absl::string_view line)) { log_sink = sink; }

void Log(LogLevel level, absl::string_view message, LogFields fields) {
  if (level < Threshold()) return;
  static constexpr absl::string_view kNames[] = {"debug", "info", "warning", "error"};
  absl::string_view name = kNames[static_cast<int>(level)];
  std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  std::string line;
  if (JsonWanted()) {
    absl::StrAppend(&line, "{\"time\":\"", time, "\",\"level\":\"", name, "\",\"message\":", QuotedValue(message));
    for (const LogField& field : fields)
      absl::StrAppend(&line, ",", QuotedValue(field.key), ":",
                      QuotedValue(CleanText(field.value.Piece(), kMaxValueBytes)));
    line += "}";
  } else {
    absl::StrAppend(&line, time, " ", std::string(1, static_cast<char>(name[0] - 'a' + 'A')), " ", message);
    for (const LogField& field : fields) {
      const std::string value = CleanText(field.value.Piece(), kMaxValueBytes);
      absl::StrAppend(&line, " ", field.key, "=", NeedsQuotes(value) ? QuotedValue(value) : value);
    }
  }
  line += "\n";
  if (auto* sink = log_sink.load()) return sink(line);
  // A log that cannot be written has nowhere to report it.
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace still
