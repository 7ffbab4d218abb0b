#include "base/clean_text.h"

#include <cstdint>

#include "absl/strings/str_format.h"
#include "base/code_point.h"

namespace still {
namespace {

constexpr absl::string_view kCut = "...";

bool Harmless(uint32_t value) {
  if (value < 0x20 || (value >= 0x7f && value <= 0x9f)) return false;  // C0, DEL, C1.
  if (value == 0x200e || value == 0x200f || value == 0xfeff) return false;
  if (value >= 0x2028 && value <= 0x202e) return false;  // Separators of lines, embeddings and overrides.
  if (value >= 0x2066 && value <= 0x2069) return false;  // Isolates.
  return value < 0xe0000 || value > 0xe007f;             // Tags.
}

std::string Escaped(absl::string_view bytes) {
  if (bytes == "\n") return "\\n";
  if (bytes == "\r") return "\\r";
  if (bytes == "\t") return "\\t";
  std::string out;
  for (char c : bytes) absl::StrAppendFormat(&out, "\\x%02x", static_cast<uint8_t>(c));
  return out;
}

}  // namespace

std::string CleanText(absl::string_view text, size_t limit) {
  std::string out;
  size_t room_for_cut = 0;  // How much of `out` may stay when it has to be cut.
  while (!text.empty()) {
    const CodePoint next = FirstCodePoint(text);
    const absl::string_view bytes = text.substr(0, next.bytes == 0 ? 1 : next.bytes);
    const std::string part = next.bytes != 0 && Harmless(next.value) ? std::string(bytes) : Escaped(bytes);
    if (out.size() + part.size() > limit) {
      out.resize(room_for_cut);
      return out.append(kCut.data(), kCut.size());
    }
    out += part;
    if (out.size() + kCut.size() <= limit) room_for_cut = out.size();
    text.remove_prefix(bytes.size());
  }
  return out;
}

std::string CleanLines(absl::string_view text, size_t limit) {
  std::string out;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    absl::string_view line = text.substr(0, end);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    out += CleanText(line, limit);
    if (end == absl::string_view::npos) break;
    out += '\n';
    text.remove_prefix(end + 1);
  }
  return out;
}

}  // namespace still
