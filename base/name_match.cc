#include "base/name_match.h"

#include <algorithm>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace still {
namespace {

constexpr size_t kMaxListed = 6;
// Longer ones are not compared: time goes with the product of the lengths.
constexpr size_t kMaxCompared = 256;

// Damerau's distance in its simple form: two neighbours that are swapped count once, and are not edited again.
size_t Distance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> before_last(b.size() + 1);
  std::vector<size_t> last(b.size() + 1);
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last.swap(last);
    last.swap(row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t changed = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({changed, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

}  // namespace

std::string Quoted(absl::string_view text) { return absl::StrCat("\"", absl::CHexEscape(text), "\""); }

std::string NearestName(absl::string_view typed, absl::Span<const std::string> names) {
  std::string nearest;
  size_t best = typed.size() < 2 ? 0 : std::max<size_t>(1, typed.size() / 3);
  if (typed.size() > kMaxCompared) return nearest;
  for (const std::string& name : names) {
    if (name.size() > kMaxCompared) continue;
    const size_t distance = Distance(typed, name);
    // Of equally near ones the first.
    if (distance < best || (distance == best && nearest.empty())) {
      nearest = name;
      best = distance;
    }
  }
  return nearest;
}

std::string DidYouMean(absl::string_view typed, absl::Span<const std::string> names) {
  const std::string nearest = NearestName(typed, names);
  return nearest.empty() ? "" : absl::StrCat("; did you mean ", Quoted(nearest), "?");
}

std::string ListSome(absl::Span<const std::string> names) {
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kMaxListed); ++i) {
    absl::StrAppend(&out, i == 0 ? "" : ", ", absl::CHexEscape(names[i]));
  }
  if (names.size() > kMaxListed) absl::StrAppend(&out, " and ", names.size() - kMaxListed, " more");
  return out;
}

absl::Status NoSuchName(absl::string_view kind, absl::string_view typed, absl::Span<const std::string> names) {
  const std::string meant = DidYouMean(typed, names);
  if (!meant.empty()) return absl::NotFoundError(absl::StrCat("no ", kind, " ", Quoted(typed), meant));
  return absl::NotFoundError(
      absl::StrCat("no ", kind, " ", Quoted(typed), "; there ", names.empty() ? "is none" : "are: ", ListSome(names)));
}

absl::StatusOr<std::string> ResolveName(absl::string_view kind, absl::string_view typed,
                                        absl::Span<const std::string> names) {
  std::vector<std::string> candidates;
  for (const std::string& name : names) {
    if (name == typed) return name;
    if (!typed.empty() && absl::StartsWith(name, typed)) candidates.push_back(name);
  }
  if (candidates.size() == 1) return candidates[0];
  if (!candidates.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(kind, " ", Quoted(typed), ": several begin like this: ", ListSome(candidates)));
  }
  return NoSuchName(kind, typed, names);
}

}  // namespace still
