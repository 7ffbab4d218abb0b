// How the command shows sizes, times and tables.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "snapshot/restore.h"

namespace google::protobuf {
class Message;
}

namespace still::cli {

// "0 B", "512 KiB", "1.3 GiB".
std::string FormatBytes(uint64_t bytes);
// "340 us", "21.4 ms", "1.3 s".
std::string FormatMicros(uint64_t microseconds);
// "25 s", "3m20s", "5h07m": for estimates.
std::string FormatSeconds(double seconds);
// Local time: "2026-11-21 23:05:11".
std::string FormatUnixNanos(int64_t nanoseconds);
// ParseDuration (base/quantity.h) for a flag. A bare number, which older versions took for seconds, is still taken so,
// with a hint on standard error.
absl::StatusOr<absl::Duration> ParseDurationFlag(const std::string& text);
// On standard error: that an old spelling was used, and what it is called now. It is taken for one more release.
void HintAt(const std::string& old_spelling, const std::string& new_spelling);
// --agent-timeout: bounds the answer and the identity alike. Empty: `patience` stays as it is.
absl::Status ParsePatience(const std::string& text, snapshot::AgentPatience& patience);

// A plain table for standard output as it is (table.h). A first row all in capitals is its heading.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);
// Control characters (names may come from a guest) become '?'.
std::string Printable(const std::string& text);
// The same for each line of a text.
std::string PrintableLines(absl::string_view text);

// The message's protobuf JSON, with the field names of the .proto file, and with numbers of 64 bits as numbers.
nlohmann::json ToJson(const google::protobuf::Message& message);

}  // namespace still::cli
