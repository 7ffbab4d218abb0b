#include "tools/still/man_page.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace still::cli {
namespace {

constexpr char kCommonSections[] = R"text(ENVIRONMENT
STILL_STATE           Where sessions live, as with --state
STILL_REPO            The repository's directory, as with --repo
STILL_PASSPHRASE      Opens an encrypted repository
STILL_NEW_PASSPHRASE  What `still key add` adds
STILL_KEY_FILE        A file whose content opens it, as with --key-file
STILL_LOG             json: log lines are JSON objects
STILL_LOG_LEVEL       debug, info, warning or error
NO_COLOR              When not empty: no colours

EXIT STATUS
0  Done
1  Internal error: report it
2  The request can never work: mend the command line
3  Not found
4  Already exists
5  The state does not allow it; the message says what to change first
6  Unavailable, cancelled or too late: try again
7  No room: disk, memory, descriptors
8  Stored data is damaged, or a drill failed: still verify, still repair
9  Permission denied, or the wrong passphrase
)text";

// A backslash begins an escape, a minus would become a hyphen.
std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}, {"\u2026", "..."}});
}

// A line that begins with a dot or a quote would be a request.
std::string Text(absl::string_view text) {
  const std::string escaped = Escape(text);
  return absl::StartsWith(escaped, ".") || absl::StartsWith(escaped, "'") ? absl::StrCat("\\&", escaped) : escaped;
}

std::string FileName(const std::string& path) { return absl::StrCat(absl::StrReplaceAll(path, {{" ", "-"}}), ".1"); }

std::string ValueText(const ValueSpec& value) {
  return value.choices.empty() ? value.type : absl::StrJoin(value.choices, "|");
}

class Page {
 public:
  void Section(absl::string_view title) { absl::StrAppend(&out_, ".SH ", title, "\n"); }
  // An entry of a list: `tag` is roff already.
  void Entry(const std::string& tag, absl::string_view text) {
    absl::StrAppend(&out_, ".TP\n", tag, "\n", Text(text), "\n");
  }
  void Line(const std::string& roff) { absl::StrAppend(&out_, roff, "\n"); }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

void AddOption(Page& page, const OptionSpec& option) {
  const std::string value = option.takes_value ? absl::StrCat(" \\fI", Escape(ValueText(option.value)), "\\fR") : "";
  const std::string tag = absl::StrJoin(option.names, ", ", [&](std::string* out, const std::string& name) {
    absl::StrAppend(out, "\\fB", Escape(name), "\\fR", value);
  });
  std::string text = option.description;
  if (!option.default_text.empty()) absl::StrAppend(&text, " (default: ", option.default_text, ")");
  page.Entry(tag, text);
}

void AddOptions(Page& page, const std::vector<OptionSpec>& options, absl::string_view title) {
  if (options.empty()) return;
  page.Section(title);
  for (const OptionSpec& option : options) AddOption(page, option);
}

void AddSynopsis(Page& page, const CommandSpec& command) {
  page.Section("SYNOPSIS");
  std::string line = absl::StrCat("\\fB", Escape(command.path), "\\fR [\\fIoption\\fR...]");
  for (const PositionalSpec& positional : command.positionals) {
    const std::string name = absl::StrCat("\\fI", Escape(positional.name), "\\fR", positional.repeats ? "..." : "");
    absl::StrAppend(&line, " ", positional.required ? name : absl::StrCat("[", name, "]"));
  }
  if (!command.commands.empty()) absl::StrAppend(&line, " \\fIcommand\\fR ...");
  page.Line(line);
}

// "SECTION", then "WORD  text" lines.
void AddFooter(Page& page, const std::string& footer) {
  for (absl::string_view line : absl::StrSplit(footer, '\n', absl::SkipEmpty())) {
    const size_t gap = line.find("  ");
    if (gap == absl::string_view::npos) {
      page.Section(Escape(line));
    } else {
      page.Entry(absl::StrCat("\\fB", Escape(line.substr(0, gap)), "\\fR"),
                 absl::StripLeadingAsciiWhitespace(line.substr(gap)));
    }
  }
}

void AddSeeAlso(Page& page, const CommandSpec& command, const CommandSpec* parent) {
  std::vector<std::string> pages;
  auto reference = [](const std::string& path) {
    return absl::StrCat("\\fB", Escape(absl::StrReplaceAll(path, {{" ", "-"}})), "\\fR(1)");
  };
  if (parent != nullptr) pages.push_back(reference(parent->path));
  for (const CommandSpec& sub : command.commands) pages.push_back(reference(sub.path));
  if (pages.empty()) return;
  page.Section("SEE ALSO");
  page.Line(absl::StrJoin(pages, ",\n"));
}

void AddPages(const CommandSpec& command, const CommandSpec* parent, const std::vector<OptionSpec>& global,
              const std::string& heading, std::map<std::string, std::string>& pages) {
  Page page;
  const std::string name = absl::StrReplaceAll(command.path, {{" ", "-"}});
  page.Line(absl::StrCat(".TH ", absl::AsciiStrToUpper(Escape(name)), " 1 ", heading));
  page.Section("NAME");
  // whatis(1) reads "name \- description", without a full stop.
  page.Line(absl::StrCat(Escape(name), " \\- ", Escape(absl::StripSuffix(command.description, "."))));
  AddSynopsis(page, command);
  if (!command.positionals.empty()) page.Section("ARGUMENTS");
  for (const PositionalSpec& positional : command.positionals) {
    page.Entry(absl::StrCat("\\fI", Escape(positional.name), "\\fR"),
               positional.description.empty() ? ValueText(positional.value) : positional.description);
  }
  if (!command.commands.empty()) page.Section("COMMANDS");
  for (const CommandSpec& sub : command.commands) {
    page.Entry(absl::StrCat("\\fB", Escape(sub.name), "\\fR"), sub.description);
  }
  AddOptions(page, command.options, "OPTIONS");
  if (parent != nullptr) AddOptions(page, global, "OPTIONS OF ALL COMMANDS");
  AddFooter(page, command.footer);
  AddSeeAlso(page, command, parent);
  pages[FileName(command.path)] = page.Take();
  for (const CommandSpec& sub : command.commands) AddPages(sub, &command, global, heading, pages);
}

}  // namespace

std::string CommonSections() { return kCommonSections; }

std::map<std::string, std::string> ManPages(const CommandSpec& root, const std::string& version,
                                            const std::string& date) {
  std::map<std::string, std::string> pages;
  std::vector<OptionSpec> global;
  for (const OptionSpec& option : root.options) {
    if (option.names.front() != "--help" && option.names.front() != "--version") global.push_back(option);
  }
  const std::string heading = absl::StrCat("\"", date, "\" \"Stillpoint ", version, "\" \"Stillpoint\"");
  AddPages(root, nullptr, global, heading, pages);
  return pages;
}

}  // namespace still::cli
