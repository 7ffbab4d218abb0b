#include "base/quantity.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace still {
namespace {

constexpr absl::Duration kLongest = absl::Hours(24 * 365 * 100);
constexpr std::pair<absl::string_view, absl::Duration> kUnits[] = {
    {"ms", absl::Milliseconds(1)}, {"s", absl::Seconds(1)}, {"m", absl::Minutes(1)},
    {"h", absl::Hours(1)},         {"d", absl::Hours(24)},  {"w", absl::Hours(24 * 7)},
};

// Takes the longest beginning of `rest` that consists of such characters.
template <typename Predicate>
absl::string_view Take(absl::string_view& rest, Predicate wanted) {
  const auto end = std::find_if_not(rest.begin(), rest.end(), wanted);
  const absl::string_view taken = rest.substr(0, static_cast<size_t>(end - rest.begin()));
  rest.remove_prefix(taken.size());
  return taken;
}

bool IsNumeral(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)) || c == '.'; }
bool IsLetter(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)); }

}  // namespace

absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text) {
  const auto wrong = [text] {
    return absl::InvalidArgumentError(
        absl::StrCat("duration \"", text, "\": write it like 250ms, 30s, 15m, 6h, 7d, 2w or 1h30m"));
  };
  if (text == "0") return absl::ZeroDuration();
  absl::Duration sum;
  absl::string_view rest = text;
  do {
    double number;
    if (!absl::SimpleAtod(Take(rest, IsNumeral), &number)) return wrong();
    const absl::string_view letters = Take(rest, IsLetter);
    const auto unit =
        std::find_if(std::begin(kUnits), std::end(kUnits), [letters](const auto& u) { return u.first == letters; });
    if (unit == std::end(kUnits)) return wrong();
    sum += number * unit->second;
    if (sum > kLongest) return wrong();
  } while (!rest.empty());
  return sum;
}

std::string ShortDuration(absl::Duration duration) {
  std::string text;
  int64_t seconds = absl::ToInt64Seconds(duration);
  for (auto [size, unit] : {std::pair<int64_t, char>{86400, 'd'}, {3600, 'h'}, {60, 'm'}, {1, 's'}}) {
    if (seconds < size) continue;
    absl::StrAppend(&text, seconds / size, absl::string_view(&unit, 1));
    seconds %= size;
  }
  return text.empty() ? "0s" : text;
}

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  const auto wrong = [text] {
    return absl::InvalidArgumentError(absl::StrCat("size \"", text, "\": write it like 4096, 512M or 2G"));
  };
  absl::string_view rest = text;
  const absl::string_view digits =
      Take(rest, [](char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); });
  std::string unit = absl::AsciiStrToUpper(rest);
  int shift = 0;
  if (!unit.empty()) {
    const size_t power = absl::string_view("KMGTP").find(unit[0]);
    if (power == absl::string_view::npos || (unit.size() > 1 && unit.substr(1) != "IB")) return wrong();
    shift = 10 * (static_cast<int>(power) + 1);
  }
  uint64_t value = 0;
  if (!absl::SimpleAtoi(digits, &value) || (value << shift) >> shift != value) return wrong();
  return value << shift;
}

}  // namespace still
