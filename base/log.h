// Structured log lines on stderr: "2026-11-21T23:00:00.123Z W freeze lease lost session=web1 age_ms=5012".
//
// With STILL_LOG=json each line is one JSON object with the same keys. STILL_LOG_LEVEL=debug|info|warning|error
// (default warning in the command, info in the long-lived programs: SetLogLevel). Thread-safe; one write(2) a line.
#pragma once

#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace still {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// The level used when STILL_LOG_LEVEL says nothing.
void SetLogLevel(LogLevel level);

// Where finished lines (with their newline) go instead of stderr; null: stderr. For a program that may not write at all
// times. Set once, before other threads log.
void SetLogSink(void (*sink)(absl::string_view line));

struct LogField {
  absl::string_view key;
  absl::AlphaNum value;
};
using LogFields = std::initializer_list<LogField>;

// `message` is constant text: what varies goes into fields, so that lines can be counted and searched.
void Log(LogLevel level, absl::string_view message, LogFields fields = {});
inline void LogDebug(absl::string_view message, LogFields fields = {}) { Log(LogLevel::kDebug, message, fields); }
inline void LogInfo(absl::string_view message, LogFields fields = {}) { Log(LogLevel::kInfo, message, fields); }
inline void LogWarning(absl::string_view message, LogFields fields = {}) { Log(LogLevel::kWarning, message, fields); }
inline void LogError(absl::string_view message, LogFields fields = {}) { Log(LogLevel::kError, message, fields); }

}  // namespace still
