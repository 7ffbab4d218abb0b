#include "schedule/pair_state.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace still::schedule {

Level LevelOfName(absl::string_view name) {
  for (Level level :
       {manifestpb::Consistency::CRASH, manifestpb::Consistency::FILESYSTEM, manifestpb::Consistency::APPLICATION}) {
    if (NameOfLevel(level) == name) return level;
  }
  return manifestpb::Consistency::LEVEL_UNSPECIFIED;
}

std::string NameOfLevel(Level level) {
  if (level == manifestpb::Consistency::LEVEL_UNSPECIFIED) return "";
  return absl::AsciiStrToLower(manifestpb::Consistency::Level_Name(level));
}

std::string PairMemoryKey(absl::string_view schedule, absl::string_view session) {
  return absl::StrCat(kPairPrefix, schedule, "/", session);
}

std::optional<std::pair<std::string, std::string>> ParsePairMemoryKey(absl::string_view key) {
  if (!absl::StartsWith(key, kPairPrefix)) return std::nullopt;
  std::vector<std::string> parts = absl::StrSplit(key.substr(kPairPrefix.size()), absl::MaxSplits('/', 1));
  if (parts.size() != 2) return std::nullopt;
  return std::make_pair(std::move(parts[0]), std::move(parts[1]));
}

std::string EncodePairMemory(const PairMemory& memory) {
  nlohmann::json json = {{"known", absl::ToUnixSeconds(memory.known)},
                         {"was_there", memory.was_there},
                         {"level", NameOfLevel(memory.level)},
                         {"below", memory.below},
                         {"attempts", memory.attempts}};
  if (memory.retry_at.has_value()) {
    json["retry_at"] = absl::ToUnixSeconds(*memory.retry_at);
    json["retry_planned"] = absl::ToUnixSeconds(memory.retry_planned);
  }
  for (const auto& [point, taken] : memory.ahead) {
    json["ahead"].push_back({{"point_ns", absl::ToUnixNanos(point)}, {"taken_ns", absl::ToUnixNanos(taken)}});
  }
  return json.dump();
}

std::optional<PairMemory> DecodePairMemory(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  const auto number_in = [](const nlohmann::json& in, const char* name) {
    auto at = in.find(name);
    return at != in.end() && at->is_number_integer() ? at->get<int64_t>() : 0;
  };
  const auto number = [&](const char* name) { return number_in(json, name); };
  auto level = json.find("level");
  PairMemory memory;
  memory.known = absl::FromUnixSeconds(number("known"));
  if (level != json.end() && level->is_string()) memory.level = LevelOfName(level->get<std::string>());
  if (auto there = json.find("was_there"); there != json.end() && there->is_boolean()) {
    memory.was_there = there->get<bool>();
  }
  memory.below = static_cast<uint32_t>(number("below"));
  memory.attempts = static_cast<uint32_t>(number("attempts"));
  if (json.contains("retry_at")) {
    memory.retry_at = absl::FromUnixSeconds(number("retry_at"));
    memory.retry_planned = absl::FromUnixSeconds(number("retry_planned"));
  }
  if (auto ahead = json.find("ahead"); ahead != json.end() && ahead->is_array()) {
    for (const nlohmann::json& one : *ahead) {
      if (!one.is_object()) continue;
      const int64_t taken = number_in(one, "taken_ns");
      memory.ahead[absl::FromUnixNanos(number_in(one, "point_ns"))] =
          taken == absl::ToUnixNanos(absl::InfinitePast()) ? absl::InfinitePast() : absl::FromUnixNanos(taken);
    }
  }
  return memory;
}

}  // namespace still::schedule
