#include "tools/still/format.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cctype>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/clean_text.h"
#include "base/quantity.h"
#include "tools/still/table.h"

namespace still::cli {
namespace {

constexpr size_t kMaxPrinted = 16'384;

bool IsCapitals(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isupper(c) != 0; });
}

using google::protobuf::FieldDescriptor;

// protobuf writes numbers of 64 bits as strings; what we write ourselves are numbers, and so are these.
void MakeNumber(const FieldDescriptor& field, nlohmann::json& value) {
  if (!value.is_string()) return;
  const auto& text = value.get_ref<const std::string&>();
  int64_t number = 0;
  uint64_t natural = 0;
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 && absl::SimpleAtoi(text, &number)) value = number;
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64 && absl::SimpleAtoi(text, &natural)) value = natural;
}

void MakeNumbers(const google::protobuf::Descriptor& message, nlohmann::json& json);

void MakeNumbersIn(const FieldDescriptor& field, nlohmann::json& value) {
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) return MakeNumbers(*field.message_type(), value);
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 || field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64) {
    MakeNumber(field, value);
  }
}

void MakeNumbers(const google::protobuf::Descriptor& message, nlohmann::json& json) {
  if (!json.is_object()) return;
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const auto found = json.find(field.name());
    if (found == json.end()) continue;
    if (field.is_map()) {
      for (auto& value : *found) MakeNumbersIn(*field.message_type()->map_value(), value);
    } else if (field.is_repeated()) {
      for (auto& value : *found) MakeNumbersIn(field, value);
    } else {
      MakeNumbersIn(field, *found);
    }
  }
}

}  // namespace

std::string FormatBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0 || value >= 100) return absl::StrFormat("%.0f %s", value, kUnits[unit]);
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string FormatMicros(uint64_t microseconds) {
  auto value = static_cast<double>(microseconds);
  if (microseconds < 1000) return absl::StrCat(microseconds, " us");
  if (microseconds < 1'000'000) return absl::StrFormat("%.1f ms", value / 1e3);
  return absl::StrFormat("%.1f s", value / 1e6);
}

std::string FormatSeconds(double seconds) {
  constexpr double kForever = 1e9;  // Beyond thirty years nobody waits; and it stays within the integers below.
  if (!(seconds < kForever)) return "ages";
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return absl::StrCat(whole, " s");
  if (whole < 3600) return absl::StrFormat("%dm%02ds", whole / 60, whole % 60);
  return absl::StrFormat("%dh%02dm", whole / 3600, whole % 3600 / 60);
}

std::string FormatUnixNanos(int64_t nanoseconds) {
  if (nanoseconds == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixNanos(nanoseconds), absl::LocalTimeZone());
}

absl::StatusOr<absl::Duration> ParseDurationFlag(const std::string& text) {
  uint32_t seconds;
  if (text == "0" || !absl::SimpleAtoi(text, &seconds)) return ParseDuration(text);
  std::fprintf(stderr, "hint: write the duration %s as %ss; a later version will want the unit\n", text.c_str(),
               text.c_str());
  return absl::Seconds(seconds);
}

void HintAt(const std::string& old_spelling, const std::string& new_spelling) {
  std::fprintf(stderr, "hint: write %s instead of %s, which a later version will not take\n", new_spelling.c_str(),
               old_spelling.c_str());
}

absl::Status ParsePatience(const std::string& text, snapshot::AgentPatience& patience) {
  if (text.empty()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(absl::Duration limit, ParseDurationFlag(text));
  patience = {.answer = limit, .ready = limit};
  return absl::OkStatus();
}

std::string Printable(const std::string& text) { return CleanText(text, kMaxPrinted); }

std::string PrintableLines(absl::string_view text) { return CleanLines(text, kMaxPrinted); }

std::string FormatTable(const std::vector<std::vector<std::string>>& rows) {
  Table table;
  for (const std::vector<std::string>& row : rows) {
    const bool heading = table.empty() && std::all_of(row.begin(), row.end(), IsCapitals);
    std::vector<Cell> cells;
    for (const std::string& text : row) cells.emplace_back(text, heading ? Tone::kHeading : Tone::kPlain);
    table.Add(std::move(cells));
  }
  return table.ForTerminal();
}

nlohmann::json ToJson(const google::protobuf::Message& message) {
  std::string text;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  STILL_CHECK(google::protobuf::util::MessageToJsonString(message, &text, options).ok());
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  MakeNumbers(*message.GetDescriptor(), json);
  return json;
}

}  // namespace still::cli
