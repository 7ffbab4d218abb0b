#include "store/pack/pack_format.h"

#include <xxhash.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/hex.h"
#include "store/block/bytes.h"
#include "store/block/frame.h"

namespace still::store {
namespace {

constexpr absl::string_view kTrailerMagic("SPPACK\0\1", 8);
constexpr size_t kTrailerChecksumAt = kPackTrailerSize - 8;
constexpr size_t kFooterHeadSize = 32;
constexpr size_t kFrameEntrySize = 8;
constexpr size_t kNodeEntrySize = 44;

absl::Status Damaged(absl::string_view what) { return absl::DataLossError(absl::StrCat("pack: ", what)); }

}  // namespace

std::string PackObject(const PackName& name) { return absl::StrCat("packs/", absl::BytesToHexString(name.view())); }

absl::StatusOr<PackName> PackNameOf(absl::string_view object) {
  absl::string_view hex = object;
  if (!absl::ConsumePrefix(&hex, "packs/") || hex.size() != 2 * PackName::size() ||
      hex.find_first_not_of("0123456789abcdef") != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat(object, ": not the name of a pack"));
  }
  return PackName::FromBytes(*BytesFromHex(hex));
}

uint32_t PackFooter::BlocksIn(uint32_t frame) const {
  const size_t first = size_t{frame} * kBlocksPerGroup;
  return first >= blocks.size() ? 0 : static_cast<uint32_t>(std::min(kBlocksPerGroup, blocks.size() - first));
}

std::string EncodeFooter(const PackFooter& footer) {
  std::string out;
  out.reserve(kFooterHeadSize + footer.frames.size() * kFrameEntrySize + footer.blocks.size() * BlockId::size() +
              footer.nodes.size() * kNodeEntrySize);
  AppendInt<uint64_t>(out, static_cast<uint8_t>(footer.kind));
  AppendInt<int64_t>(out, footer.created_unix_ns);
  AppendInt<uint32_t>(out, footer.frames.size());
  AppendInt<uint32_t>(out, footer.blocks.size());
  AppendInt<uint32_t>(out, footer.nodes.size());
  AppendInt<uint32_t>(out, 0);
  for (const PackFrame& frame : footer.frames) {
    AppendInt<uint32_t>(out, frame.offset);
    AppendInt<uint32_t>(out, frame.size);
  }
  for (const BlockId& block : footer.blocks) out.append(block.view().data(), block.size());
  for (const PackNode& node : footer.nodes) {
    out.append(node.id.view().data(), node.id.size());
    AppendInt<uint32_t>(out, node.frame);
    AppendInt<uint32_t>(out, node.offset);
    AppendInt<uint32_t>(out, node.size);
  }
  return out;
}

absl::StatusOr<PackFooter> ParseFooter(absl::string_view payload, uint64_t frames_end) {
  ByteReader reader(payload);
  PackFooter footer;
  const auto kind = reader.Int<uint64_t>();
  footer.created_unix_ns = reader.Int<int64_t>();
  const uint64_t frames = reader.Int<uint32_t>();
  const uint64_t blocks = reader.Int<uint32_t>();
  const uint64_t nodes = reader.Int<uint32_t>();
  const auto reserved = reader.Int<uint32_t>();
  if (!reader.ok() || kind < 1 || kind > 2 || reserved != 0) return Damaged("impossible footer");
  footer.kind = static_cast<PackKind>(kind);
  // The counts are believed only when they explain the payload's size exactly.
  if (frames * kFrameEntrySize + blocks * BlockId::size() + nodes * kNodeEntrySize != reader.remaining()) {
    return Damaged("footer's counts do not fit its size");
  }
  const bool is_data = footer.kind == PackKind::kData;
  if (blocks > kMaxPackBlocks || (is_data ? nodes : blocks) != 0 ||
      (is_data && frames != (blocks + kBlocksPerGroup - 1) / kBlocksPerGroup)) {
    return Damaged("footer's counts contradict each other");
  }
  footer.frames.reserve(frames);
  for (uint64_t i = 0; i < frames; ++i) {
    PackFrame frame = {.offset = reader.Int<uint32_t>(), .size = reader.Int<uint32_t>()};
    if (frame.size < kFrameHeaderSize || uint64_t{frame.offset} + frame.size > frames_end) {
      return Damaged("frame outside of the pack");
    }
    footer.frames.push_back(frame);
  }
  footer.blocks.reserve(blocks);
  for (uint64_t i = 0; i < blocks; ++i) footer.blocks.push_back(BlockId::FromBytes(reader.Bytes(BlockId::size())));
  footer.nodes.reserve(nodes);
  for (uint64_t i = 0; i < nodes; ++i) {
    PackNode node = {.id = NodeId::FromBytes(reader.Bytes(NodeId::size())),
                     .frame = reader.Int<uint32_t>(),
                     .offset = reader.Int<uint32_t>(),
                     .size = reader.Int<uint32_t>()};
    if (node.frame >= frames || uint64_t{node.offset} + node.size > MaxPlainSize(FrameKind::kNodes)) {
      return Damaged("node outside of its frame");
    }
    footer.nodes.push_back(node);
  }
  return footer;
}

std::string EncodeTrailer(const PackTrailer& trailer) {
  std::string out(kTrailerMagic);
  AppendInt<uint64_t>(out, trailer.footer_offset);
  AppendInt<uint64_t>(out, trailer.footer_size);
  AppendInt<uint64_t>(out, XXH3_64bits(out.data(), out.size()));
  STILL_CHECK(out.size() == kPackTrailerSize);
  return out;
}

absl::StatusOr<PackTrailer> ParseTrailer(absl::string_view bytes, uint64_t pack_size) {
  if (bytes.size() != kPackTrailerSize || bytes.substr(0, kTrailerMagic.size()) != kTrailerMagic) {
    return Damaged("does not end as a pack does");
  }
  if (XXH3_64bits(bytes.data(), kTrailerChecksumAt) != LoadInt<uint64_t>(bytes.data() + kTrailerChecksumAt)) {
    return Damaged("trailer's checksum does not match");
  }
  PackTrailer trailer = {.footer_offset = LoadInt<uint64_t>(bytes.data() + 8),
                         .footer_size = LoadInt<uint64_t>(bytes.data() + 16)};
  if (pack_size > kMaxPackSize || trailer.footer_offset > pack_size || trailer.footer_size > pack_size ||
      trailer.footer_size < kFrameHeaderSize ||
      trailer.footer_offset + trailer.footer_size + kPackTrailerSize != pack_size) {
    return Damaged("trailer does not fit the pack's size");
  }
  return trailer;
}

}  // namespace still::store
