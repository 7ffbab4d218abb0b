#include "session/hypervisor/qemu/capture_bitmaps.h"

#include <algorithm>
#include <cstdint>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace still::session {
namespace {

constexpr absl::string_view kBitmapPrefix = "still-";
constexpr size_t kOwnerDigits = 16;
constexpr char kNobody[] = "0";

struct Parts {
  std::string owner = kNobody;  // Also of the names of older versions, which are then the oldest.
  std::string time;             // Digits, as many in each, so that text order is their order.
};

Parts PartsOf(absl::string_view name) {
  std::vector<std::string> parts = absl::StrSplit(name, '-');
  if (parts.size() != 4) return {};
  return {.owner = parts[1], .time = parts[2]};
}

}  // namespace

std::string BitmapName(absl::string_view repository_id, absl::Time now, absl::string_view capture_id) {
  const absl::string_view owner = repository_id.empty() ? absl::string_view(kNobody) : repository_id;
  return absl::StrCat(kBitmapPrefix, owner.substr(0, kOwnerDigits), "-",
                      absl::StrFormat("%010x", absl::ToUnixSeconds(now)), "-", capture_id);
}

bool IsCaptureBitmap(absl::string_view name) { return absl::StartsWith(name, kBitmapPrefix); }

std::vector<std::string> SupersededBitmaps(const std::vector<std::string>& on_disk, absl::string_view committed) {
  const std::string owner = PartsOf(committed).owner;
  std::vector<std::string> superseded;
  for (const std::string& name : on_disk) {
    if (IsCaptureBitmap(name) && name != committed && PartsOf(name).owner == owner) superseded.push_back(name);
  }
  return superseded;
}

std::vector<std::string> SurplusBitmaps(const std::vector<std::string>& on_disk, absl::string_view base) {
  std::map<std::string, std::vector<std::string>> by_owner;
  for (const std::string& name : on_disk) {
    if (IsCaptureBitmap(name) && name != base) by_owner[PartsOf(name).owner].push_back(name);
  }
  auto newer = [](const std::string& a, const std::string& b) { return PartsOf(a).time > PartsOf(b).time; };
  std::vector<std::string> surplus;
  std::vector<std::vector<std::string>> owners;
  for (auto& [owner, names] : by_owner) {
    std::sort(names.begin(), names.end(), newer);
    while (names.size() > kMaxBitmapsOfAnOwner) {
      surplus.push_back(names.back());
      names.pop_back();
    }
    owners.push_back(names);
  }
  std::sort(owners.begin(), owners.end(), [&](const auto& a, const auto& b) { return newer(a.front(), b.front()); });
  for (size_t i = kMaxBitmapOwners; i < owners.size(); ++i) {
    surplus.insert(surplus.end(), owners[i].begin(), owners[i].end());
  }
  return surplus;
}

}  // namespace still::session
