// The bytes of docs/format/repository.md, which must never change by accident.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "store/block/frame.h"
#include "store/block/identity.h"
#include "store/config.h"
#include "store/image/node.h"
#include "store/pack/pack_format.h"

namespace still::store {
namespace {

std::string Hex(absl::string_view bytes) { return absl::BytesToHexString(bytes); }
std::string Zeros(int count) { return std::string(static_cast<size_t>(count) * 2, '0'); }

TEST(FormatTest, TheWorkedExample) {
  const std::string key(32, 'k');
  IdHasher hasher(key);
  const PackName pack = PackName::FromBytes("0123456789abcdef");
  const std::string d = Hex("0123456789abcdef");

  Leaf leaf0 = {.packs = {pack}};
  leaf0.blocks[0] = {.pack = 0, .block = 0};
  EXPECT_EQ(Hex(EncodeLeaf(leaf0)), absl::StrCat("0101", d, "01", "f807"));
  Leaf leaf1 = {.packs = {pack}};
  leaf1.blocks[0] = {.pack = 0, .block = 0};
  leaf1.blocks[1] = {.pack = 0, .block = 1};
  EXPECT_EQ(Hex(EncodeLeaf(leaf1)), absl::StrCat("0101", d, "05", "f407"));

  const BlockId a = hasher.Block(std::string(kBlockSize, 'a').data());
  const BlockId b = hasher.Block(std::string(kBlockSize, 'b').data());
  // printf 'k%.0s' {1..32} and 32 zero bytes and the block, through sha256sum.
  EXPECT_EQ(Hex(a.view()), "3faa897f0a81ee22a06268778a63710c");
  std::array<BlockId, kBlocksPerLeaf> ids{};
  ids[0] = a;
  const NodeId id0 = hasher.Leaf(ids);
  EXPECT_EQ(Hex(id0.view()), "130fa774ce41c3674df93e64ede3005a41a267d54c04a7926e5062d12bb7a807");
  ids[1] = b;
  const NodeId id1 = hasher.Leaf(ids);
  const NodeId children[] = {id0, id1};
  EXPECT_EQ(Hex(EncodeInner(1, children)), absl::StrCat("020102", "03", Zeros(15), Hex(id0.view()), Hex(id1.view())));
  EXPECT_EQ(Hex(hasher.Inner(1, children).view()), "b42dc8c2bc21ca781581b9d593753ad5df0d2f4f7e002f416f8b14fb07cf8645");
  EXPECT_TRUE(hasher.Leaf(std::array<BlockId, kBlocksPerLeaf>{}).is_zero());
}

TEST(FormatTest, Frames) {
  std::string frame;
  FrameCodec().Encode(FrameKind::kGroup, {.position = 7}, false, "abc", frame);
  EXPECT_EQ(Hex(frame), absl::StrCat("53504631", "02", "01", "00", "00", "03000000", "03000000", "07000000", "00000000",
                                     "c3be6a8122a6db51", "616263"));
}

TEST(FormatTest, FootersAndTrailers) {
  PackFooter footer = {.created_unix_ns = 1};
  footer.frames = {{.offset = 0, .size = 100}};
  footer.blocks = {BlockId::FromBytes("0123456789abcdef")};
  EXPECT_EQ(Hex(EncodeFooter(footer)),
            absl::StrCat("0100000000000000", "0100000000000000", "01000000", "01000000", "00000000", "00000000",
                         "00000000", "64000000", Hex("0123456789abcdef")));
  EXPECT_EQ(Hex(EncodeTrailer({.footer_offset = 100, .footer_size = 88})),
            absl::StrCat("53505041434b0001", "6400000000000000", "5800000000000000", "1661de2f7b8b47c9"));
  EXPECT_TRUE(ParseFooter(EncodeFooter(footer), 100).ok());
  EXPECT_FALSE(ParseFooter(EncodeFooter(footer), 99).ok());
}

TEST(FormatTest, AConfigOfANewerFormatIsRefusedInWords) {
  RepositoryConfig config = {.created = absl::UnixEpoch(), .id = "0123456789abcdef"};
  config.id_secret = SecretBytes::Copy(std::string(32, 's'));
  const std::string object = EncodeConfig(config);
  EXPECT_EQ(Hex(object.substr(kFrameHeaderSize)),
            absl::StrCat("0100", "00", Zeros(5), Zeros(8), Hex("0123456789abcdef"), Hex(std::string(32, 's'))));
  std::string newer(object.substr(kFrameHeaderSize));
  newer[0] = 2;
  std::string frame;
  FrameCodec().Encode(FrameKind::kConfig, {}, false, newer, frame);
  const absl::Status status = ParseConfig(frame).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("format 2"));
}

TEST(FormatTest, AConfigKeepsTheCompressionAndTakesOneItDoesNotKnowForTheDefault) {
  RepositoryConfig config = {
      .compression = Compression::kSmall, .created = absl::UnixEpoch(), .id = std::string(16, 'i')};
  config.id_secret = SecretBytes::Copy(std::string(32, 's'));
  const std::string object = EncodeConfig(config);
  EXPECT_EQ(Hex(object.substr(kFrameHeaderSize, 8)), "0100000200000000");
  EXPECT_EQ(ParseConfig(object)->compression, Compression::kSmall);
  std::string newer(object.substr(kFrameHeaderSize));
  newer[3] = 77;
  std::string frame;
  FrameCodec().Encode(FrameKind::kConfig, {}, false, newer, frame);
  EXPECT_EQ(ParseConfig(frame)->compression, Compression::kDefault);
}

TEST(FormatTest, TreesAreAsLowAsTheyCanBe) {
  EXPECT_EQ(TreeShape(0).leaves, 0);
  EXPECT_EQ(TreeShape(1).height, 0);
  EXPECT_EQ(TreeShape(kLeafSpan + 1).height, 1);
  EXPECT_EQ(TreeShape(kLeafSpan * kFanout).height, 1);
  EXPECT_EQ(TreeShape(kLeafSpan * kFanout + 1).height, 2);
  EXPECT_EQ(TreeShape(kLeafSpan * kFanout + 1).NodesAt(1), 2);
  EXPECT_EQ(TreeShape(kMaxImageSize).height, 5);
}

}  // namespace
}  // namespace still::store
