#include "session/memory/page_stream.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMemory = 16 * 4096;

std::string Number(uint64_t value, size_t bytes) { return {reinterpret_cast<const char*>(&value), bytes}; }
std::string Sizes(uint64_t memory, uint64_t flags = 0) { return Number(memory, 8) + Number(flags, 8); }
std::string Record(uint32_t kind, uint64_t offset, const std::string& content) {
  return Number(kind, 4) + Number(content.size(), 4) + Number(offset, 8) + content;
}
const std::string kPage(4096, 'p');
const std::string kEnd = Record(3, 0, "");

absl::Status Read(const std::string& stream, std::vector<std::string>* seen = nullptr) {
  size_t taken = 0;
  auto source = [&](char* out, size_t size) -> absl::StatusOr<size_t> {
    // In pieces, as a socket gives them.
    const size_t part = std::min({size, stream.size() - taken, size_t{1000}});
    std::memcpy(out, stream.data() + taken, part);
    taken += part;
    return part;
  };
  std::vector<std::string> ignored;
  if (seen == nullptr) seen = &ignored;
  auto note = [&](std::string what) {
    seen->push_back(std::move(what));
    return absl::OkStatus();
  };
  return ReadPageStream(
      source, kMemory,
      {.on_memory =
           [&](uint64_t bytes, bool increment) {
             return note((increment ? "increment of " : "memory ") + std::to_string(bytes));
           },
       .on_pages =
           [&](uint64_t offset, absl::string_view pages) {
             return note("pages " + std::to_string(offset) + " " + std::to_string(pages.size()));
           },
       .on_device_state = [&](absl::string_view bytes) { return note("devices " + std::string(bytes)); }});
}

TEST(PageStream, IsReadToItsEnd) {
  std::vector<std::string> seen;
  EXPECT_TRUE(Read(Sizes(kMemory) + Record(1, 8192, kPage + kPage) + Record(1, 0, kPage) + Record(2, 0, "abc") +
                       Record(2, 0, "def") + kEnd,
                   &seen)
                  .ok());
  EXPECT_THAT(seen,
              ::testing::ElementsAre("memory 65536", "pages 8192 8192", "pages 0 4096", "devices abc", "devices def"));
}

TEST(PageStream, AnIncrementSaysSo) {
  std::vector<std::string> seen;
  EXPECT_TRUE(Read(Sizes(kMemory, 1) + kEnd, &seen).ok());
  EXPECT_THAT(seen, ::testing::ElementsAre("increment of 65536"));
}

TEST(PageStream, WhatIsCutShortIsNoSnapshot) {
  const std::string whole = Sizes(kMemory) + Record(1, 0, kPage) + Record(2, 0, "abc") + kEnd;
  ASSERT_TRUE(Read(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_EQ(Read(whole.substr(0, size)).code(), absl::StatusCode::kDataLoss) << size;
  }
}

TEST(PageStream, WhatIsBrokenIsRefused) {
  const struct {
    std::string stream;
    const char* why;
  } kBroken[] = {
      {Sizes(0), "memory of 0"},
      {Sizes(4097), "memory of 4097"},
      {Sizes(kMemory + 4096), "memory of"},
      {Sizes(kMemory, 2), "unknown flags"},
      {Sizes(kMemory) + Record(1, kMemory, kPage), "not of the memory"},
      {Sizes(kMemory) + Record(1, ~uint64_t{4095}, kPage), "not of the memory"},
      {Sizes(kMemory) + Record(1, 1, kPage), "not of the memory"},
      {Sizes(kMemory) + Record(1, 0, "short"), "not of the memory"},
      {Sizes(kMemory) + Record(1, 0, ""), "not of the memory"},
      {Sizes(kMemory) + Record(1, 0, kPage) + Record(1, 0, kPage), "a page twice"},
      {Sizes(kMemory) + Record(2, 1, "abc"), "impossible device state"},
      {Sizes(kMemory) + Record(3, 0, "more"), "does not end"},
      {Sizes(kMemory) + Record(9, 0, ""), "kind 9"},
      {Sizes(kMemory) + Number(1, 4) + Number(uint64_t{2} << 20, 4) + Number(0, 8), "a record of"},
  };
  for (const auto& [stream, why] : kBroken) {
    absl::Status read = Read(stream + kEnd);
    EXPECT_EQ(read.code(), absl::StatusCode::kDataLoss) << why;
    EXPECT_THAT(std::string(read.message()), HasSubstr(why));
  }
}

}  // namespace
}  // namespace still::session
