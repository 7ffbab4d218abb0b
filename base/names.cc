#include "base/names.h"

#include <algorithm>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clean_text.h"
#include "base/code_point.h"
#include "base/hex.h"
#include "base/name_match.h"

namespace still {
namespace {

constexpr size_t kIdDigits = 32;
constexpr size_t kEscape = 4;  // "\xNN"
// With a meaning of their own: SESSION@latest, SNAPSHOT:DISK, HOST/SESSION@latest, and patterns.
constexpr absl::string_view kOfReferences = "@:/*?";

bool BeginsWithEscape(absl::string_view text) {
  return text.size() >= kEscape && text[0] == '\\' && text[1] == 'x' &&
         absl::ascii_isxdigit(static_cast<unsigned char>(text[2])) &&
         absl::ascii_isxdigit(static_cast<unsigned char>(text[3]));
}

bool LooksLikeId(absl::string_view name) {
  return name.size() == kIdDigits && std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isxdigit(static_cast<unsigned char>(c)) &&
                  !absl::ascii_isupper(static_cast<unsigned char>(c));
         });
}

}  // namespace

bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const size_t length = FirstCodePoint(text).bytes;
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string EscapeName(absl::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const size_t length = FirstCodePoint(bytes).bytes;
    if (length == 0 || BeginsWithEscape(bytes)) {
      absl::StrAppend(&out, "\\x", absl::BytesToHexString(bytes.substr(0, 1)));
      bytes.remove_prefix(1);
      continue;
    }
    absl::StrAppend(&out, bytes.substr(0, length));
    bytes.remove_prefix(length);
  }
  return out;
}

std::string UnescapeName(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    if (BeginsWithEscape(text)) {
      out += BytesFromHex(text.substr(2, 2)).value_or("");
      text.remove_prefix(kEscape);
      continue;
    }
    out += text[0];
    text.remove_prefix(1);
  }
  return out;
}

absl::Status CheckText(absl::string_view what, absl::string_view text) {
  if (!IsUtf8(text)) {
    return absl::InvalidArgumentError(absl::StrCat(what, " ", Quoted(text), ": it is not UTF-8; write it in UTF-8"));
  }
  if (CleanText(text, std::numeric_limits<size_t>::max()) != text) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", Quoted(text), ": it has control characters, which could not be shown; leave them out"));
  }
  return absl::OkStatus();
}

absl::Status CheckNewName(absl::string_view kind, absl::string_view name) {
  const std::string what = absl::StrCat(kind, " name");
  const auto refused = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(what, " ", Quoted(name.substr(0, kMaxNewName)), ": ", why));
  };
  if (name.empty()) return refused("it is empty");
  if (name.size() > kMaxNewName) return refused(absl::StrCat("it is longer than ", kMaxNewName, " bytes"));
  STILL_RETURN_IF_ERROR(CheckText(what, name));
  if (name == "latest") return refused("it means the newest one; choose another");
  if (name[0] == '-') return refused("what begins with - is taken for an option; choose another");
  if (const size_t at = name.find_first_of(kOfReferences); at != absl::string_view::npos) {
    return refused(absl::StrCat("no reference could reach it, because ", name.substr(at, 1),
                                " has a meaning of its own there; leave it out"));
  }
  if (LooksLikeId(name)) return refused("it looks like an id; choose another");
  return absl::OkStatus();
}

}  // namespace still
