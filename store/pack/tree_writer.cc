#include "store/pack/tree_writer.h"

#include <utility>

namespace still::store {
namespace {

constexpr size_t kFrameTarget = 256 * 1024;
// Keeps the footer (44 bytes a node) well under its limit.
constexpr size_t kMaxNodes = 100'000;

}  // namespace

absl::Status TreeWriter::Add(const NodeId& id, absl::string_view encoded, absl::Time created) {
  absl::MutexLock lock(&mutex_);
  if (!added_.insert(id).second) return absl::OkStatus();
  if (frame_.size() + encoded.size() > kFrameTarget) STILL_RETURN_IF_ERROR(EndFrame());
  if (pack_ == nullptr) {
    STILL_ASSIGN_OR_RETURN(pack_, PackWriter::Begin(packs_, PackKind::kTree, created));
  }
  nodes_.push_back({.id = id,
                    .frame = frames_,
                    .offset = static_cast<uint32_t>(frame_.size()),
                    .size = static_cast<uint32_t>(encoded.size())});
  frame_.append(encoded.data(), encoded.size());
  return absl::OkStatus();
}

absl::Status TreeWriter::EndFrame() {
  if (frame_.empty()) return absl::OkStatus();
  std::string stored;
  const FrameSeal seal = {.keys = packs_.keys(), .object = pack_->object(), .position = frames_};
  codec_.Encode(FrameKind::kNodes, seal, true, frame_, stored);
  STILL_RETURN_IF_ERROR(pack_->AddFrame(frames_, stored));
  ++frames_;
  frame_.clear();
  if (pack_->bytes() >= kPackTarget || nodes_.size() >= kMaxNodes) return EndPack();
  return absl::OkStatus();
}

absl::Status TreeWriter::EndPack() {
  if (pack_ == nullptr) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(PackWriter::Ended ended, pack_->End({}, std::move(nodes_), codec_));
  ended_.push_back(std::move(ended));
  pack_.reset();
  nodes_.clear();
  frames_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PackWriter::Ended>> TreeWriter::TakePacks() {
  absl::MutexLock lock(&mutex_);
  STILL_RETURN_IF_ERROR(EndFrame());
  STILL_RETURN_IF_ERROR(EndPack());
  return std::move(ended_);
}

}  // namespace still::store
