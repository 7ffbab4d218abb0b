#include "tools/still/table.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

constexpr size_t kGap = 2;
constexpr size_t kMinColumn = 6;
constexpr size_t kMinProse = 20;  // The last column is only wrapped when this much is left for it.
constexpr absl::string_view kEllipsis = "…";

// SGR sequences (ECMA-48, 8.3.117).
const char* SequenceOf(Tone tone) {
  switch (tone) {
    case Tone::kGood:
      return "\x1b[32m";
    case Tone::kWarning:
      return "\x1b[33m";
    case Tone::kBad:
      return "\x1b[31m";
    case Tone::kFaint:
      return "\x1b[2m";
    case Tone::kHeading:
      return "\x1b[1m";
    case Tone::kPlain:
      break;
  }
  return "";
}

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

// The first `width` code points.
absl::string_view Beginning(absl::string_view text, size_t width) {
  size_t end = 0;
  for (; end < text.size(); ++end) {
    if (IsContinuation(text[end])) continue;
    if (width == 0) break;
    --width;
  }
  return text.substr(0, end);
}

std::string Cut(const std::string& text, size_t width) {
  if (DisplayWidth(text) <= width) return text;
  return absl::StrCat(Beginning(text, width - 1), kEllipsis);
}

// Lines of at most `width`, broken at blanks; words that are longer are cut.
std::vector<std::string> Wrap(const std::string& text, size_t width) {
  std::vector<std::string> lines = {""};
  for (absl::string_view word : absl::StrSplit(text, ' ')) {
    std::string& line = lines.back();
    if (line.empty()) {
      line = std::string(word);
    } else if (DisplayWidth(line) + 1 + DisplayWidth(word) <= width) {
      absl::StrAppend(&line, " ", word);
    } else {
      lines.emplace_back(word);
    }
  }
  for (std::string& line : lines) line = Cut(line, width);
  return lines;
}

size_t Total(const std::vector<size_t>& widths) {
  return std::accumulate(widths.begin(), widths.end(), kGap * (widths.empty() ? 0 : widths.size() - 1));
}

// Takes what is too much from the widest columns, one at a time, down to kMinColumn.
void Narrow(std::vector<size_t>& widths, size_t total, size_t count) {
  while (Total(widths) > total) {
    auto widest = std::max_element(widths.begin(), widths.begin() + static_cast<ptrdiff_t>(count));
    if (widest == widths.begin() + static_cast<ptrdiff_t>(count) || *widest <= kMinColumn) return;
    --*widest;
  }
}

void AppendLine(const std::vector<std::string>& texts, const std::vector<Cell>& row, const std::vector<size_t>& widths,
                const TableStyle& style, std::string& out) {
  size_t blanks = 0;  // Owed before the next text, so that a line does not end with them.
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!texts[i].empty()) {
      absl::StrAppend(&out, std::string(blanks, ' '), Coloured(texts[i], row[i].tone, style));
      blanks = 0;
    }
    blanks += widths[i] - DisplayWidth(texts[i]) + kGap;
  }
  out += '\n';
}

}  // namespace

size_t DisplayWidth(absl::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); }));
}

std::string Coloured(absl::string_view text, Tone tone, const TableStyle& style) {
  if (!style.colour || tone == Tone::kPlain) return std::string(text);
  return absl::StrCat(SequenceOf(tone), text, "\x1b[0m");
}

bool IsDumbTerminal() {
  const char* terminal = std::getenv("TERM");
  return terminal == nullptr || *terminal == '\0' || absl::string_view(terminal) == "dumb";
}

TableStyle TableStyle::Of(int fd) {
  TableStyle style;
  if (::isatty(fd) != 1) return style;
  const char* no_colour = std::getenv("NO_COLOR");
  style.colour = (no_colour == nullptr || *no_colour == '\0') && !IsDumbTerminal();
  winsize size{};
  if (::ioctl(fd, TIOCGWINSZ, &size) == 0) style.width = size.ws_col;
  uint32_t columns = 0;
  const char* chosen = std::getenv("COLUMNS");
  if (chosen != nullptr && absl::SimpleAtoi(chosen, &columns)) style.width = columns;
  return style;
}

Table::Table(const std::vector<std::string>& heading) {
  std::vector<Cell> row;
  for (const std::string& text : heading) row.emplace_back(text, Tone::kHeading);
  rows_.push_back(std::move(row));
}

void Table::Add(std::vector<Cell> row) {
  for (Cell& cell : row) cell.text = Printable(cell.text);
  rows_.push_back(std::move(row));
}

std::string Table::Render(const TableStyle& style) const {
  std::vector<size_t> widths;
  for (const std::vector<Cell>& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i].text));
  }
  bool wrap_last = false;
  if (style.width > 0 && !widths.empty() && Total(widths) > style.width) {
    // The last column gets what the others leave.
    const size_t others = Total(widths) - widths.back();
    if (others + kMinProse <= style.width) {
      widths.back() = style.width - others;
      wrap_last = true;
    } else {
      Narrow(widths, style.width, widths.size());
    }
  }
  std::string out;
  for (const std::vector<Cell>& row : rows_) {
    std::vector<std::string> texts;
    std::vector<std::string> more;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string& text = row[i].text;
      if (wrap_last && i + 1 == widths.size()) {
        more = Wrap(text, widths[i]);
        texts.push_back(more[0]);
      } else {
        texts.push_back(Cut(text, widths[i]));
      }
    }
    AppendLine(texts, row, widths, style, out);
    for (size_t line = 1; line < more.size(); ++line) {
      std::fill(texts.begin(), texts.end(), "");
      texts.back() = more[line];
      AppendLine(texts, row, widths, style, out);
    }
  }
  return out;
}

std::string Table::ForTerminal() const { return Render(TableStyle::Of(STDOUT_FILENO)); }

}  // namespace still::cli
