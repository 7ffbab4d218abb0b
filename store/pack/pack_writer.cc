#include "store/pack/pack_writer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/random.h"
#include "store/pack/block_index.h"

namespace still::store {
namespace {

PackSummary Summarize(const PackName& name, uint64_t size, const PackFooter& footer, bool encrypted) {
  PackSummary summary = {.name = name,
                         .kind = footer.kind,
                         .size = size,
                         .created_unix_ns = footer.created_unix_ns,
                         .blocks = static_cast<uint32_t>(footer.blocks.size()),
                         .overhead = size};
  if (footer.kind == PackKind::kData) {
    const size_t envelope = kFrameHeaderSize + (encrypted ? RepositoryKeys::kSealedExtra : 0);
    for (const PackFrame& frame : footer.frames)
      summary.overhead -= frame.size - std::min<size_t>(envelope, frame.size);
  }
  for (const BlockId& id : footer.blocks) {
    if (IsHook(id.prefix())) summary.hooks.push_back(id.prefix());
  }
  summary.nodes.reserve(footer.nodes.size());
  for (const PackNode& node : footer.nodes) summary.nodes.push_back(node.id);
  return summary;
}

}  // namespace

PackSummary Summarize(const OpenPack& pack, bool encrypted) {
  return Summarize(pack.name, pack.size, pack.footer, encrypted);
}

absl::StatusOr<std::unique_ptr<PackWriter>> PackWriter::Begin(PackSet& packs, PackKind kind, absl::Time created) {
  PackName name;
  RandomBytes(name.bytes.data(), name.size());
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ObjectWriter> writer, packs.objects().NewWriter(PackObject(name), {}));
  return std::unique_ptr<PackWriter>(
      new PackWriter(packs.keys(), name, packs.Add(name), kind, created, std::move(writer)));
}

PackWriter::PackWriter(const RepositoryKeys* keys, const PackName& name, PackNumber number, PackKind kind,
                       absl::Time created, std::unique_ptr<ObjectWriter> writer)
    : keys_(keys),
      name_(name),
      number_(number),
      object_(PackObject(name)),
      kind_(kind),
      created_unix_ns_(absl::ToUnixNanos(created)),
      writer_(std::move(writer)) {}

uint64_t PackWriter::bytes() const {
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

absl::Status PackWriter::AddFrame(uint32_t position, absl::string_view frame) {
  absl::MutexLock lock(&mutex_);
  if (frames_.size() <= position) frames_.resize(position + size_t{1});
  frames_[position] = {.offset = static_cast<uint32_t>(bytes_), .size = static_cast<uint32_t>(frame.size())};
  bytes_ += frame.size();
  STILL_CHECK(bytes_ < kMaxPackSize);
  return writer_->Append(frame);
}

absl::StatusOr<PackWriter::Ended> PackWriter::End(std::vector<BlockId> blocks, std::vector<PackNode> nodes,
                                                  FrameCodec& codec) {
  absl::MutexLock lock(&mutex_);
  for (const PackFrame& frame : frames_) STILL_CHECK(frame.size != 0);
  PackFooter footer = {.kind = kind_,
                       .created_unix_ns = created_unix_ns_,
                       .frames = std::move(frames_),
                       .blocks = std::move(blocks),
                       .nodes = std::move(nodes)};
  std::string tail;
  // Ids do not compress, and they are nearly all of it.
  codec.Encode(FrameKind::kFooter, {.keys = keys_, .object = object_, .position = kFooterPosition}, false,
               EncodeFooter(footer), tail);
  const uint64_t footer_size = tail.size();
  tail += EncodeTrailer({.footer_offset = bytes_, .footer_size = footer_size});
  STILL_RETURN_IF_ERROR(writer_->Append(tail));
  writer_->Finish();
  return Ended{.object = std::move(writer_),
               .summary = Summarize(name_, bytes_ + tail.size(), footer, keys_ != nullptr)};
}

}  // namespace still::store
