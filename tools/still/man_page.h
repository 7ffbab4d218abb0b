// Man pages from what --help knows, and the section about all commands that both show.
#pragma once

#include <map>
#include <string>

#include "tools/still/command_tree.h"

namespace still::cli {

// Environment, files and exit codes, for the end of `still --help` and of still(1). A section is a line in capitals,
// then lines "WORD  text".
std::string CommonSections();

// File name ("still-key-add.1") to page, in man(7) macros, one for each command. `date`: "2026-11-21".
std::map<std::string, std::string> ManPages(const CommandSpec& root, const std::string& version,
                                            const std::string& date);

}  // namespace still::cli
