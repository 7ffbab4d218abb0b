#include "store/object/object_store.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace still {
namespace {

// S3 allows 1024 and file systems 255 for a component; nothing of ours needs more than this.
constexpr size_t kMaxNameLength = 128;

bool ValidComponent(absl::string_view component, size_t min_length) {
  if (component.size() < min_length || component[0] == '.') return false;
  for (char c : component) {
    if (!absl::ascii_islower(c) && !absl::ascii_isdigit(c) && c != '-' && c != '_' && c != '.') return false;
  }
  return true;
}

}  // namespace

bool ValidObjectName(absl::string_view name) {
  if (name.size() > kMaxNameLength) return false;
  size_t slash = name.find('/');
  if (slash == absl::string_view::npos) return ValidComponent(name, 3);
  return ValidComponent(name.substr(0, slash), 1) && ValidComponent(name.substr(slash + 1), 3);
}

absl::Status CheckObjectName(absl::string_view name) {
  if (ValidObjectName(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("object \"", absl::CHexEscape(name.substr(0, kMaxNameLength)), "\": not a valid object name"));
}

absl::Status ObjectStore::Put(absl::string_view name, absl::string_view content, PutOptions options) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ObjectWriter> writer, NewWriter(name, options));
  STILL_RETURN_IF_ERROR(writer->Append(content));
  return Publish(std::move(writer));
}

absl::Status ObjectStore::Publish(std::unique_ptr<ObjectWriter> writer) {
  std::vector<std::unique_ptr<ObjectWriter>> writers;
  writers.push_back(std::move(writer));
  return Publish(std::move(writers));
}

absl::Status ObjectStore::Delete(absl::string_view name) {
  const std::string names[] = {std::string(name)};
  return Delete(absl::MakeConstSpan(names));
}

absl::StatusOr<std::string> ObjectStore::Get(absl::string_view name, uint64_t limit) {
  STILL_ASSIGN_OR_RETURN(uint64_t size, Size(name));
  if (size > limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat("object ", name, ": ", size, " bytes, more than the ", limit, " it may have"));
  }
  std::string content(size, '\0');
  STILL_RETURN_IF_ERROR(GetRange(name, 0, absl::MakeSpan(content)));
  return content;
}

}  // namespace still
