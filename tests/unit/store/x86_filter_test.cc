#include "store/block/x86_filter.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/hex.h"
#include "store/block/bytes.h"
#include "store/block/frame.h"

namespace still::store {
namespace {

// The format document's words, byte by byte.
std::string FilteredAsDocumented(std::string data, size_t* changed) {
  *changed = 0;
  for (size_t i = 0; i + 16 < data.size();) {
    const auto first = static_cast<uint8_t>(data[i]);
    const auto second = static_cast<uint8_t>(data[i + 1]);
    size_t operand = 0;
    if (first == 0xe8 || first == 0xe9) operand = i + 1;
    if ((first == 0x89 || first == 0x8b || first == 0x8d || first == 0x8f) && (second & 0xc7) == 0x05) operand = i + 2;
    if (operand == 0) {
      ++i;
      continue;
    }
    i = operand + 4;
    const auto value = LoadInt<int32_t>(data.data() + operand);
    if (value < -(1 << 24) || value >= 1 << 24) continue;
    ++*changed;
    auto position = static_cast<int32_t>((value + static_cast<int64_t>(i)) & 0x1ffffff);
    if (position >= 1 << 24) position -= 1 << 25;
    std::string bytes;
    AppendInt(bytes, position);
    data.replace(operand, 4, bytes);
  }
  return data;
}

// Bytes that the filter looks at are a tenth of it.
std::string LikeCode(std::mt19937_64& random, size_t size) {
  static constexpr uint8_t kInteresting[] = {0xe8, 0xe9, 0x89, 0x8b, 0x8d, 0x8f, 0x05, 0x3d, 0x00, 0xff};
  std::string data(size, '\0');
  for (char& byte : data) {
    byte = static_cast<char>(random() % 10 == 0 ? random() : kInteresting[random() % sizeof(kInteresting)]);
  }
  return data;
}

// Calls of a few functions from many places, as a group of a disk image has them.
std::string Program(std::mt19937_64& random, size_t size) {
  std::string code;
  while (code.size() + 64 < size) {
    for (uint64_t i = random() % 24; i > 0; --i) code.push_back(static_cast<char>(random() % 0x80));
    code.push_back('\xe8');
    const auto function = static_cast<uint32_t>(random() % 40 * 4096 + random() % 2 * 1111);
    AppendInt<uint32_t>(code, function - static_cast<uint32_t>(code.size() + 4));
  }
  code.resize(size);
  return code;
}

TEST(X86FilterTest, TheWorkedExample) {
  const std::string nops(16, '\x90');
  // call +0x10; mov rax, [rip - 1]; call to where no code is; jmp +1, cut off by the end.
  std::string code = *BytesFromHex("e810000000488b05ffffffffe800000001e901000000");
  code = absl::StrCat(code.substr(0, 17), nops.substr(0, 11), code.substr(17));
  const std::string original = code;
  EXPECT_EQ(ApplyX86Filter(absl::MakeSpan(code)), 2);
  EXPECT_EQ(absl::BytesToHexString(code.substr(0, 17)), "e815000000488b050b000000e800000001");
  EXPECT_EQ(code.substr(17), original.substr(17));
  UndoX86Filter(absl::MakeSpan(code));
  EXPECT_EQ(code, original);
}

TEST(X86FilterTest, IsWhatTheDocumentSaysAndCanBeUndone) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  for (size_t round = 0; round < 2000; ++round) {
    const std::string original = LikeCode(random, round % 4 == 0 ? random() % 5000 : random() % 80);
    size_t expected_changes = 0;
    const std::string expected = FilteredAsDocumented(original, &expected_changes);
    std::string data = original;
    ASSERT_EQ(ApplyX86Filter(absl::MakeSpan(data)), expected_changes);
    ASSERT_EQ(data, expected);
    UndoX86Filter(absl::MakeSpan(data));
    ASSERT_EQ(data, original);
  }
}

TEST(X86FilterTest, AnyBytesCanBeUndone) {
  std::mt19937_64 random(1);
  for (size_t round = 0; round < 500; ++round) {
    const std::string hostile = LikeCode(random, random() % 300);
    std::string data = hostile;
    UndoX86Filter(absl::MakeSpan(data));
    ApplyX86Filter(absl::MakeSpan(data));
    ASSERT_EQ(data, hostile);
  }
}

TEST(FrameFilterTest, GroupsOfCodeAreFilteredAndOthersAreNot) {
  std::mt19937_64 random(1);
  const std::string code = Program(random, 65536);
  const std::string text(65536, 'x');
  FrameCodec codec;
  auto encode = [&](FrameKind kind, const std::string& payload) {
    std::string frame;
    codec.Encode(kind, {}, true, payload, frame);
    auto back = codec.Decode(kind, {}, frame);
    EXPECT_TRUE(back.ok() && *back == payload) << back.status();
    return frame;
  };
  const std::string filtered = encode(FrameKind::kGroup, code);
  EXPECT_TRUE(ParseFrameHeader(FrameKind::kGroup, filtered)->filtered);
  const std::string as_nodes = encode(FrameKind::kNodes, code);
  EXPECT_FALSE(ParseFrameHeader(FrameKind::kNodes, as_nodes)->filtered);
  EXPECT_LT(filtered.size(), as_nodes.size() * 9 / 10);  // The same but for the filter.
  EXPECT_FALSE(ParseFrameHeader(FrameKind::kGroup, encode(FrameKind::kGroup, text))->filtered);
  EXPECT_FALSE(ParseFrameHeader(FrameKind::kGroup, encode(FrameKind::kGroup, "x"))->filtered);
}

TEST(FrameFilterTest, ImpossibleHeadersAreRefused) {
  std::mt19937_64 random(1);
  std::string frame;
  FrameCodec().Encode(FrameKind::kGroup, {}, true, Program(random, 65536), frame);
  ASSERT_EQ(absl::BytesToHexString(frame.substr(4, 4)), "02020500");
  auto with = [&](FrameKind kind, int version, int flags) {
    std::string header = frame.substr(0, kFrameHeaderSize);
    header[4] = static_cast<char>(kind);
    header[5] = static_cast<char>(version);
    header[6] = static_cast<char>(flags);
    return ParseFrameHeader(kind, header).status().code();
  };
  EXPECT_EQ(with(FrameKind::kGroup, 2, 5), absl::StatusCode::kOk);
  EXPECT_EQ(with(FrameKind::kGroup, 1, 1), absl::StatusCode::kOk);
  EXPECT_EQ(with(FrameKind::kGroup, 2, 1), absl::StatusCode::kDataLoss);
  EXPECT_EQ(with(FrameKind::kGroup, 2, 4), absl::StatusCode::kDataLoss);
  EXPECT_EQ(with(FrameKind::kGroup, 1, 5), absl::StatusCode::kDataLoss);
  EXPECT_EQ(with(FrameKind::kGroup, 2, 13), absl::StatusCode::kDataLoss);
  EXPECT_EQ(with(FrameKind::kGroup, 0, 1), absl::StatusCode::kDataLoss);
  EXPECT_EQ(with(FrameKind::kGroup, 3, 5), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(with(FrameKind::kNodes, 2, 5), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace still::store
