#include "session/console.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "session/guest/guest_words.h"

namespace still::session {

std::string DescribeConsoleEnd(const std::string& path) {
  constexpr off_t kTail = 4096;
  absl::StatusOr<OwnedFd> fd = OpenFile(path, O_RDONLY);
  if (!fd.ok()) return "it has no console";
  std::string tail(kTail, '\0');
  off_t from = std::max<off_t>(0, ::lseek(fd->get(), 0, SEEK_END) - kTail);
  tail.resize(std::max<ssize_t>(0, ::pread(fd->get(), tail.data(), tail.size(), from)));
  std::vector<absl::string_view> lines = absl::StrSplit(tail, absl::ByAnyChar("\r\n"), absl::SkipWhitespace());
  if (lines.empty()) return "its console is empty";
  return absl::StrCat("its console ends with \"", CleanWords(absl::StripAsciiWhitespace(lines.back()), kMaxGuestName),
                      "\"");
}

}  // namespace still::session
