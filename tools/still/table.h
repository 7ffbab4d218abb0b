// Tables for people: columns as wide as their widest cell, narrowed to the terminal, coloured where that helps.
//
//   Table table({"NAME", "STATE"});
//   table.Add({entry.name, {"running", Tone::kGood}});
//   std::cout << table.ForTerminal();
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace still::cli {

enum class Tone { kPlain, kGood, kWarning, kBad, kFaint, kHeading };

struct Cell {
  Cell(std::string text, Tone tone = Tone::kPlain) : text(std::move(text)), tone(tone) {}  // NOLINT: rows are lists.
  Cell(const char* text, Tone tone = Tone::kPlain) : text(text), tone(tone) {}             // NOLINT: as above.
  std::string text;
  Tone tone;
};

struct TableStyle {
  size_t width = 0;  // Of the terminal, in columns; 0: as wide as it gets.
  bool colour = false;
  // Neither for what is no terminal. No colour with NO_COLOR (no-color.org) or TERM=dumb. COLUMNS goes before what the
  // terminal says of itself.
  static TableStyle Of(int fd);
};

// TERM says that the terminal knows no control sequences, or does not say what it is.
bool IsDumbTerminal();

class Table {
 public:
  // Without a heading.
  Table() = default;
  explicit Table(const std::vector<std::string>& heading);
  // Control characters (names may come from a guest) are shown escaped.
  void Add(std::vector<Cell> row);
  bool empty() const { return rows_.empty(); }

  // What does not fit is cut with an ellipsis, in the widest columns first; text in the last column goes on in the next
  // line instead. Trailing blanks are left out.
  std::string Render(const TableStyle& style) const;
  // For standard output as it is.
  std::string ForTerminal() const;

 private:
  std::vector<std::vector<Cell>> rows_;
};

// The text in its colour, for lines that are no table.
std::string Coloured(absl::string_view text, Tone tone, const TableStyle& style);
// Columns that UTF-8 text takes: its code points. (Wide ones of East Asia count once; their rows end up ragged.)
size_t DisplayWidth(absl::string_view text);

}  // namespace still::cli
